"""Images made of objects, with their masks: generators, files, batches.

`open_dataset` finds a data set by name or path, `BatchSampler` says which images come in which
step, and `torch.utils.data.DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)` makes
the batches.
"""

from emorl.data.base import UNBOUNDED, Batch, ObjectDataset, collate
from emorl.data.catalogue import FORMATS, GENERATORS, open_dataset
from emorl.data.checking import check
from emorl.data.conversion import convert
from emorl.data.sampler import BatchSampler
from emorl.data.tetromino_shapes import render
from emorl.data.tetrominoes import Tetrominoes

__all__ = [
    "FORMATS",
    "GENERATORS",
    "UNBOUNDED",
    "Batch",
    "BatchSampler",
    "ObjectDataset",
    "Tetrominoes",
    "check",
    "collate",
    "convert",
    "open_dataset",
    "render",
]
