from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_fakes import FakeConfig, FakeImages, FakeModel

from emorl.data import open_dataset
from emorl.evaluation import evaluate
from emorl.models import MODELS, Decomposition
from emorl.models.geco import GECO
from emorl.runs import checkpoint
from emorl.runs.log import drop_rows_after
from emorl.training import observer
from emorl.training.config import DataConfig, GECOConfig, RunConfig, TrainerConfig
from emorl.training.config_file import find_config, load_config
from emorl.training.images import held_out_images
from emorl.training.run import check_folder
from emorl.training.trainer import NonFiniteError, Trainer

QUIET = {"picture_every": 0, "device": "cpu", "warmup_steps": 2, "checkpoint_every": 4}


def settings(**changes) -> TrainerConfig:
    return TrainerConfig(**{"steps": 8, "batch_size": 6, "log_every": 2, **QUIET, **changes})


def trainer(run_dir: Path, config: TrainerConfig, network: FakeConfig | None = None, **options):
    torch.manual_seed(config.seed)
    return Trainer(FakeModel(network), FakeImages(), config, run_dir, **options)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(checkpoint.latest(run_dir) / "model.safetensors")


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_lowers_the_loss(tmp_path):
    config = settings(steps=60, learning_rate=0.05, decay_steps=None, log_every=1)
    result = trainer(tmp_path, config, FakeConfig(noise=0.0)).run()
    assert (result.step, result.interrupted) == (60, False)
    loss = [row["loss"] for row in rows(tmp_path)]
    assert sum(loss[-8:]) < 0.5 * sum(loss[:8])


@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_network_has_the_losses_of_the_plain_one(tmp_path, monkeypatch, name):
    compiled = functools.partial(torch.compile, backend="aot_eager")  # quicker than inductor
    monkeypatch.setattr(torch, "compile", compiled)
    run = load_config(find_config("smoke", name), name)
    losses = {}
    for on in (False, True):
        torch.manual_seed(0)
        model = MODELS[name](run.network)
        config = settings(steps=2, batch_size=2, log_every=1, compile=on)
        Trainer(model, open_dataset("tetrominoes"), config, tmp_path / str(on)).run()
        losses[on] = [row["loss"] for row in rows(tmp_path / str(on))]
        assert {part._compiled_call_impl is not None for part in model.children()} == {on}
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_time_ends_a_run_as_its_last_step_would(tmp_path):
    result = trainer(tmp_path, settings(steps=10**6, log_every=10**6, max_minutes=0.5 / 60)).run()
    assert not result.interrupted
    assert 0 < result.step < 10**6
    assert rows(tmp_path)[-1]["step"] == result.step
    assert checkpoint.latest(tmp_path) == result.checkpoint


def test_rows_say_what_happened(tmp_path):
    config = settings(curriculum={"refinement_steps": [(0, 2), (5, 0)], "kl_weight": [(0, 0.5)]})
    trainer(tmp_path, config).run()
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == [2, 4, 6, 8]
    assert [row["learning_rate"] for row in logged[:2]] == [
        pytest.approx(2e-4),
        pytest.approx(4e-4, rel=1e-4),
    ]
    assert [row["refinement_steps"] for row in logged] == [2, 2, 0, 0]
    assert "kl_refinement_2" in logged[0]
    assert "kl_refinement_1" not in logged[-1]
    first = logged[0]
    assert first["nll"] == pytest.approx(first["nll_2"])
    terms = [first[name] for name in first if name.startswith(("nll_", "kl_"))]
    expected = sum(first[f"nll_{i}"] for i in range(3)) + 0.5 * 3 * first["kl"]
    assert first["loss"] == pytest.approx(expected, rel=1e-5)
    assert len(terms) == 7  # nll_0 to nll_2, kl_layer_1, kl_refinement_1 and _2, kl_weight
    assert first["images_per_second"] > 0


def test_one_step_is_adam_on_the_clipped_gradient(tmp_path):
    config = settings(steps=1, warmup_steps=0, decay_steps=None, clip_norm=0.5, learning_rate=0.01)
    network = FakeConfig(noise=0.0)
    trainer(tmp_path, config, network).run()
    torch.manual_seed(config.seed)
    model = FakeModel(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    from emorl.data import BatchSampler

    batch = FakeImages().__getitems__(BatchSampler(48, 6, seed=0).batch(0))
    model.objective(batch.image).loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-6, atol=1e-7)
    assert rows(tmp_path)[-1]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_accumulation_changes_only_memory(tmp_path):
    network = FakeConfig(noise=0.0)
    trainer(tmp_path / "whole", settings(), network).run()
    trainer(tmp_path / "parts", settings(accumulation=3), network).run()
    parts = weights(tmp_path / "parts")
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5)


def test_bf16_trains(tmp_path):
    trainer(tmp_path, settings(steps=2, precision="bf16")).run()
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values())
    trainer(tmp_path / "again", settings(steps=2)).run()


def test_watching_does_not_change_training(tmp_path):
    trainer(tmp_path / "alone", settings()).run()
    watched = settings(picture_every=5, eval_every=2, eval_images=9, log_every=1)
    trainer(tmp_path / "watched", watched, held_out=FakeImages(10)).run()
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "watched"))
    assert [r["step"] for r in rows(tmp_path / "watched") if "fg_ari" in r] == [2, 4, 6, 8]
    drawn = sorted(p.name for p in (tmp_path / "watched/pictures").iterdir())
    assert drawn == ["step-00000005", "step-00000008"]


def test_measured_and_drawn_images_do_not_depend_on_the_batch(tmp_path, monkeypatch):
    """What is logged is what `evaluate` finds, and an image's picture is its own."""
    drawn = []

    def kept(folder: Path, images: torch.Tensor, decomposition: Decomposition, masks: object):
        drawn.append(decomposition.components)
        return []

    monkeypatch.setattr(observer, "write_pictures", kept)
    config = settings(steps=2, eval_every=2, eval_images=9, picture_every=2)
    for images in (10, 3):
        trained = trainer(tmp_path / str(images), config, held_out=FakeImages(images))
        trained.run()
        logged = rows(tmp_path / str(images))[-1]["fg_ari"]
        for size in (1, 7):
            found = evaluate(trained.model, FakeImages(images), images=9, batch_size=size)
            # float32 rounds masks; no pixel of these images lies between two slots
            assert logged == pytest.approx(found["metrics"]["fg_ari"]["mean"], rel=1e-6)
    torch.testing.assert_close(drawn[0][:3], drawn[1], rtol=0, atol=1e-6)


def test_workers_change_nothing(tmp_path):
    trainer(tmp_path / "none", settings(steps=4)).run()
    trainer(tmp_path / "two", settings(steps=4), workers=2).run()
    assert same(weights(tmp_path / "none"), weights(tmp_path / "two"))


def test_geco_follows_the_last_step_and_is_saved(tmp_path):
    geco = GECOConfig(target_per_dim=0.5, warm_start=2, step_size=1e-3, decay=0.9)
    trainer(tmp_path, settings(geco=geco, log_every=1)).run()
    expected = GECO(**dataclasses.asdict(geco))
    for row in rows(tmp_path):
        expected.update(row["nll"], 3 * 8 * 8, row["step"] - 1)
        assert row["geco_raw_multiplier"] == expected.raw_multiplier
    state = checkpoint.load_state(checkpoint.latest(tmp_path))
    assert state["geco"] == expected.state_dict()


def test_an_unreachable_target_is_announced(tmp_path, capsys):
    trainer(tmp_path, settings(steps=1, geco=GECOConfig(-5.0))).run()
    assert "warning: GECO's target of -5.0000" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes", [{}, {"geco": GECOConfig(target_per_dim=0.1, warm_start=3)}, {"optimizer": "muon"}]
)
def test_a_resumed_run_has_the_same_bits(tmp_path, changes):
    config = settings(steps=13, curriculum={"refinement_steps": [(0, 2), (5, 1)]}, **changes)
    trainer(tmp_path / "whole", config).run()
    trainer(tmp_path / "parts", dataclasses.replace(config, steps=4)).run()
    # What a killed run leaves: rows beyond its last checkpoint, and half a row.
    with (tmp_path / "parts/metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1.0}\n{"step": 8, "lo')
    second = trainer(tmp_path / "parts", dataclasses.replace(config, steps=8), resume=True)
    assert second.step == 4
    second.run()
    trainer(tmp_path / "parts", config, resume=True).run()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    clockless = [
        [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows(tmp_path / run)]
        for run in ("whole", "parts")
    ]
    assert clockless[0] == clockless[1]


def test_resuming_twice_shows_each_step_once_in_tensorboard(tmp_path):
    trainer(tmp_path, settings(steps=4)).run()
    trainer(tmp_path, settings(steps=8), resume=True).run()
    steps = []
    # One by one: by name, the tenth file of a process precedes its ninth.
    for file in (tmp_path / "tensorboard").iterdir():
        events = EventAccumulator(str(file))
        events.Reload()
        steps += [event.step for event in events.Scalars("loss")]
    assert sorted(steps) == [2, 4, 6, 8]


def test_pictures_are_in_tensorboard(tmp_path):
    trainer(tmp_path, settings(steps=2, picture_every=2)).run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "decomposition" in events.Tags()["images"]


def test_resuming_without_a_checkpoint_begins(tmp_path):
    assert trainer(tmp_path, settings(), resume=True).step == 0


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    trainer(tmp_path, settings()).run()
    before = weights(tmp_path)
    assert trainer(tmp_path, settings(), resume=True).run().step == 8
    assert same(before, weights(tmp_path))


def test_another_network_cannot_be_resumed(tmp_path):
    trainer(tmp_path, settings(steps=4)).run()
    with pytest.raises(ValueError, match="its network differs from the one to train: num_slots"):
        trainer(tmp_path, settings(), FakeConfig(num_slots=5), resume=True)


def test_another_optimizer_cannot_go_on(tmp_path):
    trainer(tmp_path, settings(steps=4)).run()
    with pytest.raises(ValueError, match=r"trained with trainer\.optimizer adam, cannot go on"):
        trainer(tmp_path, settings(optimizer="muon"), resume=True)


@pytest.mark.parametrize("before", ["tf32", None])
def test_another_precision_is_announced(before, tmp_path, capsys, monkeypatch):
    """As where a run that took TF32 by itself goes on without a GPU."""
    monkeypatch.setattr("emorl.training.trainer.precision_of", lambda config: before)
    trainer(tmp_path, settings(steps=4)).run()
    monkeypatch.undo()
    trainer(tmp_path, settings(), resume=True).run()
    line = "trainer.precision: trained with tf32 so far, goes on with no"
    assert (line in capsys.readouterr().err) == (before is not None)


def test_every_optimizer_follows_the_schedule(tmp_path):
    run = trainer(tmp_path, settings(optimizer="muon"))
    run.run()
    rates = [group["lr"] for optimizer in run.optimizers for group in optimizer.param_groups]
    assert rates == [rows(tmp_path)[-1]["learning_rate"]] * 2


@pytest.mark.parametrize("bad", ["nll_1", "kl_layer_1"])
def test_a_term_that_is_not_finite_stops_before_the_weights(tmp_path, monkeypatch, bad):
    plain = FakeModel.objective
    seen = []

    def broken(self, images, **options):
        result = plain(self, images, **options)
        if options["step"] == 5:
            seen.append({k: v.clone() for k, v in self.state_dict().items()})
            result.terms[bad] = torch.full((len(images),), math.inf)
            result.loss = result.loss * math.inf
        return result

    monkeypatch.setattr(FakeModel, "objective", broken)
    run = trainer(tmp_path, settings())
    with pytest.raises(NonFiniteError, match=f"step 6: {bad} is inf.*step-00000004"):
        run.run()
    assert same(seen[0], dict(run.model.state_dict()))


def test_an_infinite_gradient_stops_before_the_weights(tmp_path):
    run = trainer(tmp_path, settings())
    run.model.colours.register_hook(lambda gradient: gradient * math.nan)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"step 1: gradient_norm is nan.*none yet"):
        run.run()
    assert same(before, dict(run.model.state_dict()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7, "accumulation": 2}, "trainer.batch_size: expected a multiple of 2"),
        ({"eval_every": 2}, "trainer.eval_every: there are no held-out images"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, settings(**changes))


def run_config(**changes) -> RunConfig:
    return RunConfig(load_config(None).network, trainer=settings(**changes))


def test_a_used_folder_is_refused_unless_resumed(tmp_path):
    from emorl.training.config_file import save_config

    config = run_config()
    assert check_folder(tmp_path / "new", config, resume=False) == []
    (tmp_path / ".unfinished-config.yaml.7.0a1b2c3d").touch()
    assert check_folder(tmp_path, config, resume=False) == [], "what a killed start leaves"
    (tmp_path / "thesis.tex").touch()
    for resume in (False, True):
        with pytest.raises(ValueError, match="is not empty and not a run's folder"):
            check_folder(tmp_path, config, resume=resume)
    save_config(config, tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="holds a run without a checkpoint; begin it again with"):
        check_folder(tmp_path, config, resume=False)
    assert check_folder(tmp_path, config, resume=True) == []
    notes = check_folder(tmp_path, run_config(steps=20), resume=True)
    assert notes == ["changed since the run began: trainer.steps from 8 to 20"]
    with pytest.raises(ValueError, match="expected a run's folder, got a file"):
        check_folder(tmp_path / "thesis.tex", config, resume=True)


def test_held_out_images_are_not_those_of_training(tmp_path):
    assert held_out_images(DataConfig()) is not None
    assert held_out_images(DataConfig(train="tetrominoes-real10")) is None
    named = held_out_images(DataConfig(held_out="tetrominoes-real10"))
    assert named.name == "tetrominoes-real10"
    with pytest.raises(ValueError, match=r"nothing\.h5"):
        held_out_images(DataConfig(held_out="nothing.h5"))


def test_rows_beyond_a_step_are_dropped(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    drop_rows_after(metrics, 3)
    assert not metrics.exists()
    metrics.write_text('{"step": 1}\n{"step": 3}\n{"step": 4}\n{"st')
    drop_rows_after(metrics, 3)
    assert metrics.read_text() == '{"step": 1}\n{"step": 3}\n'
