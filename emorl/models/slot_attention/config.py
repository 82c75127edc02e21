"""The configuration of Slot Attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emorl.models.slot_autoencoder import SlotAutoencoderConfig


@dataclass(kw_only=True)
class SlotAttentionConfig(SlotAutoencoderConfig):
    """Architecture and loss of Slot Attention.

    Attributes:
        iterations: T; another number can be given at call time.
        initial_slots: "sampled" from one learned Gaussian, or "learned", one vector for each
            slot; the number of slots is then fixed.
        implicit_gradient: differentiate the last iteration alone (Chang et al. 2022). What the
            initial slots are made of is then never trained.
    """

    iterations: int = 3
    initial_slots: Literal["sampled", "learned"] = "sampled"
    implicit_gradient: bool = False
