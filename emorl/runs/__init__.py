"""The folder of a run: its paths, checkpoints and log, and what a report reads there."""

from emorl.runs.folder import RunFolder

__all__ = ["RunFolder"]
