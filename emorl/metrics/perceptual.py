"""LPIPS: how different two images look to a network that was trained on photographs.

Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric (2018), as
torchmetrics computes it. It needs the extra "lpips" and weights that nothing here downloads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from emorl.extras import require_package
from emorl.metrics.reconstruction import mean_squared_error

Network = Literal["alex", "vgg", "squeeze"]
_WEIGHTS = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}


class PerceptualDistance:
    """LPIPS of pairs of images, with the weights that lie in torch's cache.

    Args:
        network: whose features are compared; "alex" is the usual one.
        device: where to compute.

    Raises:
        ModuleNotFoundError: without torchmetrics or torchvision.
        ValueError: if the network's weights are not there, with the place where they belong.
    """

    def __init__(self, network: Network = "alex", device: torch.device | str = "cpu") -> None:
        for package in ("torchmetrics", "torchvision"):
            require_package(package)
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        require_weights(network)
        metric = LearnedPerceptualImagePatchSimilarity(net_type=network, normalize=True)
        self._metric = metric.to(device)

    @torch.no_grad()
    def __call__(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """The distance of each pair, float64 [B]; 0 is the same image.

        Args:
            image: float in [0, 1], [B, 3, H, W].
            reconstruction: the same shape.

        Raises:
            ValueError: if shapes differ, or values are of another dtype or range.
        """
        mean_squared_error(image, reconstruction)  # refuses what is no pair of images
        pairs = zip(
            image.float().clamp(0, 1).split(1),
            reconstruction.float().clamp(0, 1).split(1),
            strict=True,
        )
        return torch.stack([self._metric(*pair) for pair in pairs]).double().view(-1)


def require_weights(network: Network) -> Path:
    """The file of a network's weights in torch's cache.

    Raises:
        ValueError: if it is not there; the message says what to put where.
    """
    from torchvision import models

    if network not in _WEIGHTS:
        raise ValueError(f"LPIPS: expected one of {', '.join(_WEIGHTS)}, got {network!r}")
    url = getattr(models, _WEIGHTS[network]).IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file():
        raise ValueError(f"LPIPS: {path} is not there, and is not downloaded unasked: get {url}")
    return path
