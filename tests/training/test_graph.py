"""A step from a CUDA graph against the eager one; without a GPU, from a tape (see tape.py)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import tape
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_fakes import FakeImages

from emorl.models import MODELS, EfficientMORL, EfficientMORLConfig
from emorl.models.geco import GECO, DeviceGECO
from emorl.training import graph
from emorl.training.config import GECOConfig, TrainerConfig
from emorl.training.config_file import config_names, find_config, load_config
from emorl.training.devices import make_accelerator
from emorl.training.trainer import NonFiniteError, Trainer

NETWORK = EfficientMORLConfig(
    image_size=(8, 8),
    num_slots=3,
    slot_dim=4,
    stochastic_layers=2,
    refinement_steps=2,
    encoder_channels=4,
    encoder_layers=1,
    decoder="small",
    decoder_channels=4,
    init_gain=0.5,
)
CONFIG = TrainerConfig(
    steps=20,
    batch_size=6,
    learning_rate=1e-2,
    warmup_steps=4,
    clip_norm=1.0,
    curriculum={"refinement_steps": [(0, 2), (12, 1)]},
    geco=GECOConfig(target_per_dim=-0.5, warm_start=6, decay=0.9, step_size=1e-3),
    log_every=1,
    checkpoint_every=20,
    picture_every=0,
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")


def run(folder: Path, captured: bool = False, **changes) -> list[dict]:
    """Train; the rows of the run's metrics."""
    trainer = make_trainer(folder, captured, **changes)
    trainer.run()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def make_trainer(folder: Path, captured: bool = False, resume: bool = False, **changes) -> Trainer:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, **changes)
    trainer = Trainer(EfficientMORL(NETWORK), FakeImages(), config, folder, resume=resume)
    if captured:  # what `cuda_graph` does, on any device
        trainer.graph = trainer._graphed_step()
    return trainer


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Tapes instead of graphs; one entry for each that was recorded."""
    recorded: list[object] = []

    def capture(*arguments):
        recorded.append(tape.capture(*arguments))
        return recorded[-1]

    monkeypatch.setattr(graph, "capture", capture)
    monkeypatch.setattr(graph, "run_aside", lambda body: body())
    return recorded


def assert_same_rows(rows: list[dict], expected: list[dict], rel: float = 1e-5) -> None:
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, eager in zip(rows, expected, strict=True):
        clockless = {k: v for k, v in row.items() if k != "images_per_second"}
        assert clockless == pytest.approx({k: eager[k] for k in clockless}, rel=rel, abs=1e-6)


def test_a_taped_run_is_the_eager_one(tmp_path, captures):
    expected = run(tmp_path / "eager", device="cpu")
    assert len({row["loss"] for row in expected}) == len(expected) == 20
    assert_same_rows(run(tmp_path / "taped", captured=True, device="cpu"), expected)
    assert len(captures) == 3  # at the start, when GECO begins, when refinement shortens


@pytest.fixture
def deterministic() -> Iterator[None]:
    """What `trainer.deterministic` sets for the process is taken back."""
    yield
    torch.use_deterministic_algorithms(False)


@needs_gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("precision", "rel"), [("no", 1e-5), ("bf16", 1e-2)])
def test_a_graphs_run_is_the_eager_one(tmp_path, precision, rel):
    """The learning rate lies on the GPU in float32, which bfloat16 weights may round otherwise."""
    settings = {"precision": precision, "deterministic": True}
    expected = run(tmp_path / "eager", cuda_graph=False, **settings)
    assert_same_rows(run(tmp_path / "graph", cuda_graph=True, **settings), expected, rel)


@pytest.mark.usefixtures("captures")
@pytest.mark.parametrize("steps", [1, 5])
def test_a_step_that_is_not_finite_leaves_the_weights(tmp_path, steps):
    """While warming up (1) and replayed (5)."""
    trainer = make_trainer(tmp_path, captured=True, device="cpu", steps=steps, warmup_steps=0)
    trainer.run()
    before = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    trainer.model.encoder.norm.bias.data[0] = before["encoder.norm.bias"][0] = math.inf
    with pytest.raises(NonFiniteError, match=f"step {steps + 1}: "):
        trainer._train_step(FakeImages().__getitems__(range(6)).image, stop=False)
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())


@pytest.mark.usefixtures("captures")
def test_a_graphs_run_can_go_on_without_a_graph(tmp_path):
    run(tmp_path, captured=True, device="cpu", steps=8)
    resumed = make_trainer(tmp_path, device="cpu", resume=True)
    assert resumed.step == 8
    groups = resumed.optimizers[0].param_groups
    assert [(type(g["lr"]), g["capturable"]) for g in groups] == [(float, False)]


@pytest.mark.usefixtures("captures")
def test_an_optimizer_that_fails_has_its_own_settings_back(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, captured=True, device="cpu", steps=1)
    [optimizer] = trainer.optimizers

    def fail(*_, **__):
        raise torch.OutOfMemoryError("full")

    step = graph.GraphedStep(
        lambda *_: {"loss": torch.zeros(())}, lambda: torch.zeros(()), optimizer, torch.Generator()
    )
    before = [(type(g["lr"]), g["capturable"]) for g in optimizer.param_groups]
    monkeypatch.setattr(optimizer, "step", fail)
    with pytest.raises(torch.OutOfMemoryError):
        step(torch.zeros(1, 3, 4, 4), None, 1, {})
    assert [(type(g["lr"]), g["capturable"]) for g in optimizer.param_groups] == before
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.usefixtures("deterministic")
def test_deterministic_kernels_are_one_run_s():
    for wanted in (True, False):
        make_accelerator(TrainerConfig(device="cpu", deterministic=wanted))
        assert torch.are_deterministic_algorithms_enabled() == wanted
    torch.use_deterministic_algorithms(True)  # the user's own, which is stricter
    make_accelerator(TrainerConfig(device="cpu"))
    assert torch.are_deterministic_algorithms_enabled()


def test_a_step_that_cannot_be_captured_says_how_to_go_on(tmp_path, monkeypatch, captures):
    def refuse(*_):
        raise RuntimeError("Cannot copy between CPU and CUDA tensors")

    monkeypatch.setattr(graph, "capture", refuse)
    trainer = make_trainer(tmp_path, captured=True, device="cpu")
    with pytest.raises(RuntimeError, match=r"go on with .*--trainer.cuda_graph false \(Cannot"):
        trainer.run()


def test_the_tape_refuses_what_a_graph_cannot_do():
    with pytest.raises(RuntimeError, match="read a tensor's value"):
        tape.capture(lambda: torch.ones(()) * float(torch.ones(())), torch.Generator())


class OnlyOn(TorchDispatchMode):
    """Refuses tensors of other devices that hold values, which a graph would have to copy."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            if isinstance(x, Tensor) and x.numel() and x.device.type != self.device:
                raise RuntimeError(f"{func} has a tensor on {x.device}")
        return result


CONFIGURATIONS = [find_config(name, model) for model in MODELS for name in config_names(model)]
OTHER_SIZE = (32, 48)  # of the images, where the network's is 64x64


def assert_stays_on_meta(monkeypatch, model, size, geco):
    """Without data (on "meta") every read of a value fails; other devices' tensors are refused."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on "meta"
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    model = model.to("meta")
    images = torch.zeros(2, 3, *size, dtype=torch.uint8, device="meta")
    with OnlyOn("meta"):
        constraint = DeviceGECO(geco, torch.device("meta")) if geco else None
        model.objective(images, geco=constraint).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_step_of_a_configuration_stays_on_its_device(monkeypatch, path):
    config = load_config(path)
    model = MODELS[config.model](config.network)
    geco = config.trainer.geco and GECO(**dataclasses.asdict(config.trainer.geco))
    assert_stays_on_meta(monkeypatch, model, config.network.image_size, geco)


@pytest.mark.parametrize(
    "changes", [{}, {"decoder": "small", "likelihood": "mixture"}, {"decoder": "big"}]
)
def test_a_step_at_another_size_stays_on_its_device(monkeypatch, changes):
    model = EfficientMORL(EfficientMORLConfig(image_size=(64, 64), **changes))
    assert_stays_on_meta(monkeypatch, model, OTHER_SIZE, GECO(-0.5))


def test_a_graph_is_refused_where_there_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.cuda_graph: expected a CUDA device, got cpu"):
        make_trainer(tmp_path, device="cpu", cuda_graph=True)


def accelerator_of(processes: int) -> SimpleNamespace:
    """What is asked of one on a GPU."""
    return SimpleNamespace(device=torch.device("cuda"), num_processes=processes)


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ({}, 2, "expected one process, got 2"),
        ({"accumulation": 3}, 1, "expected trainer.accumulation 1, got 3"),
        ({"optimizer": "muon"}, 1, "expected trainer.optimizer adam, got muon"),
    ],
)
def test_what_cannot_be_captured_is_refused_or_left(changes, processes, message):
    one = accelerator_of(1)
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=f"^trainer.cuda_graph: {message}$"):
        graph.captures(dataclasses.replace(config, cuda_graph=True), accelerator_of(processes))
    assert not graph.captures(config, accelerator_of(processes))
    assert graph.captures(CONFIG, one)
    assert not graph.captures(dataclasses.replace(CONFIG, cuda_graph=False), one)
    compiled = dataclasses.replace(CONFIG, compile=True)
    assert not graph.captures(compiled, one)
    assert graph.captures(dataclasses.replace(compiled, cuda_graph=True), one)
