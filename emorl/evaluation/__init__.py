"""Measuring models on held-out images."""

from emorl.evaluation.noise import ImageNoise
from emorl.evaluation.protocols import evaluate

__all__ = ["ImageNoise", "evaluate"]
