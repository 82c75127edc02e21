"""The configuration of MONet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emorl.models.config import ModelConfig
from emorl.ops.mixture_nll import RGBActivation


@dataclass(kw_only=True)
class MONetConfig(ModelConfig):
    """Architecture and objective of MONet; its networks fix the image size.

    Attributes:
        unet_channels: of the attention network's blocks, the full size first, each at half the
            size of the one before; as published 32, 32, 64, 64, 64 for 64x64 pixels and 32, 32,
            32, 64, 64, 64 for 128x128, so that the last has 4x4.
        encoder_channels: of the component VAE's encoder, whose convolutions have stride 2.
        decoder_channels: width of the component VAE's decoder.
        likelihood: "mixture_joint", as the published formula is, one mixture for all channels of
            a pixel, or "mixture", one per channel, as public implementations have it.
        rgb_activation: of the decoded colours, "none", since none is published (in decompositions
            they are clamped to [0, 1]), or "sigmoid".
        sigma_background: standard deviation of a pixel in the first slot, in units of [0, 1].
        sigma_foreground: in all other slots.
        beta: weight of the slots' KL term.
        gamma: weight of the masks' KL term.
        init_raw_bias: initial bias of the posteriors' raw variance; with 0 samples are mostly noise
            at first, -3 starts with a standard deviation of about 0.2.
    """

    POSITIVE = ("sigma_background", "sigma_foreground")
    MAY_BE_ZERO = ("beta", "gamma")

    num_slots: int = 6
    slot_dim: int = 16
    unet_channels: tuple[int, ...] = (32, 32, 64, 64, 64)
    encoder_channels: tuple[int, ...] = (32, 32, 64, 64)
    decoder_channels: int = 32
    likelihood: Literal["mixture_joint", "mixture"] = "mixture_joint"
    rgb_activation: RGBActivation = "none"
    sigma_background: float = 0.09
    sigma_foreground: float = 0.11
    beta: float = 0.5
    gamma: float = 0.5
    init_raw_bias: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("unet_channels", "encoder_channels"):
            channels = getattr(self, name)
            if min(channels, default=0) < 1:
                raise ValueError(f"{name}: expected positive numbers of channels, got {channels}")
