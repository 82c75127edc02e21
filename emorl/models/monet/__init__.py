"""MONet (Burgess et al. 2019)."""

from emorl.models.monet.config import MONetConfig
from emorl.models.monet.model import MONet

__all__ = ["MONet", "MONetConfig"]
