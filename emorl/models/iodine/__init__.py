"""IODINE (Greff et al., ICML 2019)."""

from emorl.models.iodine.config import IODINEConfig
from emorl.models.iodine.model import IODINE

__all__ = ["IODINE", "IODINEConfig"]
