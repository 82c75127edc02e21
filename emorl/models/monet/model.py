"""MONet (Burgess et al. 2019): attention masks one after the other, and a VAE of each region.

Legend: B batch, K slots, M = B * K, D slot width, H W image.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.models.base import Decomposition, ObjectCentricModel, Objective, Request
from emorl.models.monet.component_vae import ComponentVAE
from emorl.models.monet.config import MONetConfig
from emorl.models.monet.unet import UNet
from emorl.nn.posterior import Gaussian, kl_divergence
from emorl.ops import mixture_nll


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

    A decomposition's details are its masks after each pass in `attention`: those of the slots so
    far, and the scope, what is left, as the next slot's; None for one slot. The terms are "nll",
    "kl" (of the slots) and "mask_kl".

    The weights start as PyTorch's layers do, and the VAE's posterior has the parameters of
    `Gaussian`, since neither is known of the published model.
    """

    name: ClassVar[str] = "monet"
    Config = MONetConfig
    free_size = False
    config: MONetConfig

    def __init__(self, config: MONetConfig | None = None) -> None:
        c = config or MONetConfig()
        super().__init__(c)
        self.attention = UNet(
            4, c.unet_channels, c.image_size, convolution_backend=c.convolution_backend
        )
        self.component = ComponentVAE(
            c.slot_dim,
            c.image_size,
            channels=c.encoder_channels,
            decoder_channels=c.decoder_channels,
            raw_bias=c.init_raw_bias,
            backend=c.backend,
            convolution_backend=c.convolution_backend,
        )

    def decode(self, slots: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Decode slots, each by itself; as the base's.

        Raises:
            ValueError: for another image size than the configuration's.
        """
        if size not in (None, self.config.image_size):
            raise ValueError(f"size: fixed by the network, got {size}")
        return self.component.decode(slots.flatten(0, 1)).unflatten(0, slots.shape[:2])

    def compose(self, decoded: Tensor, slots: Tensor) -> Decomposition:
        """The decomposition that decoded slots amount to, by the masks that they decode.

        Those of images come from the attention network instead.
        """
        dtype = torch.promote_types(decoded.dtype, torch.float32)
        masks = decoded[:, :, 3:].to(dtype).softmax(dim=1)
        return self._composed(decoded, masks, slots)

    def _objective(self, request: Request) -> Objective:
        """The training loss (Burgess et al. 2019).

        With the attention's masks m, the components' means y and the decoded masks p:

            -sum log sum_k m_k N(x; y_k, sigma_k^2) + kl_weight * beta * KL(q(z | x, m) || N(0, 1))
            + gamma * KL(m || p)
        """
        c, target = self.config, request.target
        explanation = self._explain(request)
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
            loss=(nll + request.kl_weight * c.beta * kl + c.gamma * mask_kl).mean(),
            nll_per_image=nll.detach(),
            kl_per_image=kl.detach(),
            terms={"nll": nll.detach(), "kl": kl.detach(), "mask_kl": mask_kl.detach()},
            decomposition=self._decomposition(explanation),
        )

    def _decompose(self, request: Request) -> Decomposition:
        result = self._decomposition(self._explain(request))
        if request.details and request.num_slots > 1:
            result.attention = _passes(result.masks[:, :, 0])
        return result

    def _explain(self, request: Request) -> _Explanation:
        log_masks = self._attend(request.target, request.num_slots)
        regions = request.target[:, None].expand(-1, request.num_slots, -1, -1, -1)
        posterior, slots, decoded = self.component(
            regions.flatten(0, 1), log_masks.flatten(0, 1), request.generator
        )
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
        return self._composed(explanation.decoded.detach(), masks, explanation.slots.detach())

    def _composed(self, decoded: Tensor, masks: Tensor, slots: Tensor) -> Decomposition:
        rgb = decoded[:, :, :3].to(masks.dtype)
        means = rgb.sigmoid() if self.config.rgb_activation == "sigmoid" else rgb.clamp(0, 1)
        return Decomposition((masks * means).sum(1), masks, means, slots)


def _passes(masks: Tensor) -> Tensor:
    """The masks [B, K, H, W] as they were after each of K - 1 passes, [B, K - 1, K, H, W]."""
    passes = torch.zeros_like(masks[:, 1:, None]).repeat(1, 1, masks.shape[1], 1, 1)
    for number in range(1, masks.shape[1]):
        passes[:, number - 1, :number] = masks[:, :number]
        passes[:, number - 1, number] = masks[:, number:].sum(dim=1)
    return passes
