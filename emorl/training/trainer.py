"""Training of any `ObjectCentricModel`, on one device or several, that can be killed and resumed.

Everything random is a pure function of (seed, step): the images of a step, the noise of the model.
Processes, and the parts of an accumulated batch, take their shares of both. A checkpoint therefore
holds no generator's state, and a resumed run repeats an undisturbed one bit for bit (on a GPU with
`deterministic`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from emorl.data import BatchSampler, ObjectDataset
from emorl.memory import require_memory
from emorl.models import ObjectCentricModel, Objective
from emorl.models.geco import GECO
from emorl.models.pretrained import first_non_finite
from emorl.nn import BatchShare
from emorl.nn.posterior import seed_for
from emorl.runs import RunFolder, checkpoint
from emorl.runs.files import clean, set_aside
from emorl.runs.folder import by_step
from emorl.runs.integrity import DamagedError
from emorl.runs.lock import RunLock
from emorl.runs.log import Row
from emorl.training.config import Curriculum, TrainerConfig
from emorl.training.curriculum import require_possible
from emorl.training.devices import lock_run, make_accelerator, precision_of, require_one_step
from emorl.training.graph import GraphedStep, captures
from emorl.training.interrupt import StopRequest
from emorl.training.loader import step_images
from emorl.training.observer import Observer
from emorl.training.optimizers import make_optimizers
from emorl.training.saved import Saved, read, restore

_STOP = "stop"
_INDEX = 36  # bytes that the number of an image takes in a list


class NonFiniteError(ArithmeticError):
    """The loss or its gradient is infinite or not a number; the weights are those before it."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        step: optimiser steps done.
        steps: of the whole run.
        checkpoint: the last checkpoint's folder.
        interrupted: whether Ctrl-C, SIGTERM or SIGHUP asked it to stop, if only in the last step:
            who does so waits for no report.
    """

    step: int
    steps: int
    checkpoint: Path
    interrupted: bool


class Trainer:
    """Trains a model on a data set.

    Args:
        model: the model, on any device.
        dataset: its images.
        config: how to train.
        run_dir: folder of this run; it is made if needed.
        held_out: images for the pictures and for `eval_every`; without them pictures show training
            images.
        workers: processes that prepare batches.
        resume: go on from the newest checkpoint in `run_dir`, if there is one.
        accelerator: from `make_accelerator`, which is called if there is none.
        notes: lines for the user before the first step.
        lock: of the run's folder, which `run` releases; it takes one itself if there is none.

    Raises:
        ValueError: if the batch cannot be shared out, `eval_every` has no images, or the
            checkpoint is another model's, or not the same in all processes.
    """

    def __init__(
        self,
        model: ObjectCentricModel,
        dataset: ObjectDataset,
        config: TrainerConfig,
        run_dir: str | Path,
        *,
        held_out: ObjectDataset | None = None,
        workers: int = 0,
        resume: bool = False,
        accelerator: Accelerator | None = None,
        notes: Sequence[str] = (),
        lock: RunLock | None = None,
    ) -> None:
        self.notes, self.lock = notes, lock
        self.accelerator = accelerator or make_accelerator(config)
        self.model = model.to(self.accelerator.device)
        if config.compile:
            for part in self.model.children():
                part.compile()
        self.dataset, self.held_out, self.workers = dataset, held_out, workers
        self.config, self.run_folder = config, RunFolder(run_dir)
        self._check()
        self.geco = GECO(**dataclasses.asdict(config.geco)) if config.geco else None
        self.objective = self.accelerator.prepare(ObjectiveOf(model))
        self.optimizers = make_optimizers(
            model.parameters(), config.optimizer, config.learning_rate
        )
        self.noise = BatchShare(self.accelerator.device)
        self.noise.shares = self.accelerator.num_processes * config.accumulation
        self.graph = self._graphed_step() if captures(config, self.accelerator) else None
        self.step = 0
        self._trained_with: str | None = None  # precision, before this run went on
        self.last_checkpoint: Path | None = None
        self._left_out: dict[Path, Exception] = {}
        if resume:
            self._resume()
        elif found := by_step(self.run_folder.checkpoints):
            raise ValueError(f"{found[-1]}: of another run; resume=True goes on from it")
        require_one_step(self.accelerator, self.step, self.run_folder.path)
        if self.step > config.steps:
            raise ValueError(
                f"trainer.steps: expected at least {self.step}, which are done, got {config.steps}"
            )

    @property
    def is_done(self) -> bool:
        """Whether no step is left, since the checkpoint it goes on from is the last step's."""
        return self.step == self.config.steps and self.last_checkpoint is not None

    def run(self) -> TrainingResult:
        """Train to the last step, or until Ctrl-C, SIGTERM or SIGHUP, and save.

        A new run that an error ends before its first step is done leaves nothing behind.

        Raises:
            NonFiniteError: naming the step, the term and the last good checkpoint.
            ValueError: if another process is training in the folder.
        """
        lock = self.lock or lock_run(self.accelerator, self.run_folder)
        first = self.step
        try:
            return self._run()
        except BaseException:
            if self.step == first:
                lock.discard()
            raise
        finally:
            lock.release()

    def _run(self) -> TrainingResult:
        observer = self._observer() if self.accelerator.is_main_process else None
        try:
            if observer:
                observer.say([*self.notes, *self._warnings()])
            if self.is_done:
                assert self.last_checkpoint is not None
                return TrainingResult(self.step, self.config.steps, self.last_checkpoint, False)
            with StopRequest() as stop:
                with closing(self._batches()) as batches:
                    interrupted = self._loop(batches, stop, observer)
                saved = self._save()
                interrupted = interrupted or stop.requested
        finally:
            if observer:
                observer.close()
        return TrainingResult(self.step, self.config.steps, saved, interrupted)

    def seconds_per_step(
        self, warm_up: int, timed: int, clock: Callable[[], float] = time.perf_counter
    ) -> float:
        """The mean time of a training step, without log and checkpoints, after a warm-up."""
        self.model.train()
        with closing(self._batches()) as batches:
            for steps in (warm_up, timed):
                begin = clock()
                for _ in range(steps):
                    self._train_step(next(batches), False)
        return (clock() - begin) / timed

    def _loop(
        self, batches: Iterator[Tensor], stop: StopRequest, observer: Observer | None
    ) -> bool:
        """Train until the end, whether of steps or of time; whether that was an interruption."""
        self.model.train()
        deadline = time.monotonic() + 60 * (self.config.max_minutes or math.inf)
        stopped = late = False
        while self.step < self.config.steps and not stopped:
            begin = time.monotonic()
            late = begin > deadline
            row = self._train_step(next(batches), stop.requested or late)
            seconds = time.monotonic() - begin
            stopped = row.pop(_STOP) > 0  # in any process, so that all leave together
            if observer:
                observer.after_step(row, seconds, last=late or self.step == self.config.steps)
            if self.step % self.config.checkpoint_every == 0:
                self._save()
        return stopped and not late

    def _observer(self) -> Observer:
        clean(self.run_folder.path)
        for place in self._left_out:
            set_aside(place)
        return Observer(
            self.model, self.dataset, self.held_out, self.config, self.run_folder, self.step
        )

    def _train_step(self, images: Tensor, stop: bool) -> Row:
        """A step, which waits for the device once: for its scalars."""
        rate = learning_rate(self.config, self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        arguments = objective_arguments(self.config.curriculum, self.step)
        if self.graph:
            self._seed_noise(0)
            row = self.graph(images, self.geco, self.step, arguments) | {_STOP: float(stop)}
            self._require_finite(row)
        else:
            row = self._optimise(images, arguments, stop)
        if self.geco:
            self.geco.update(row["nll"], images[0].numel(), self.step)
            row |= {f"geco_{name}": value for name, value in self.geco.state_dict().items()}
        self.step += 1
        return {"step": self.step, **row, "learning_rate": rate, **arguments}

    def _optimise(self, images: Tensor, arguments: dict[str, Any], stop: bool) -> Row:
        scalars = []
        for part, chunk in enumerate(images.chunk(self.config.accumulation)):
            self._seed_noise(part)
            scalars.append(self._backward(chunk, self.geco, arguments))
        row = self._gather(scalars, self._gradient_norm(), stop)
        self._require_finite(row)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return row

    def _graphed_step(self) -> GraphedStep:
        return GraphedStep(self._backward, self._gradient_norm, self.optimizers[0], self.noise)

    def _seed_noise(self, part: int) -> None:
        self.noise.manual_seed(seed_for("noise", self.config.seed, self.step))
        self.noise.index = self.accelerator.process_index * self.config.accumulation + part

    def _backward(
        self, images: Tensor, geco: GECO | None, arguments: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Add the gradient of a part of the batch; the scalars of its objective."""
        with self.accelerator.accumulate(self.objective):
            loss, objective = self.objective(
                images, geco=geco, step=self.step, generator=self.noise, **arguments
            )
            self.accelerator.backward(loss)
        return {
            **{name: values.mean() for name, values in objective.terms.items()},
            "nll": objective.nll,
            "kl": objective.kl,
            "loss": loss.detach(),
            **objective.diagnostics,
        }

    def _gradient_norm(self) -> Tensor:
        """The norm before clipping, which happens here."""
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        norm: Tensor = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        return norm

    def _gather(self, parts: Sequence[dict[str, Tensor]], norm: Tensor, stop: bool) -> Row:
        """Means over parts and processes, by one transfer from the device."""
        device = self.accelerator.device
        sums = [
            torch.stack([p[name].to(device).float() for p in parts]).mean() for name in parts[0]
        ]
        flag = torch.full((), float(stop), device=device)  # torch.tensor would wait for a copy
        packed = torch.stack([*sums, norm.to(device).float(), flag])
        values = self.accelerator.reduce(packed, "mean").tolist()
        return dict(zip([*parts[0], "gradient_norm", _STOP], values, strict=True))

    def _require_finite(self, row: Row) -> None:
        for name, value in row.items():
            if not math.isfinite(value):
                last = self.last_checkpoint or "none yet"
                raise NonFiniteError(
                    f"step {self.step + 1}: {name} is {value}; stopped before the weights were "
                    f"changed; last good checkpoint: {last}"
                )

    def _batches(self) -> Generator[Tensor, None, None]:
        """The images of each step, uint8 [B, 3, H, W] on the device."""
        on_gpu = self.accelerator.device.type == "cuda"
        processes = self.accelerator.num_processes
        sampler = BatchSampler(
            len(self.dataset),
            self.config.batch_size // processes,
            seed=self.config.seed,
            start_step=self.step,
            rank=self.accelerator.process_index,
            world_size=processes,
        )
        pinned = self.workers > 0 and on_gpu
        loaded = step_images(self.dataset, sampler, self.workers, pin_memory=pinned)
        with closing(loaded):
            for images in loaded:
                if on_gpu and images.is_cpu and not images.is_pinned():
                    images = images.pin_memory()  # a copy from other memory would wait
                yield images.to(self.accelerator.device, non_blocking=True)

    def _save(self) -> Path:
        """The checkpoint of the current step, written by the main process."""
        state = {
            "step": self.step,
            "precision": precision_of(self.config),
            "optimizer": self.config.optimizer,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "geco": self.geco.state_dict() if self.geco else None,
        }
        if bad := first_non_finite(self.model.state_dict()):
            raise NonFiniteError(
                f"after step {self.step}: {bad} is not finite; not saved; "
                f"last good checkpoint: {self.last_checkpoint or 'none yet'}"
            )
        place = self.run_folder.checkpoint(self.step)
        if self.accelerator.is_main_process:
            checkpoint.save(place, self.model, state, keep=self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        self.last_checkpoint = place
        return place

    def _resume(self) -> None:
        """Go on from the newest checkpoint that is whole; without one, from the beginning.

        What cannot be read for another reason, a disk's error or another version, may be good.
        """
        for place in reversed(by_step(self.run_folder.checkpoints)):
            try:
                saved = read(type(self.model), place)
            except DamagedError as error:
                self._left_out[place] = error
            else:
                self._take(saved)
                return

    def _take(self, saved: Saved[ObjectCentricModel]) -> None:
        own, other = vars(self.model.config), vars(saved.model.config)
        if differing := [name for name in own if own[name] != other[name]]:
            raise ValueError(
                f"{saved.folder}: its network differs from the one to train: {', '.join(differing)}"
            )
        if saved.optimizer != self.config.optimizer:
            raise ValueError(
                f"{saved.folder}: trained with trainer.optimizer {saved.optimizer}, "
                f"cannot go on with {self.config.optimizer}"
            )
        self.model.load_state_dict(saved.model.state_dict())
        for optimizer, state in zip(self.optimizers, saved.optimizers, strict=True):
            restore(optimizer, state)
        if self.geco and saved.geco:
            self.geco.load_state_dict(saved.geco)
        self.step, self._trained_with = saved.step, saved.precision
        self.last_checkpoint = saved.folder

    def _check(self) -> None:
        height, width = self.dataset.image_size
        at_once = self.config.batch_size // self.accelerator.num_processes * (1 + 2 * self.workers)
        require_memory(
            at_once * (3 * height * width + _INDEX),
            f"trainer.batch_size: {self.config.batch_size} images of {height}x{width}",
        )
        require_possible(self.config.curriculum, self.model, self.config.batch_size)
        shares = self.accelerator.num_processes * self.config.accumulation
        if self.config.batch_size % shares:
            raise ValueError(
                f"trainer.batch_size: expected a multiple of {shares} (processes times "
                f"accumulation), got {self.config.batch_size}"
            )
        if self.config.eval_every and self.held_out is None:
            raise ValueError(
                "trainer.eval_every: there are no held-out images; data.held_out names some, and "
                "with 0 nothing is measured"
            )

    def _warnings(self) -> list[str]:
        """Lines for the user before the first step."""
        lines = [
            f"left out, and renamed to {p.name}.damaged: {e}" for p, e in self._left_out.items()
        ]
        if self.last_checkpoint:
            lines.append(f"going on from {self.last_checkpoint}")
        if self.config.precision == "tf32" and self.accelerator.device.type != "cuda":
            lines.append("trainer.precision: tf32 is for GPUs; this device computes in float32")
        if (self.config.precision, precision_of(self.config)) == ("auto", "tf32"):
            lines.append("trainer.precision: auto is tf32 on this GPU; no keeps all of float32")
        if self._trained_with not in (None, precision_of(self.config)):
            lines.append(
                f"trainer.precision: trained with {self._trained_with} so far, "
                f"goes on with {precision_of(self.config)}"
            )
        sigma = getattr(self.model.config, "sigma", None)
        warning = self.geco.unreachable(sigma) if self.geco and sigma else None
        return [*lines, f"warning: {warning}"] if warning else lines


def learning_rate(config: TrainerConfig, step: int) -> float:
    """Linear warm-up, exponential decay whose clock starts when the warm-up ends, linear cool-down.

    `base * t / warmup` up to t = warmup, then `base * decay_rate ** ((t - warmup) / decay_steps)`,
    as EfficientMORL was trained; its first step therefore has the rate 0. The cool-down multiplies
    by `(steps - t) / cooldown` over the last steps of the run; one that is longer than what the
    warm-up leaves is as long as that.

    Args:
        config: base, warm-up, decay and cool-down.
        step: optimiser steps done so far, t >= 0.
    """
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    decay = 1.0
    if config.decay_steps is not None:
        decay = float(config.decay_rate ** ((step - config.warmup_steps) / config.decay_steps))
    length = min(config.cooldown_steps, config.steps - config.warmup_steps)
    cooldown = min(1.0, (config.steps - step) / max(1, length))
    return config.learning_rate * decay * cooldown


def objective_arguments(curriculum: Curriculum, step: int) -> dict[str, Any]:
    """Keyword arguments of `model.objective` at a step: for each name, the last value begun.

    Example:
        >>> objective_arguments({"refinement_steps": [(0, 3), (100_000, 1)]}, 99_999)
        {'refinement_steps': 3}
    """
    return {
        name: [value for begin, value in stages if begin <= step][-1]
        for name, stages in curriculum.items()
    }


class ObjectiveOf(nn.Module):
    """Lets wrappers of `forward` (data parallelism, autocast) reach a model's objective."""

    def __init__(self, model: ObjectCentricModel) -> None:
        super().__init__()
        self.model = model
        # A curriculum changes which parameters are used, so data parallelism has to look for those
        # that are not. It warns where it finds none; this one it always finds.
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, **arguments: Any) -> tuple[Tensor, Objective]:
        """The loss by itself, where wrappers look for it, and all of the objective."""
        objective = self.model.objective(images, **arguments)
        return objective.loss, objective
