"""Images made of objects, with their masks: generators, files, batches.

`open_dataset` finds a data set by name or path, `BatchSampler` says which images come in which
step, and `torch.utils.data.DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)` makes
the batches.
"""

from emorl.data.base import UNBOUNDED, Batch, ObjectDataset, collate
from emorl.data.check import check
from emorl.data.convert import convert
from emorl.data.generators.clevr import Clevr
from emorl.data.generators.multi_dsprites import MultiDSprites
from emorl.data.generators.tetromino_shapes import render
from emorl.data.generators.tetrominoes import Tetrominoes
from emorl.data.open import FORMATS, GENERATORS, open_dataset
from emorl.data.sampler import BatchSampler

__all__ = [
    "FORMATS",
    "GENERATORS",
    "UNBOUNDED",
    "Batch",
    "BatchSampler",
    "Clevr",
    "MultiDSprites",
    "ObjectDataset",
    "Tetrominoes",
    "check",
    "collate",
    "convert",
    "open_dataset",
    "render",
]
