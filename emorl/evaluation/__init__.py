"""Measuring models on held-out images."""

from emorl.evaluation.protocols import evaluate

__all__ = ["evaluate"]
