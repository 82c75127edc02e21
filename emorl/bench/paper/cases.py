"""The cases of EfficientMORL's time and memory plots (its figures 10 and 22), and their steps.

Each case is a model at an image size, ours or as released, with 7 slots. "forward" is the training
objective with its derivatives recorded, "forward+backward" differentiates it too. Weights are not
updated.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from emorl.bench import released
from emorl.bench.passes import passes
from emorl.bench.step.variants import set_precision
from emorl.bench.suite import Options
from emorl.bench.workers import Step
from emorl.models import MODELS as NETWORKS
from emorl.models import EfficientMORLConfig, ModelConfig
from emorl.training.config_file import find_config, load_config

OURS, RELEASED = "ours", "released"
SIZES = (64, 96, 128)
SLOTS = 7


@dataclass(frozen=True)
class Model:
    """A model of the suite.

    Attributes:
        title: as the paper has it.
        network: emorl's name of the model.
        config: the configuration that it is made from.
        changes: of that configuration.
        is_released: whether the released code has it.
    """

    title: str
    network: str
    config: str = "clevr6"
    changes: dict[str, Any] = field(default_factory=dict)
    is_released: bool = False


def _efficient_morl(steps: int, **changes: Any) -> Model:
    """EfficientMORL with I = `steps`; as released with its own decoder."""
    title = f"E-{steps}-S" if changes else f"E-{steps}"
    changes["refinement_steps"] = steps
    return Model(title, "efficient_morl", changes=changes, is_released="decoder" not in changes)


MODELS = {
    "iodine": Model("IODINE", "iodine", "clevr6-96-authors"),
    "e-0": _efficient_morl(0),
    "slot-attention": Model("Slot Attention", "slot_attention", is_released=True),
    "e-1": _efficient_morl(1),
    "e-3": _efficient_morl(3),
    "e-0-s": _efficient_morl(0, decoder="big"),
    "e-1-s": _efficient_morl(1, decoder="big"),
    "e-3-s": _efficient_morl(3, decoder="big"),
    "slot-mlp": Model("Slot MLP", "slot_mlp"),
    "monet": Model("MONet", "monet"),
}
# Models whose ratio is the question take turns, so that both see the same machine.
TURNS = (("iodine", "e-0"), ("slot-attention", "e-1"))


class Case(NamedTuple):
    """A model of `MODELS`, "ours" or "released", at an image size and a batch size."""

    model: str
    code: str
    size: int
    batch: int

    def __str__(self) -> str:
        return f"{MODELS[self.model].title}, {self.code}, {self.size}x{self.size}"


def network(model: str, size: int) -> ModelConfig:
    """The configuration of a model's network.

    Raises:
        ValueError: if the model cannot have images of that size.
    """
    chosen = MODELS[model]
    config = load_config(find_config(chosen.config, chosen.network), chosen.network).network
    config = replace(config, image_size=(size, size), num_slots=SLOTS, **chosen.changes)
    try:
        with torch.device("meta"):
            NETWORKS[chosen.network](config)
    except ValueError as error:
        raise ValueError(f"--sizes: {chosen.title} at {size}x{size}: {error}") from None
    return config


def check(options: Options) -> None:
    """Make sure that every model can have every size.

    Raises:
        ValueError: naming the first that cannot.
    """
    for size in options.sizes:
        for model in options.models:
            network(model, size)


def build(case: Case, official: Path | None, device: str) -> dict[str, Step]:
    """The steps of a case, by part; both codes have the same weights where they fit."""
    set_precision("float32")
    torch.manual_seed(0)
    config, is_ours = network(case.model, case.size), case.code == OURS
    theirs = _released(case, config, official)
    model: Any = _ours(config, theirs, MODELS[case.model].network) if is_ours else theirs
    model.to(device).train()
    noise = torch.Generator().manual_seed(0)
    images = torch.rand(case.batch, 3, case.size, case.size, generator=noise).to(device)

    def objective() -> Tensor:
        if is_ours:
            loss: Tensor = model.objective(images).loss
        elif isinstance(config, EfficientMORLConfig):
            loss = model(2 * images - 1, None, 0, 1.0)["total_loss"]
        else:
            loss = model(2 * images - 1)["total_loss"]
        return loss

    return passes(model, objective)


def _released(case: Case, config: Any, official: Path | None) -> Any:
    """The released model, if there is one."""
    if official is None or not MODELS[case.model].is_released:
        return None
    if isinstance(config, EfficientMORLConfig):
        net = released.net_of(config, config.refinement_steps)
        return released.build(official, net, case.batch)
    return released.build_slot_attention(official, config, case.batch)


def _ours(config: Any, theirs: Any, name: str) -> Any:
    """Our model, with the weights of the released one, if that is there."""
    if theirs is None:
        return NETWORKS[name](config)
    if isinstance(config, EfficientMORLConfig):
        return released.ours(theirs, released.net_of(config, config.refinement_steps))
    return released.our_slot_attention(theirs, config)


class Survey(NamedTuple):
    """What the first steps of a case tell.

    Attributes:
        build: seconds until there is a model.
        seconds: of each part, once it is warm.
        operators: the fused operators that ran.
    """

    build: float
    seconds: dict[str, float]
    operators: list[str]

    def scaled(self, more: float) -> Survey:
        """With as many times the seconds."""
        return self._replace(seconds={part: more * s for part, s in self.seconds.items()})


def survey(case: Case, official: Path | None, device: str) -> Survey:
    """Build a case, run each of its parts once to warm up, and time it once."""
    begin = time.perf_counter()
    steps = build(case, official, device)
    built = time.perf_counter() - begin
    with _Operators() as seen:
        for step in steps.values():
            step()
    return Survey(built, {part: _seconds(step) for part, step in steps.items()}, sorted(seen.names))


def _seconds(step: Step) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


class _Operators(TorchDispatchMode):
    """Takes down the names of emorl's operators that run: plain ones are native kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "emorl":
            self.names.add(func._schema.name.removeprefix("emorl::"))
        return func(*args, **(kwargs or {}))


def cases(
    models: tuple[str, ...], sizes: tuple[int, ...], batch: int, with_released: bool
) -> list[Case]:
    """All cases, in the order of their importance: by size, ours before the released code."""
    codes = [OURS, RELEASED] if with_released else [OURS]
    return [
        Case(model, code, size, batch)
        for size in sizes
        for code in codes
        for model in MODELS
        if model in models and (code == OURS or MODELS[model].is_released)
    ]


def groups(cases: list[Case]) -> list[list[Case]]:
    """Cases that take turns: both codes of a model, and the models of `TURNS`, at one size."""
    turn_of = {model: turn for turn in TURNS for model in turn}
    found: dict[tuple[int, tuple[str, ...]], list[Case]] = {}
    for case in cases:
        turn = turn_of.get(case.model, (case.model,))
        found.setdefault((case.size, turn), []).append(case)
    return [*found.values()]


def build_batch(case: Case, official: Path | None, device: str, batch: int) -> dict[str, Step]:
    """`build`, with another batch size."""
    return build(case._replace(batch=batch), official, device)
