"""MONet (Burgess et al. 2019): attention masks one after the other, and a VAE of each region.

Legend: B batch, K slots, M = B * K, D slot width, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.models.base import (
    Decomposition,
    ObjectCentricModel,
    Objective,
    check_config,
    checked_images,
)
from emorl.nn.component_vae import ComponentVAE
from emorl.nn.gaussian import Gaussian, kl_divergence
from emorl.nn.unet import UNet
from emorl.ops import Backend, mixture_nll
from emorl.ops.mixture_nll import RGBActivation
from emorl.training.objective import GECO


@dataclass
class MONetConfig:
    """Architecture and objective of MONet.

    Attributes:
        image_size: (height, width) in pixels, which the networks fix.
        num_slots: K; another number can be given at call time.
        slot_dim: D, width of a slot.
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
        backend: of the fused operators, "auto", "native", "triton" or "reference".
    """

    image_size: tuple[int, int] = (64, 64)
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
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        positive = ("num_slots", "slot_dim", "decoder_channels")
        sigmas = ("sigma_background", "sigma_foreground")
        check_config(self, positive=(*positive, *sigmas), not_negative=("beta", "gamma"))
        for name in ("unet_channels", "encoder_channels"):
            channels = tuple(getattr(self, name))  # JSON and YAML have lists
            if not channels or min(channels) < 1:
                raise ValueError(f"{name}: expected positive numbers of channels, got {channels}")
            setattr(self, name, channels)


class _Explanation(NamedTuple):
    log_masks: Tensor  # [B, K, 1, H, W]
    posterior: Gaussian  # [M, D]
    slots: Tensor  # [B, K, D]
    decoded: Tensor  # [B, K, 4, H, W]


class MONet(ObjectCentricModel):
    """Multi-object network.

    An attention network takes one region after the other out of what is left of the image, its
    scope; the last slot gets the rest. A VAE, shared by the slots, encodes each region together
    with its mask, and decodes both. Slots are ordered.

    The weights start as PyTorch's layers do, and the VAE's posterior has the parameters of
    `Gaussian`, since neither is known of the published model.
    """

    name: ClassVar[str] = "monet"
    Config: ClassVar[type] = MONetConfig
    config: MONetConfig

    def __init__(self, config: MONetConfig | None = None) -> None:
        c = config or MONetConfig()
        super().__init__(c)
        self.attention = UNet(4, c.unet_channels, c.image_size)
        self.component = ComponentVAE(
            c.slot_dim,
            c.image_size,
            c.encoder_channels,
            decoder_channels=c.decoder_channels,
            raw_bias=c.init_raw_bias,
            backend=c.backend,
        )

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
        """The training loss (Burgess et al. 2019).

        With the attention's masks m, the components' means y and the decoded masks p:

            -sum log sum_k m_k N(x; y_k, sigma_k^2) + kl_weight * beta * KL(q(z | x, m) || N(0, 1))
            + gamma * KL(m || p)

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W].
            geco: must be None: MONet is trained without a constraint.
            step: training step, which changes nothing here.
            kl_weight: factor of beta.
            refinement_steps: must be None: MONet does not refine.
            num_slots: K; None for the configuration's.
            generator: of the noise, drawn once, as [B * K, D]; None for the global one.

        Returns:
            Loss, terms "nll", "kl" (of the slots) and "mask_kl", and the decomposition.

        Raises:
            ValueError: for images or numbers that are not possible, saying which are.
        """
        if geco is not None:
            raise ValueError("geco: MONet is trained without a constraint, expected None")
        c = self.config
        target = self._checked(images, num_slots, refinement_steps)
        explanation = self._explain(target, num_slots, generator)
        log_masks, decoded = explanation.log_masks, explanation.decoded
        nll = mixture_nll(
            target,
            decoded[:, :, :3],
            log_masks,  # normalised, so that the log-softmax leaves them as they are
            sigma=self._sigma(log_masks),
            kind=c.likelihood,
            rgb_activation=c.rgb_activation,
            backend=c.backend,
        )
        kl = kl_divergence(explanation.posterior, None).view(len(target), -1).sum(1)
        log_decoded = decoded[:, :, 3:].to(log_masks.dtype).log_softmax(dim=1)
        mask_kl = (log_masks.exp() * (log_masks - log_decoded)).flatten(1).sum(1)
        return Objective(
            loss=(nll + kl_weight * c.beta * kl + c.gamma * mask_kl).mean(),
            nll=nll.detach().mean(),
            kl=kl.detach().mean(),
            terms={"nll": nll.detach(), "kl": kl.detach(), "mask_kl": mask_kl.detach()},
            decomposition=self._decomposition(explanation),
        )

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        *,
        num_slots: int | None = None,
        refinement_steps: int | None = None,
        generator: torch.Generator | None = None,
        details: bool = False,
    ) -> Decomposition:
        """Decompose images.

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W].
            num_slots: K, one more than passes of the attention network; None for the
                configuration's.
            refinement_steps: must be None: MONet does not refine.
            generator: of the noise; None for the global one.
            details: fill `attention` with the masks after each pass: those of the slots so far,
                and the scope, what is left, as the next slot's; None for one slot.

        Returns:
            The attention's masks, the means and the codes of one sample, without a graph.

        Raises:
            ValueError: for images or numbers that are not possible, saying which are.
        """
        target = self._checked(images, num_slots, refinement_steps)
        result = self._decomposition(self._explain(target, num_slots, generator))
        if details and result.masks.shape[1] > 1:
            result.attention = _passes(result.masks[:, :, 0])
        return result

    def _checked(
        self, images: Tensor, num_slots: int | None, refinement_steps: int | None
    ) -> Tensor:
        """The images as [B, 3, H, W] in [0, 1], if what is asked of them is possible."""
        if refinement_steps is not None:
            raise ValueError(
                f"refinement_steps: MONet does not refine, expected None, got {refinement_steps}"
            )
        if num_slots is not None and num_slots < 1:
            raise ValueError(f"num_slots: expected 1 or more, got {num_slots}")
        return checked_images(images, self.attention.output.weight.dtype)

    def _explain(
        self, target: Tensor, num_slots: int | None, generator: torch.Generator | None
    ) -> _Explanation:
        log_masks = self._attend(target, num_slots or self.config.num_slots)
        regions = target[:, None].expand(-1, log_masks.shape[1], -1, -1, -1)
        posterior = self.component.encode(regions.flatten(0, 1), log_masks.flatten(0, 1))
        slots = posterior.sample(generator)
        decoded = self.component.decode(slots)
        slots, decoded = (x.unflatten(0, log_masks.shape[:2]) for x in (slots, decoded))
        return _Explanation(log_masks, posterior, slots, decoded)

    def _attend(self, target: Tensor, num_slots: int) -> Tensor:
        """Logarithms of the masks, [B, K, 1, H, W]; their exponentials sum to 1 over K."""
        scope = torch.zeros_like(target[:, :1])
        log_masks = []
        for _ in range(num_slots - 1):
            logits = self.attention(torch.cat((target, scope), dim=1)).to(scope.dtype)
            log_masks.append(scope + F.logsigmoid(logits))
            scope = scope + F.logsigmoid(-logits)
        return torch.stack([*log_masks, scope], dim=1)

    def _sigma(self, log_masks: Tensor) -> Tensor:
        """Each slot's standard deviation, [K]."""
        sigma = log_masks.new_full(log_masks.shape[1:2], self.config.sigma_foreground)
        sigma[:1] = self.config.sigma_background
        return sigma

    def _decomposition(self, explanation: _Explanation) -> Decomposition:
        masks = explanation.log_masks.detach().exp()
        rgb = explanation.decoded[:, :, :3].detach().to(masks.dtype)
        means = rgb.sigmoid() if self.config.rgb_activation == "sigmoid" else rgb.clamp(0, 1)
        return Decomposition((masks * means).sum(1), masks, means, explanation.slots.detach())


def _passes(masks: Tensor) -> Tensor:
    """The masks [B, K, H, W] as they were after each of K - 1 passes, [B, K - 1, K, H, W]."""
    passes = torch.zeros_like(masks[:, 1:, None]).repeat(1, 1, masks.shape[1], 1, 1)
    for number in range(1, masks.shape[1]):
        passes[:, number - 1, :number] = masks[:, :number]
        passes[:, number - 1, number] = masks[:, number:].sum(dim=1)
    return passes
