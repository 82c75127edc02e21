"""How many steps a run's minutes allow: planned once, and kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from process_testing import run_ranks
from training_fakes import FakeImages, FakeModel

from emorl.runs import checkpoint
from emorl.training.config import RunConfig, TrainerConfig
from emorl.training.config_file import find_config, load_config
from emorl.training.plan import is_open, keep_plan, plan_steps, shorten
from emorl.training.run import prepare
from emorl.training.trainer import Trainer

PLANNED = {"steps": 1000, "cooldown_steps": 700, "least_steps": 200, "max_minutes": 10.0}
# 0.9 of the 20 minutes are 1080 seconds, into which nine steps of 115 fit.
SMOKE = ["steps=12", "cooldown_steps=8", "least_steps=4", "max_minutes=20", "checkpoint_every=2"]
SECONDS = 115.0


def smoke() -> RunConfig:
    options = [f"--trainer.{setting}" for setting in (*SMOKE, "picture_every=0", "eval_every=0")]
    return load_config(find_config("smoke"), None, options)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(checkpoint.latest(run_dir) / "model.safetensors")


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The trials made; each trains a real model, and its clock says `SECONDS` a step."""
    made: list[float] = []
    real = Trainer.seconds_per_step

    def timed(trainer: Trainer, warm_up: int, timed: int) -> float:
        made.append(real(trainer, 1, 2))
        return SECONDS

    monkeypatch.setattr(Trainer, "seconds_per_step", timed)
    return made


@pytest.mark.parametrize(
    ("seconds", "steps", "cooldown"),
    [
        (0.01, 1000, 700),  # 54,000 would fit
        (0.5, 1000, 700),  # 1080 would fit
        (1.0, 540, 378),
        (2.6, 207, 144),
        (60.0, 200, 140),  # 9 would fit
    ],
)
def test_steps_follow_from_the_minutes_and_the_cool_down_keeps_its_share(seconds, steps, cooldown):
    planned = shorten(TrainerConfig(**PLANNED), seconds)
    assert (planned.steps, planned.cooldown_steps) == (steps, cooldown)
    assert planned.least_steps is None
    assert planned.max_minutes == 10.0


@pytest.mark.parametrize(("least", "needed"), [(None, False), (999, True), (1000, False)])
def test_a_plan_is_needed_where_steps_are_open(least, needed):
    assert is_open(TrainerConfig(**{**PLANNED, "least_steps": least})) == needed


@pytest.mark.parametrize(
    ("before", "kept"),
    [((450, 315), True), ((200, 140), True), ((2, 1), False), ((2000, 1400), False)],
    ids=["planned", "least", "a short run", "a long run"],
)
def test_a_plan_made_earlier_is_kept_within_the_bounds(before, kept):
    config = RunConfig(None, trainer=TrainerConfig(**PLANNED))
    earlier = TrainerConfig(steps=before[0], cooldown_steps=before[1])
    trainer = keep_plan(config, earlier).trainer
    assert is_open(trainer) != kept
    assert (trainer.steps, trainer.cooldown_steps) == (before if kept else (1000, 700))


def test_least_steps_need_minutes():
    with pytest.raises(ValueError, match=r"trainer\.least_steps: expected trainer\.max_minutes"):
        TrainerConfig(least_steps=5)


def test_the_trial_times_the_steps_after_its_warm_up(tmp_path):
    now = 0.0

    class SlowStart(FakeModel):
        """Takes 100 seconds for each of its first three steps, then half a second."""

        steps = 0

        def objective(self, *arguments, **options):
            nonlocal now
            now += 100.0 if self.steps < 3 else 0.5
            self.steps += 1
            return super().objective(*arguments, **options)

    trial = Trainer(SlowStart(), FakeImages(), TrainerConfig(batch_size=6), tmp_path)
    assert trial.seconds_per_step(3, 4, clock=lambda: now) == 0.5
    assert trial.model.steps == 7
    assert not list(tmp_path.iterdir())


def test_a_killed_run_keeps_its_plan_and_the_trial_leaves_no_trace(tmp_path, monkeypatch, trials):
    whole, killed, again = (tmp_path / name for name in ("whole", "killed", "again"))
    assert prepare(smoke(), whole).run().steps == 9
    written = load_config(whole / "config.yaml").trainer
    assert (written.steps, written.cooldown_steps, written.least_steps) == (9, 6, None)

    real = Trainer._train_step

    def mortal(trainer: Trainer, *arguments):
        if trainer.step == 5:
            raise MemoryError
        return real(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", mortal)
        with pytest.raises(MemoryError):
            prepare(smoke(), killed).run()
    monkeypatch.setattr(f"{__name__}.SECONDS", 200.0)  # a plan of today would be another
    assert len(trials) == 2
    assert prepare(smoke(), killed, resume=True).run().steps == 9
    prepare(load_config(whole / "config.yaml"), again).run()
    assert len(trials) == 2
    for run in (killed, again):
        assert (run / "config.yaml").read_text() == (whole / "config.yaml").read_text()
        assert all(torch.equal(w, weights(run)[name]) for name, w in weights(whole).items())


def test_processes_agree_on_a_plan(tmp_path):
    run_ranks(2, plan_in_a_process, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["9", "9"]


def plan_in_a_process(folder: Path) -> None:
    """Process 0 takes 40 seconds a step, process 1 takes 190."""
    from emorl.training.devices import make_accelerator
    from emorl.training.images import training_images

    rank = os.environ["RANK"]
    Trainer.seconds_per_step = lambda trainer, warm_up, timed: 40.0 + 150 * int(rank)
    config = smoke()
    images = training_images(config.data)
    planned = plan_steps(config, images, folder, make_accelerator(config.trainer))
    (folder / rank).write_text(str(planned.trainer.steps))
