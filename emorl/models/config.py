"""Base of the models' configurations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_type_hints

from emorl.fields import fit_fields
from emorl.ops import Backend


@dataclass(kw_only=True)
class ModelConfig:
    """A model's architecture and objective, checked when it is made.

    Attributes:
        image_size: (height, width) in pixels, also for squares.
        num_slots: K.
        slot_dim: D, width of a slot.
        backend: of the fused operators, "auto", "native", "triton" or "reference".
        convolution_backend: of the convolutions with a stride of 1: "auto" takes those with fewer
            multiplications where they win, on the CPU; "reference" rounds as PyTorch does.

    Raises:
        ValueError: naming the field, what it expects and what it has.
    """

    POSITIVE: ClassVar[tuple[str, ...]] = ()  # beside all whole numbers
    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ()

    image_size: tuple[int, int] = (64, 64)
    num_slots: int
    slot_dim: int = 64
    backend: Backend = "auto"
    convolution_backend: Backend = "auto"

    def __post_init__(self) -> None:
        fit_fields(self)
        if min(self.image_size) < 1:
            raise ValueError(f"image_size: expected sides of 1 or more, got {self.image_size}")
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if value is None:
                continue
            if name in self.MAY_BE_ZERO and not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
            counts = kind in (int, int | None) and name not in self.MAY_BE_ZERO
            if (counts or name in self.POSITIVE) and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
