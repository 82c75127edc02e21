"""EfficientMORL (Emami et al., ICML 2021)."""

from emorl.models.efficient_morl.config import EfficientMORLConfig
from emorl.models.efficient_morl.model import EfficientMORL

__all__ = ["EfficientMORL", "EfficientMORLConfig"]
