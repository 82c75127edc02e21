"""Objectives and the trainer.

`GECO` needs torch alone; the trainer is in `emorl.training.trainer` (extra "train").
"""

from emorl.models.geco import GECO

__all__ = ["GECO"]
