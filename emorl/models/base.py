"""What every model has in common: its results, saving and loading."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

if TYPE_CHECKING:
    from emorl.training.objective import GECO


@dataclass
class Stage:
    """A decomposition on the way to the final one: a stochastic layer's or a refinement step's."""

    name: str
    decomposition: Decomposition


@dataclass
class Decomposition:
    """An image explained as a mixture of K slots.

    Attributes:
        reconstruction: sum of the masked components, [B, 3, H, W] in [0, 1].
        masks: probability that a pixel belongs to each slot, [B, K, 1, H, W], sums to 1 over K.
        components: each slot's appearance, [B, K, 3, H, W] in [0, 1].
        slots: latent codes, [B, K, D].
        attention: softmax over slots of each attention layer, [B, L, K, H, W], if asked for.
        stages: the decompositions on the way, first layer first, if asked for.
    """

    reconstruction: Tensor
    masks: Tensor
    components: Tensor
    slots: Tensor
    attention: Tensor | None = None
    stages: tuple[Stage, ...] = ()

    @classmethod
    def assemble(cls, decoded: Tensor, slots: Tensor) -> Self:
        """From what a decoder returns.

        Args:
            decoded: appearance before its sigmoid and mask logits, [B, K, 4, H, W]; the results
                have its dtype, but at least float32.
            slots: [B, K, D].
        """
        decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
        masks, components = decoded[:, :, 3:].softmax(dim=1), decoded[:, :, :3].sigmoid()
        return cls((masks * components).sum(dim=1), masks, components, slots)

    def labels(self) -> Tensor:
        """The most probable slot of each pixel, int64 [B, H, W]."""
        return self.masks[:, :, 0].argmax(dim=1)


for _result in (Stage, Decomposition):  # so that models can be exported
    torch.export.register_dataclass(_result, serialized_type_name=f"emorl.{_result.__name__}")


@dataclass
class Objective:
    """The training loss of a batch and what it is made of.

    Attributes:
        loss: scalar to differentiate.
        nll: negative log-likelihood of the last step, mean over the batch, in nats; the squared
            error of a model that has no likelihood.
        kl: Kullback-Leibler term of the last step, mean over the batch, in nats; 0 without one.
        terms: every term of the loss for each image, name -> [B], detached.
        diagnostics: other scalars worth a curve, detached.
        decomposition: the last step's, detached.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    terms: dict[str, Tensor]
    decomposition: Decomposition
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


class ObjectCentricModel(nn.Module, ABC):
    """The face that training, evaluation and benchmarks know; each model has a `Config`."""

    name: ClassVar[str]
    Config: ClassVar[type]
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def objective(
        self,
        images: Tensor,
        *,
        geco: GECO | None = None,
        step: int | None = None,
        kl_weight: float = 1.0,
        refinement_steps: int | None = None,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Objective:
        """The training loss of `images`, uint8 or float in [0, 1], [B, 3, H, W].

        All noise is `emorl.nn.standard_normal`'s and whatever else depends on the size of the
        batch asks `emorl.nn.share_of`, so that a batch can be shared out: the mean over its shares
        is then the loss of the whole, and so are the gradients.
        """

    @torch.no_grad()
    def score(
        self,
        images: Tensor,
        *,
        refinement_steps: int | None = None,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Objective:
        """How well the model explains images: every term of the loss, without a graph."""
        return self.objective(
            images,
            refinement_steps=refinement_steps,
            num_slots=num_slots,
            generator=generator,
        )

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        *,
        num_slots: int | None = None,
        refinement_steps: int | None = None,
        generator: torch.Generator | None = None,
        details: bool = False,
    ) -> Decomposition:
        """Decompose `images`, uint8 or float in [0, 1], [B, 3, H, W]."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, which is made if needed."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description = {"model": self.name, **dataclasses.asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
        safetensors.torch.save_file(self.state_dict(), folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load what `save_pretrained` wrote.

        Raises:
            ValueError: if the folder is not one of this model's, with the reason.
        """
        description = read_description(folder)
        if description.pop("model", None) != cls.name:
            raise ValueError(f"{folder}: not a folder of the model {cls.name}")
        try:
            model = cls(cls.Config(**description))
            model.load_state_dict(safetensors.torch.load_file(Path(folder) / "model.safetensors"))
        except (SafetensorError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{folder}: damaged, or another version's: {reason}") from None
        return model


def check_config(
    config: Any, *, positive: Iterable[str] = (), not_negative: Iterable[str] = ()
) -> None:
    """Check a model's configuration, and make a pair of its `image_size`; null is always allowed.

    Args:
        config: a dataclass with `image_size`; fields of a `Literal` type must have one of its
            values.
        positive: fields that must be greater than 0.
        not_negative: fields that must be 0 or more.

    Raises:
        ValueError: naming the field, what it expects and what it has.
    """
    config.image_size = tuple(config.image_size)  # JSON and YAML have lists
    if len(config.image_size) != 2 or min(config.image_size) < 1:
        raise ValueError(f"image_size: expected (height, width), got {config.image_size}")
    for name, kind in get_type_hints(type(config)).items():
        value, allowed = getattr(config, name, None), get_args(kind)
        if get_origin(kind) is Literal and value not in allowed:
            raise ValueError(f"{name} must be one of {[*allowed]}, got {value!r}")
    for name in positive:
        if (value := getattr(config, name)) is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    for name in not_negative:
        if (value := getattr(config, name)) is not None and not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def checked_images(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images as a model's input, [B, 3, H, W] of `dtype` in [0, 1].

    Raises:
        ValueError: if they are neither uint8 nor in [0, 1], or not of that shape.
    """
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images: expected [B, 3, H, W], got {[*images.shape]}")
    if images.dtype == torch.uint8:
        return images.to(dtype) / 255
    if not images.is_floating_point():
        raise ValueError(f"images: expected uint8 or a float in [0, 1], got {images.dtype}")
    # On another device the check would wait for it, in a compiled graph it would break the graph.
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (float(bound) for bound in images.detach().aminmax())
        if low < 0 or high > 1:
            raise ValueError(f"images: expected floats in [0, 1], got [{low:g}, {high:g}]")
    return images.to(dtype)


def read_description(folder: str | Path) -> dict[str, Any]:
    """The contents of a model folder's `config.json`.

    Raises:
        ValueError: if the folder is not one that `save_pretrained` wrote.
    """
    missing = [f for f in ("config.json", "model.safetensors") if not (Path(folder) / f).is_file()]
    if missing:
        raise ValueError(f"{folder}: not a model folder, {' and '.join(missing)} missing")
    try:
        description: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text())
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"{folder}: damaged, or another version's: {error}") from None
    return description
