"""Measuring models on held-out images."""

from emorl.evaluation.noise import ImageNoise
from emorl.evaluation.protocols import PROTOCOLS, Protocol, evaluate

__all__ = ["PROTOCOLS", "ImageNoise", "Protocol", "evaluate"]
