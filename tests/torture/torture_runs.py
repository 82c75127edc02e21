"""Trainings that are killed, signalled, short of disk or two at once, and end with the same bits.

Each function is one case: it returns counts of what happened, or raises a `Fault`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torture_children import Child, Fault, Started

from emorl.models import load_model
from emorl.runs import RunFolder, checkpoint
from emorl.runs.folder import by_step
from emorl.runs.lock import is_unused

STEPS = 6
SETTINGS = {
    "steps": STEPS,
    "checkpoint_every": 2,
    "log_every": 1,
    "picture_every": 4,
    "eval_every": 3,
    "eval_images": 4,
    "device": "cpu",
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130
Bits = tuple[str, str]


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to.

    Attributes:
        bits: Of its weights and rows.
        seconds: It took.
        events: Of files, in its folder.
        size: Bytes of its folder.
    """

    bits: Bits
    seconds: float
    events: int
    size: int


def training(place: Path, workers: int = 0, **disturbance: Any) -> Child:
    options = [x for key, value in SETTINGS.items() for x in (f"--trainer.{key}", str(value))]
    options += ["--data.workers", str(workers), "--out", str(place / "run"), "--resume", "auto"]
    return Child(place, ["train", "--config", "smoke", *options], **disturbance)


@cache
def undisturbed(world: int = 1) -> Undisturbed:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        Child(place, ["--version"]).start().end()  # the server is warm from now on
        begin = time.monotonic()
        ranks = start_ranks(place, world)
        require([rank.end() for rank in ranks] == [0] * world, ranks[0].last_line)
        seconds = time.monotonic() - begin
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        return Undisturbed(bits_of(place / "run"), seconds, ranks[0].events, size)


def bits_of(run: Path) -> Bits:
    """Digests of the last weights, and of all rows but for their speeds.

    Raises:
        Fault: if anything unfinished is left in the folder.
    """
    if left := [path.name for path in run.rglob(".*")]:
        raise Fault(f"left in the run's folder: {left}")
    newest = checkpoint.latest(run)
    require(newest is not None and newest == RunFolder(run).checkpoint(STEPS), f"{newest} is last")
    weights = hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]
    return weights, hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def require(condition: bool, text: str) -> None:
    if not condition:
        raise Fault(text)


def finish(place: Path, world: int = 1) -> None:
    """Resume a run: it ends, with the bits of an undisturbed one."""
    ranks = start_ranks(place, world)
    codes = [rank.end() for rank in ranks]
    require(codes == [0] * world, f"resuming ended with {codes}: {ranks[0].last_line}")
    require(not [*place.rglob("*.damaged")], "a checkpoint was set aside as damaged")
    require(bits_of(place / "run") == undisturbed(world).bits, "other bits than undisturbed")


def start_ranks(place: Path, world: int) -> list[Started]:
    """A training in one process, or in several as torchrun starts them."""
    if world == 1:
        return [training(place).start()]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        child = training(place, environment=common | own)
        output = place / f"rank-{rank}"
        output.mkdir(exist_ok=True)
        started.append(Child(output, child.arguments, environment=child.environment).start())
    return started


def disturb(rng: random.Random, place: Path, number: int) -> int:
    """Train, and send a signal at a random file event or time; the exit code."""
    whole, workers = undisturbed(), rng.choice([0, 0, 0, 1])
    how = rng.random()
    if how < 0.7:  # half of these while a checkpoint is written or removed
        part, events = ("checkpoints", whole.events // 2) if how < 0.35 else ("", whole.events)
        at = {"event": rng.randint(1, events), "part": part, "number": number}
        return training(place, workers, **at).start().end()
    started = training(place, workers).start()
    started.signal(number, rng.uniform(0, whole.seconds), group=rng.random() < 0.5)
    return started.end()


def require_whole(run: Path) -> None:
    """What has a checkpoint's name is a whole one, however the run ended.

    Resuming alone would not tell: by their checksums it passes over torn ones.
    """
    for place in by_step(RunFolder(run).checkpoints):
        try:
            load_model(place)
            checkpoint.load_state(place)
        except ValueError as error:
            raise Fault(f"half a checkpoint: {error}") from None


def kills(rng: random.Random, place: Path) -> Counter[str]:
    """SIGKILL, up to three times; resumed until the run ends."""
    counts: Counter[str] = Counter()
    for _ in range(rng.choice([1, 1, 2, 3])):
        code = disturb(rng, place, signal.SIGKILL)
        require(code in (0, -signal.SIGKILL), f"exit code {code}")
        counts["SIGKILL" if code else "too late"] += 1
        require_whole(place / "run")
    finish(place)
    return counts


def signals(rng: random.Random, place: Path) -> Counter[str]:
    """SIGINT, SIGTERM or SIGHUP; code 130, what was done is saved, and the run goes on."""
    number = rng.choice(SIGNALS)
    code = disturb(rng, place, number)
    counts = Counter({number.name if code else "too late": 1})
    if code == -number:  # the default, outside of the loop over steps
        rows = (place / "run/metrics.jsonl").read_bytes().count(b"\n") if _has_rows(place) else 0
        require(rows in (0, STEPS), f"ended by {number.name} after step {rows}")
        counts["before or after the steps"] += 1
    else:
        require(code in (0, INTERRUPTED), f"exit code {code}")
    finish(place)
    return counts


def _has_rows(place: Path) -> bool:
    return (place / "run/metrics.jsonl").exists()


def pairs(rng: random.Random, place: Path) -> Counter[str]:
    """Two trainings, or one and an evaluation, in one folder."""
    whole, counts = undisturbed(), Counter[str]()
    first = training(place).start()
    first.process.join(rng.uniform(0, 1.2 * whole.seconds) if rng.random() < 0.7 else 0)
    if rng.random() < 0.3:
        line = ["evaluate", str(place / "run"), "--images", "4", "--device", "cpu"]
        second, kind = Child(place / "second", line).start(), "evaluation"
        reasons = ("has no complete checkpoint yet", "no such folder", "expected a run folder")
    else:
        command = training(place).arguments
        second, kind = Child(place / "second", command).start(), "second training"
        reasons = ("is training in this folder",)
    codes = [second.end(), first.end()]
    refused = [started for started, code in zip((second, first), codes, strict=True) if code]
    require(len(refused) <= 1 and {*codes} <= {0, 2}, f"exit codes {codes}: {second.last_line}")
    for started in refused:
        require(any(x in started.last_line for x in reasons), started.last_line)
    counts[f"{kind} {'refused' if refused else 'served'}"] += 1
    finish(place)
    return counts


def full_disks(rng: random.Random, place: Path) -> Counter[str]:
    """A command on a disk that has too little room, and again when it has more."""
    with disk_of(place, rng.randint(4, undisturbed().size // 1024)) as disk:
        if rng.random() < 0.3:
            return _full_while_reading(rng, disk)
        line = training(disk.folder).arguments
        code = _ended(Child(place / "output", line, room=disk.room).start())  # its line has room
        require_whole(disk.folder / "run")
        disk.enlarge()
        finish(disk.folder)
    return Counter({f"{disk.kind}, {'full' if code else 'enough'}": 1})


def _full_while_reading(rng: random.Random, disk: Disk) -> Counter[str]:
    """A report or an evaluation of a run, to which a full disk must do nothing."""
    room, run = disk.room, disk.folder / "run"
    disk.enlarge()
    finish(disk.folder)
    limit = room or rng.randint(1, 40_000)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = rng.choice([["report", str(run)], ["evaluate", str(run), "--images", "4"]])
    code = _ended(Child(disk.folder, line, room=limit).start())
    changed = {path for path, content in before.items() if path.read_bytes() != content}
    require(changed <= ({run / "report.html"} if code == 0 else set()), f"changed: {changed}")
    require(is_unused(RunFolder(run / "none")) and not [*run.rglob(".*")], "something is left")
    return Counter({f"limit, {line[0]}, {'full' if code else 'enough'}": 1})


def _ended(started: Started) -> int:
    code = started.end()
    require(code in (0, 2), f"exit code {code}: {started.last_line}")
    require(code == 0 or started.last_line.startswith("emorl "), started.last_line)
    return code


@dataclass
class Disk:
    """A folder with little room.

    Attributes:
        folder: Where the run goes.
        kind: "tmpfs", or "limit": of the size of each file, where nothing can be mounted.
        room: That limit in bytes, else 0.
    """

    folder: Path
    kind: str
    room: int

    def enlarge(self) -> None:
        if self.kind == "tmpfs":
            remount = ["mount", "-o", "remount,size=256m", str(self.folder)]
            subprocess.run(remount, check=True)
        self.room = 0


@contextlib.contextmanager
def disk_of(place: Path, kibibytes: int) -> Iterator[Disk]:
    folder = place / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    can_mount = os.geteuid() == 0 and shutil.which("mount") is not None
    if not can_mount or subprocess.run(mount, capture_output=True).returncode:
        yield Disk(folder, "limit", kibibytes * 1024)
        return
    try:
        yield Disk(folder, "tmpfs", 0)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def two_processes(rng: random.Random, place: Path) -> Counter[str]:
    """One of two processes is killed, then the other, as torchrun does; both are resumed."""
    ranks = start_ranks(place, 2)
    rng.shuffle(ranks)
    moment = rng.uniform(0, undisturbed(2).seconds)
    for rank in ranks:
        rank.signal(signal.SIGKILL, moment, group=True)
        moment = rng.uniform(0, 0.3)
    codes = []
    for rank in ranks:
        rank.process.join()
        codes.append(rank.process.exitcode)
    finish(place, 2)
    return Counter({"SIGKILL" if -signal.SIGKILL in codes else "too late": 1})
