"""Multiply-accumulates and parameters of the models: as published, and as they are computed here.

Nothing is computed: tensors without data go through the networks, and each convolution and matrix
product that they meet is counted by its shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.distributions import Distribution

from emorl.bench.tally import Tally
from emorl.fields import fit
from emorl.models import MODELS, ModelConfig, ObjectCentricModel
from emorl.models.efficient_morl import plain as efficient_morl
from emorl.models.iodine import plain as iodine
from emorl.models.monet import plain as monet
from emorl.models.slot_attention import plain as slot_attention
from emorl.models.slot_mlp import plain as slot_mlp

# The loss of a network and images, without any rewriting: what the published codes compute.
_PUBLISHED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "efficient_morl": efficient_morl.objective,
    "slot_attention": slot_attention.objective,
    "slot_mlp": slot_mlp.objective,
    "iodine": iodine.objective,
    "monet": lambda model, images: monet.objective(model, images, model.config.num_slots)[0],
}


@dataclass(frozen=True)
class Count:
    """Multiply-accumulates for one image.

    Attributes:
        convolutions: of each part of the network that has some, by the module's name.
        products: of all matrix products, those of linear layers and attention.
    """

    convolutions: dict[str, float]
    products: float

    @classmethod
    def of(cls, tally: Tally, batch: int) -> Self:
        """The share of one image of a batch."""
        parts = {name: work / batch for name, work in tally.convolutions.items()}
        return cls(parts, tally.products / batch)

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.convolutions.values()) + self.products

    def rows(self) -> dict[str, float]:
        """Every number, by its name in a table."""
        return {**self.convolutions, "matrix products": self.products, "total": self.total}


@dataclass(frozen=True)
class Passes:
    """The work of a forward pass, with the gradients that refinement takes, and of both passes."""

    forward: Count
    forward_and_backward: Count


@dataclass(frozen=True)
class Macs:
    """What `macs` finds; as text a table.

    Attributes:
        model: its name.
        config: its configuration.
        batch: images that share what is computed once a batch.
        parameters: numbers that are trained.
        as_published: of the published codes, every slot's broadcast image included.
        as_computed: of what runs here on a CPU.
    """

    model: str
    config: ModelConfig
    batch: int
    parameters: int
    as_published: Passes
    as_computed: Passes

    def __str__(self) -> str:
        height, width = self.config.image_size
        counts = [
            count.rows()
            for passes in (self.as_published, self.as_computed)
            for count in (passes.forward, passes.forward_and_backward)
        ]
        lines = [
            f"{self.model}, {height}x{width}, {self.config.num_slots} slots: "
            f"{self.parameters:,} parameters",
            f"{'10^9 multiply-accumulates':<25}{'as published':>22}{'as computed':>22}",
            f"{'for an image':<25}" + f"{'forward':>11}{'+ backward':>11}" * 2,
        ]
        for name in counts[0]:
            numbers = [f"{count[name] / 1e9:11.3f}" for count in counts]
            lines.append(f"{name:<25}" + "".join(numbers))
        return "\n".join(lines)


def macs(
    model: ObjectCentricModel | str,
    size: int | tuple[int, int] | None = None,
    *,
    batch: int = 4,
    **changes: Any,
) -> Macs:
    """Count a model's parameters and multiply-accumulates.

        print(emorl.macs("clevr6", 96, refinement_steps=1))

    `as_published`: the loss in plain PyTorch, as the published codes compute it, and its backward
    pass. Every score decodes all slots' broadcast images; refinement takes its gradient, through
    which no other one passes. A backward pass counts as two forward ones, as is customary, the
    gradient by the images included.

    `as_computed`: an inference, and a training step, on a CPU, by the native kernels where they are
    built. Each score is differentiated once, the decoder's first convolution is split. Of
    Winograd's convolutions the products count (a quarter for 3x3 and two fifths for 5x5, more where
    tiles reach over the edge), not the transforms.

    Args:
        model: a model, whose class and configuration are taken, and of a class of one's own the
            published loss of the one that it derives from; or the name of a configuration, of
            EfficientMORL ("clevr6") or another model ("iodine/clevr6"); or a YAML file.
        size: side or (height, width) of the images in pixels; None takes the configuration's.
        batch: B, over which what is computed once a batch is shared out.
        changes: other values of the configuration: `refinement_steps`, `num_slots`, `decoder`, ...

    Raises:
        ValueError: if there is no such configuration, or a value does not fit.
        TypeError: if the configuration has no value of that name.
    """
    if fit("batch", batch, int) < 1:
        raise ValueError(f"batch: expected 1 or more, got {batch}")
    kind, config = _configured(model)
    if size is not None and "image_size" in changes:
        raise ValueError("image_size: expected size or image_size, got both")
    if size is not None:
        changes["image_size"] = (size, size) if isinstance(size, int) else size
    config = replace(config, **changes)
    with torch.random.fork_rng(devices=()):
        network = kind(config)
    parameters = sum(weight.numel() for weight in network.parameters())
    without_data = FakeTensorMode()
    with FakeCopyMode(without_data):  # after initialisation, which may read values
        network = copy.deepcopy(network)
    with without_data:
        published, computed = _as_published(network, batch), _as_computed(network, batch)
    return Macs(kind.name, config, batch, parameters, published, computed)


def _configured(model: ObjectCentricModel | str) -> tuple[type[ObjectCentricModel], ModelConfig]:
    if isinstance(model, ObjectCentricModel):
        _published(type(model))
        return type(model), model.config
    if not isinstance(model, str):
        raise ValueError(
            f"model: expected a model or a configuration's name, got {type(model).__name__}"
        )
    from emorl.training.config_file import find_config, load_config  # these need the extra "train"

    kind, _, name = ("", "", model) if Path(model).is_file() else model.rpartition("/")
    run = load_config(find_config(name, kind or None), kind or None)
    return MODELS[run.model], run.network


def _published(kind: type[ObjectCentricModel]) -> str:
    """The published model that a class is or derives from.

    Raises:
        ValueError: if there is none.
    """
    names = (vars(base).get("name") for base in kind.__mro__)
    found = next((name for name in names if name in _PUBLISHED), None)
    if found is None:
        expected = ", ".join(_PUBLISHED)
        raise ValueError(
            f"model: expected one of {expected} or a class that derives from one, "
            f"got {kind.__name__}"
        )
    return found


def _as_published(network: ObjectCentricModel, batch: int) -> Passes:
    images = torch.zeros(batch, 3, *network.config.image_size, requires_grad=True)
    with _unchecked_distributions(), Tally(network) as tally:
        loss = _PUBLISHED[_published(type(network))](network, images)
        forward = Count.of(tally, batch)
        loss.backward()
    return Passes(forward, Count.of(tally, batch))


def _as_computed(network: ObjectCentricModel, batch: int) -> Passes:
    images = torch.zeros(batch, 3, *network.config.image_size, dtype=torch.uint8)
    with Tally(network) as inference:
        network(images)
    with Tally(network) as step:
        network.objective(images).loss.backward()
    return Passes(Count.of(inference, batch), Count.of(step, batch))


@contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """A context without the checks of distributions, which read values."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
