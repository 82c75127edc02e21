"""Slot MLP, the baseline of Slot Attention and EfficientMORL."""

from emorl.models.slot_mlp.config import SlotMLPConfig
from emorl.models.slot_mlp.model import SlotMLP

__all__ = ["SlotMLP", "SlotMLPConfig"]
