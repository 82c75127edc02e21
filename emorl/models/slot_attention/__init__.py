"""Slot Attention (Locatello et al., NeurIPS 2020)."""

from emorl.models.slot_attention.config import SlotAttentionConfig
from emorl.models.slot_attention.model import SlotAttentionModel

__all__ = ["SlotAttentionConfig", "SlotAttentionModel"]
