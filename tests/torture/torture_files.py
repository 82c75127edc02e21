"""Mutated files of every format that is read: right numbers, or one line and exit code 2.

Many are read in one process, a fork of a warm one, which a crash or a stuck file costs no more than
itself. The process may take little memory, and what it starts or runs is noticed.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from process_testing import processes
from torture_children import Fault
from torture_mutations import CANARY, RECALCULATED, mutate
from training_fakes import FakeImages, FakeModel

from emorl.cli import USAGE, _explain
from emorl.compat.official import load_checkpoint
from emorl.data import convert, open_dataset
from emorl.data.transforms import TransformedDataset
from emorl.report import write_report
from emorl.runs import RunFolder, checkpoint
from emorl.runs.contents import read_contents
from emorl.runs.folder import CHECKSUMS
from emorl.runs.log import drop_rows_after
from emorl.training.config import TrainerConfig
from emorl.training.config_file import load_config, save_config
from emorl.training.trainer import Trainer

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))
from test_tfrecord import framed, serialised, tiny

STUCK = 60.0  # seconds for one file
MEMORY = 4 * 2**30  # bytes more than the process has at its start
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen")
FIXTURES = Path(os.environ.get("EMORL_FIXTURES", Path(__file__).parents[3] / "shared"))
RELEASED = "clevr_small_gmm_i1"


@dataclass(frozen=True)
class Format:
    """How files of a kind are read.

    Attributes:
        path: The file, relative to the folder that `make` fills.
        make: Writes whole files.
        read: Takes the folder, and returns what stands for the numbers.
        checked: The file has checksums: other numbers are a fault.
        sums: The checksums are in a file of their own, which older versions did not write.
        frugal: More memory than there is must not even be asked for.
    """

    path: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    checked: bool = False
    sums: bool = False
    frugal: bool = False


def digest(value: Any) -> str:
    """Of tensors in containers, or of what prints itself."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return repr([(key, digest(inner)) for key, inner in value.items()])
    return repr(value)


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    FakeModel().save_pretrained(folder / "model")


def read_model(folder: Path) -> str:
    model = FakeModel.from_pretrained(folder / "model")
    return digest(model.state_dict()) + digest(model.config)


def trainer(folder: Path, steps: int = 6) -> Trainer:
    torch.manual_seed(0)
    config = TrainerConfig(
        steps=steps, batch_size=4, checkpoint_every=2, picture_every=0, device="cpu"
    )
    return Trainer(FakeModel(), FakeImages(), config, folder, resume=True)


def make_run(folder: Path) -> None:
    trainer(folder / "run", 4).run()


def read_run(folder: Path) -> str:
    """The weights at the run's end; a damaged checkpoint costs time and nothing else."""
    with contextlib.redirect_stderr(io.StringIO()):
        trainer(folder / "run").run()
    newest = checkpoint.latest(folder / "run")
    assert newest is not None
    return digest(FakeModel.from_pretrained(newest).state_dict())


def make_config(folder: Path) -> None:
    save_config(load_config(None), folder / "config.yaml")


def make_rows(folder: Path) -> None:
    rows = "".join(f'{{"step": {n}, "loss": {n / 7}, "nll": null}}\n' for n in range(1, 40))
    (folder / "metrics.jsonl").write_text(rows)


def read_rows(folder: Path) -> str:
    """Lines that are as they were are kept, and a report can be made of what is kept."""
    path = folder / "metrics.jsonl"
    whole = {f'{{"step": {n}, "loss": {n / 7}, "nll": null}}'.encode() for n in range(1, 40)}
    before = whole & {*path.read_bytes().split(b"\n")}
    drop_rows_after(path, 39)
    if lost := before - {*path.read_bytes().split(b"\n")}:
        raise Fault(f"rows lost: {lost}")
    write_report(folder)
    return repr(read_contents(folder).rows)


def make_evaluation(folder: Path) -> None:
    save_config(load_config(None), RunFolder(folder).config)
    path = RunFolder(folder).evaluation("tetrominoes")
    path.parent.mkdir()
    path.write_text(
        '{"checkpoint": "a", "data": "b", "split": "test", "images": 4, "num_slots": 4, "seed": 0,'
        ' "refinement_steps": null, "notes": ["c"],\n "metrics": {"fg_ari":\n {"mean": 0.5,'
        ' "std": 0.25, "count": 4},\n "mse": {"mean": null, "std": null, "count": 0}}}\n'
    )


def read_evaluation(folder: Path) -> str:
    write_report(folder)
    return repr(read_contents(folder).evaluations)


def make_hdf5(folder: Path) -> None:
    source = TransformedDataset(open_dataset("tetrominoes"), limit=4, crop=None, size=None)
    convert(source, folder / "images.h5", 4)


def make_records(folder: Path) -> None:
    content = b"".join(framed(serialised(tiny(value))) for value in range(3))
    (folder / "images.tfrecords").write_bytes(content)
    (folder / "images.gz").write_bytes(gzip.compress(content))


def read_images(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> tuple[str, ...]:
        images = open_dataset(folder / name)
        batch = images.__getitems__(range(min(len(images), 8)))
        masks = [None] * len(batch.image) if batch.mask is None else batch.mask
        return tuple(digest(x) + digest(m) for x, m in zip(batch.image, masks, strict=True))

    return read


def make_released(folder: Path) -> None:
    shutil.copy(FIXTURES / "golden" / f"{RELEASED}.pth", folder / "released.pth")


def read_released(folder: Path) -> str:
    net = json.loads((FIXTURES / "golden" / f"{RELEASED}.json").read_text())["net"]
    return digest(load_checkpoint(folder / "released.pth", net).state_dict())


FORMATS = [
    *[
        Format(f"model/{name}", make_model, read_model, checked=True, sums=True)
        for name in ("model.safetensors", "config.json", CHECKSUMS)
    ],
    Format("run/checkpoints/step-00000004/training.pt", make_run, read_run, True, sums=True),
    Format("config.yaml", make_config, lambda folder: load_config(folder / "config.yaml")),
    Format("metrics.jsonl", make_rows, read_rows),
    Format("evaluation/tetrominoes.json", make_evaluation, read_evaluation),
    Format("images.h5", make_hdf5, read_images("images.h5")),
    Format("images.tfrecords", make_records, read_images("images.tfrecords"), checked=True),
    Format("images.gz", make_records, read_images("images.gz"), checked=True),
    *[
        Format("released.pth", make_released, read_released, checked=True)
        for _ in range((FIXTURES / "golden" / f"{RELEASED}.pth").exists())
    ],
]


def all_files() -> list[Format]:
    """What `mutated_files` reads by default."""
    return FORMATS


def mutated_files(
    seed: int,
    first: int,
    cases: int,
    formats: Callable[[], list[Format]] = all_files,
    memory: int = MEMORY,
) -> Iterator[tuple[int, Counter[str], str]]:
    """Read cases `first` to `cases`; a new process goes on behind one that ended.

    Args:
        seed: of the damage.
        first: number of the first case.
        cases: number behind the last one.
        formats: gives those whose files are read, in turn; found by its name in the process.
        memory: bytes more than the process has at its start.

    Yields:
        The case's number, what happened, and what is wrong with it ("" for nothing).
    """
    while first < cases:
        ours, theirs = multiprocessing.Pipe()
        arguments = (theirs, seed, first, cases, formats, memory)
        child = processes.Process(target=read_many, args=arguments)
        child.start()
        theirs.close()
        try:
            while first < cases and ours.poll(STUCK + (not child.is_alive())):
                yield first, *ours.recv()
                first += 1
            if first < cases:
                text = f"stuck for {STUCK:.0f} s: {named(seed, first, formats)}"
                yield first, Counter(stuck=1), text
                first += 1
        except EOFError:
            child.join()
            text = f"exit {child.exitcode}: {named(seed, first, formats)}"
            yield first, Counter(crashed=1), text
            first += 1
        finally:
            child.kill()
            child.join()


def case_of(seed: int, index: int, formats: list[Format]) -> tuple[random.Random, Format]:
    rng = random.Random(f"files {seed} {index}")
    return rng, formats[index % len(formats)]


def named(seed: int, index: int, formats: Callable[[], list[Format]]) -> str:
    return case_of(seed, index, formats())[1].path


def read_many(
    connection: Connection,
    seed: int,
    first: int,
    cases: int,
    make_formats: Callable[[], list[Format]],
    memory: int,
) -> None:
    """In the child: read mutated files, and send what happened to each."""
    torch.set_num_threads(1)
    notes: list[str] = []
    sys.addaudithook(lambda event, _: notes.append(event) if event in STARTS else None)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    formats = make_formats()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.chdir(place)
        wholes = {form.path: whole(form, place / str(n)) for n, form in enumerate(formats)}
        for index in range(first, cases):
            rng, form = case_of(seed, index, formats)
            notes.clear()
            connection.send(read_one(rng, form, *wholes[form.path], place / "case", notes))


def whole(form: Format, folder: Path) -> tuple[Path, object]:
    """A folder with a whole file, and what is read from it."""
    folder.mkdir()
    form.make(folder)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    numbers = form.read(copy)
    shutil.rmtree(copy)
    return folder, numbers


def read_one(
    rng: random.Random, form: Format, source: Path, right: object, folder: Path, notes: list[str]
) -> tuple[Counter[str], str]:
    """One mutated file: what happened, and what is wrong."""
    shutil.copytree(source, folder)
    path = folder / form.path
    change, content = mutate(rng, path.read_bytes(), form.path)
    path.write_bytes(content)
    has_sums = form.sums and (rng.random() < 0.5 or path.name == CHECKSUMS)
    if form.sums and not has_sums:
        path.with_name(CHECKSUMS).unlink()
    checked = form.checked and (has_sums or not form.sums or path.suffix == ".pt")
    checked = checked and (has_sums or change not in RECALCULATED)
    try:
        outcome = _read(form, folder, right)
        if outcome == "other numbers" and checked:
            raise Fault("other numbers were read")
        if outcome == "refused" and path.exists() and path.read_bytes() != content:
            raise Fault("a refused file was changed")
        if notes or Path(CANARY).exists():
            raise Fault(f"code was run or a process started: {notes}")
    except Exception as error:  # whatever is no line for the user
        outcome, wrong = "wrong", f"{form.path}, {change}: {type(error).__name__}: {error}"
    else:
        wrong = ""
    finally:
        shutil.rmtree(folder)
    return Counter({f"{path.name}: {outcome}": 1}), wrong[:600]


def _read(form: Format, folder: Path, right: object) -> str:
    """Read a file as a command does, which tells its user of an error in one line."""
    try:
        found = form.read(folder)
    except Fault:
        raise
    except Exception as error:
        if form.frugal and (isinstance(error, MemoryError) or "allocate" in str(error)):
            raise Fault(f"memory was asked for: {error}") from error
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            code = _explain("", error)  # raises what is no line for the user
        if code != USAGE or len(stderr.getvalue().splitlines()) != 1:
            raise Fault(f"code {code}: {stderr.getvalue()}") from error
        return "refused"
    if found == right:
        return "right numbers"
    if isinstance(found, tuple) and isinstance(right, tuple) and {*found} < {*right}:
        return "fewer images"
    return "other numbers"
