"""MONet's component VAE: encodes and decodes one slot's region of an image.

Legend: M slots of a batch (batch x slots), D slot width, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from emorl.models.monet.unet import halved
from emorl.nn.networks import BroadcastSpec, SpatialBroadcastDecoder, channels_last, rectified
from emorl.nn.posterior import Gaussian
from emorl.ops import Backend


class ComponentVAE(nn.Module):
    """A VAE of the image under a mask (Burgess et al. 2019).

    The encoder has 3x3 convolutions of stride 2 with ReLU, then two fully connected layers; the
    decoder is a spatial broadcast decoder of four 3x3 convolutions with ReLU and no padding and a
    1x1 one; x and y are concatenated to the code.

    Args:
        dim: D, width of a slot.
        image_size: (height, width), which the encoder fixes.
        channels: of the encoder's convolutions.
        decoder_channels: of the decoder's convolutions.
        hidden: width of the encoder's hidden layer.
        raw_bias: initial bias of the posteriors' raw variance, added to PyTorch's initialisation.
        backend: of the spatial broadcast op.
        convolution_backend: of the decoder's convolutions.
    """

    def __init__(
        self,
        dim: int,
        image_size: tuple[int, int],
        *,
        channels: Sequence[int],
        decoder_channels: int,
        hidden: int = 256,
        raw_bias: float = 0.0,
        backend: Backend = "auto",
        convolution_backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise((4, *channels))
        )
        height, width = halved(image_size, len(channels))
        self.hidden = nn.Linear(channels[-1] * height * width, hidden)
        self.posterior = nn.Linear(hidden, 2 * dim)
        with torch.no_grad():
            self.posterior.bias[dim:].add_(raw_bias)
        spec = BroadcastSpec(
            layers=4,
            kernel=3,
            padding=0,
            final_padding=0,
            channels=decoder_channels,
            activation="relu",
            final_kernel=1,
            coordinates=True,
        )
        self.decoder = SpatialBroadcastDecoder(
            dim,
            spec,
            image_size,
            gain=None,
            backend=backend,
            convolution_backend=convolution_backend,
        )

    def forward(
        self, images: Tensor, log_masks: Tensor, generator: torch.Generator | None
    ) -> tuple[Gaussian, Tensor, Tensor]:
        """Explain slots' regions.

        Args:
            images: [M, 3, H, W], of the size that the network was made for.
            log_masks: logarithm of each slot's mask, [M, 1, H, W].
            generator: of the noise.

        Returns:
            The posteriors, a sample of each, [M, D], and what `decode` makes of it, [M, 4, H, W].
        """
        posterior = self.encode(images, log_masks)
        slots = posterior.sample(generator)
        return posterior, slots, self.decode(slots)

    def encode(self, images: Tensor, log_masks: Tensor) -> Gaussian:
        """The posteriors of slots.

        Args:
            images: [M, 3, H, W], of the size that the network was made for.
            log_masks: logarithm of each slot's mask, [M, 1, H, W].

        Returns:
            [M, D].
        """
        hidden = torch.cat((images, log_masks), dim=1)
        hidden = channels_last(hidden)
        for convolution in self.convolutions:
            hidden = rectified(convolution, hidden, nn.Conv2d)
        hidden = rectified(self.hidden, hidden.flatten(1), nn.Linear)
        return Gaussian.unpack(self.posterior(hidden).to(log_masks.dtype))

    def decode(self, slots: Tensor) -> Tensor:
        """The slots' RGB before any activation and their mask logits, [M, 4, H, W]."""
        decoded: Tensor = self.decoder(slots, self.image_size)
        return decoded
