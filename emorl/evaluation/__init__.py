"""Measuring models on held-out images."""

from emorl.evaluation.noise import ImageNoise
from emorl.evaluation.protocols import PROTOCOLS, Protocol, evaluate
from emorl.evaluation.representations import measure_representations
from emorl.evaluation.sweeps import sweep

__all__ = [
    "PROTOCOLS",
    "ImageNoise",
    "Protocol",
    "evaluate",
    "measure_representations",
    "sweep",
]
