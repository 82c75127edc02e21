"""The images of each step, made in this process or by workers, which never outlive their use."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Generator, Sequence
from typing import Any

from torch import Tensor
from torch.profiler import record_function
from torch.utils.data import DataLoader, Dataset, get_worker_info

from emorl.data import BatchSampler, ObjectDataset
from emorl.training.interrupt import SIGNALS


def step_images(
    dataset: ObjectDataset, sampler: BatchSampler, workers: int, *, pin_memory: bool
) -> Generator[Tensor, None, None]:
    """The images of the sampler's batches, uint8 [B, 3, H, W].

    Close the iterator: that ends its workers. It also closes when it raises.

    Raises:
        ValueError: if an image cannot be read, with the same line from a worker as without one.
        OSError: likewise.
        RuntimeError: torch's, if a worker was killed or there is no shared memory for its batch.
    """
    # Here, lest the loader's own be the first, which imports a module: torch would take the error
    # of a worker that is killed meanwhile for that import's.
    with record_function("step_images"):
        pass
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more than processors
        loader = DataLoader(
            _Answering(dataset),
            batch_sampler=sampler,
            collate_fn=_shared,
            num_workers=workers,
            worker_init_fn=_ignore_signals,
            pin_memory=pin_memory,
        )
        answers = iter(loader)
    try:
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
            yield answer
    finally:
        _end_workers(answers)


class _Answering(Dataset[Any]):
    """A data set that answers with the error where a batch cannot be read.

    Raised in a worker, an error would arrive as a page of text about the worker.
    """

    def __init__(self, source: ObjectDataset) -> None:
        self.source = source

    def __getitems__(self, indices: Sequence[int]) -> Tensor | ValueError | OSError:
        try:
            return self.source.read_images(indices)
        except (ValueError, OSError) as error:
            return error


def _shared(answer: Any) -> Tensor | ValueError | OSError | RuntimeError:
    """An answer as it is sent.

    A worker copies images into shared memory here, where it can answer with the error if that
    is full: when the answer is sent it is too late, and the training would wait for ever.
    """
    if get_worker_info() is None or isinstance(answer, ValueError | OSError):
        return answer
    try:
        return answer.share_memory_()
    except RuntimeError as error:
        return error


def _ignore_signals(worker_id: int) -> None:
    """For workers: signals reach them too, but the step under way needs its batch.

    A worker ends when its parent asks it to, or has died.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_workers(answers: Any) -> None:
    """End a loader's workers now.

    Python ends what is left of them when it exits by SIGTERM, which they ignore, and then waits for
    them for ever.
    """
    workers = getattr(answers, "_workers", ())
    if workers:
        answers._shutdown_workers()  # no public way; asks them, and waits some seconds for each
    for worker in workers:
        if worker.is_alive():  # reading still
            worker.kill()
            worker.join()
