"""Workers that prepare batches: what they cannot read ends the run, and no process is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
import torch
from process_testing import processes
from torch.utils.data import get_worker_info
from training_fakes import SIZE, FakeImages, FakeModel

from emorl.data import Batch, BatchSampler, Tetrominoes
from emorl.training.config import TrainerConfig
from emorl.training.loader import step_images
from emorl.training.trainer import NonFiniteError, Trainer


def in_a_process_group(work: Callable[[], object], output: Path) -> None:
    """Run a command as the command line does; its output goes to a file."""
    os.setpgid(0, 0)
    multiprocessing.set_start_method("fork", force=True)  # quick data loader workers
    torch.set_num_threads(1)
    with output.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
        os.dup2(file.fileno(), sys.stdout.fileno())
    code = work()
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code)


def ends(work: Callable[[], object], tmp_path: Path) -> tuple[int | None, str]:
    """Exit code and output of a command, which leaves no process of its group."""
    output = tmp_path / "output.txt"
    process = processes.Process(target=in_a_process_group, args=(work, output))
    process.start()
    process.join(60)
    stuck = process.is_alive()
    if stuck:
        os.killpg(process.pid, 9)
        process.join()
    assert not stuck, output.read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return process.exitcode, output.read_text()


class Command:
    """`emorl` with a line of arguments."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __call__(self) -> int:
        from emorl.cli import main

        return main(self.line.split())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["nan", "damaged"])
def test_an_image_that_cannot_be_read_is_one_line(tmp_path, fault, workers):
    images = np.random.default_rng(0).random((64, 35, 35, 3), np.float32)
    file, out = tmp_path / "a.h5", tmp_path / "run"
    if fault == "nan":
        images[40, 3, 3, 0] = np.nan
    with h5py.File(file, "w") as h5:
        h5.create_dataset("train/imgs", data=images, chunks=(1, 35, 35, 3), compression="gzip")
        start = h5["train/imgs"].id.get_chunk_info(40).byte_offset
    if fault == "damaged":
        content = bytearray(file.read_bytes())
        content[start + 2 : start + 40] = bytes(38)
        file.write_bytes(content)
    line = f"train --config smoke --data.train {file} --data.workers {workers} --out {out}"
    code, text = ends(
        Command(f"{line} --trainer.batch_size 64 --trainer.picture_every 0 --trainer.eval_every 0"),
        tmp_path,
    )
    complaint = text.splitlines()[-1]
    assert code == 2
    if fault == "nan":
        assert complaint.startswith(f"emorl train: {file}: image 40: expected values from 0 to 1 ")
    else:
        assert complaint.startswith(f"emorl train: {file}: /train/imgs: image 40: ")
    assert "Traceback" not in text


class Failing(FakeModel):
    """Its third step has no finite loss."""

    steps = 0

    def objective(self, *arguments, **options):
        self.steps += 1
        objective = super().objective(*arguments, **options)
        objective.loss = objective.loss * (float("nan") if self.steps > 2 else 1)
        return objective


class Diverge:
    """A run with workers that fails in the main process; its error is kept, with all frames."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> int:
        config = TrainerConfig(steps=9, batch_size=4, picture_every=0, device="cpu")
        trainer = Trainer(Failing(), FakeImages(), config, self.folder / "run", workers=2)
        with pytest.raises(NonFiniteError, match="step 3: ") as kept:
            trainer.run()
        return 4 if kept.value and not multiprocessing.active_children() else 5


def test_an_error_elsewhere_ends_the_workers(tmp_path):
    code, text = ends(Diverge(tmp_path), tmp_path)
    assert code == 4, text


class InWorkers:
    """A training of which the workers meet with a fault of the machine."""

    def __init__(self, fault: Callable[..., object], owner: str, name: str) -> None:
        self.fault, self.owner, self.name = fault, owner, name

    def __call__(self) -> int:
        from emorl.cli import main

        owner = {"tensor": torch.Tensor, "images": Tetrominoes}[self.owner]
        whole = getattr(owner, self.name)

        def faulty(*arguments: object) -> object:
            return self.fault() if get_worker_info() else whole(*arguments)

        setattr(owner, self.name, faulty)
        with TemporaryDirectory() as folder:
            line = f"train --config smoke --data.workers 2 --out {folder}/run"
            return main(line.split())


IMPORTS = """
import sys
from contextlib import closing
from torch.utils.data import DataLoader
from emorl.data import BatchSampler, open_dataset
from emorl.training.loader import step_images

before, begin = set(), DataLoader.__iter__

def noted(loader):
    answers = begin(loader)
    before.update(sys.modules)
    return answers

DataLoader.__iter__ = noted
images = open_dataset("tetrominoes-real10")
with closing(step_images(images, BatchSampler(10, 2), 1, pin_memory=False)) as batches:
    next(batches)
print(sorted({*sys.modules} - before))
"""


def test_nothing_is_imported_once_workers_run() -> None:
    """An import would swallow the error of a worker that is killed meanwhile."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def _be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _find_no_room() -> None:
    text = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    raise RuntimeError(text)


@pytest.mark.parametrize(
    ("run", "complaint"),
    [
        (InWorkers(_be_killed, "images", "__getitems__"), "data worker (pid"),
        (InWorkers(_find_no_room, "tensor", "share_memory_"), "out of shared memory for the batch"),
    ],
)
def test_what_the_machine_does_to_workers_is_one_line(tmp_path, run, complaint):
    code, text = ends(run, tmp_path)
    (line,) = [line for line in text.splitlines() if line.startswith("emorl train: ")]
    assert line.startswith(f"emorl train: {complaint}")
    assert line.endswith("take fewer --data.workers, a smaller batch or a larger /dev/shm")
    assert "Traceback" not in text
    assert code == 1


class Slow(FakeImages):
    """Takes for ever for its second batch."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        if 9 in indices:
            time.sleep(3600)
        return super().__getitems__(indices)


class Broken(FakeImages):
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        if 9 in indices:
            raise PermissionError(13, "Permission denied", "image 9")
        return super().__getitems__(indices)


def in_order() -> BatchSampler:
    return BatchSampler(48, 8, shuffle=False)


def test_workers_that_are_busy_end_all_the_same():
    images = step_images(Slow(), in_order(), 2, pin_memory=False)
    assert next(images).shape == (8, 3, SIZE, SIZE)
    begin = time.monotonic()
    images.close()
    assert time.monotonic() - begin < 30
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_are_the_same_from_workers(workers):
    images = step_images(Broken(), in_order(), workers, pin_memory=False)
    next(images)
    with pytest.raises(PermissionError) as error:
        next(images)
    assert (error.value.errno, error.value.filename) == (13, "image 9")
    assert not multiprocessing.active_children()


def test_workers_give_what_none_gives():
    by = [[*islice(step_images(FakeImages(), in_order(), w, pin_memory=False), 7)] for w in (0, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*by, strict=True))
