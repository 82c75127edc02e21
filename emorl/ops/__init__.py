"""Fused operators with a plain PyTorch reference each."""

from emorl.ops._library import Backend, backends, load_native
from emorl.ops.slot_attention import slot_attention

load_native()

__all__ = ["Backend", "backends", "slot_attention"]
