"""Benchmarks time the native kernels, and not what stands in for them, unless asked to."""

from __future__ import annotations

import argparse

import torch

from emorl.ops import backends

OPTION = "--allow-reference"
HELP = "time plain PyTorch too, where operators have no native kernels"


def require(allowed: bool, device: str | None = None) -> None:
    """Make sure that every operator has a native kernel.

    Args:
        allowed: whether it may lack one.
        device: its type; None for a GPU where there is one, else the CPU.

    Raises:
        ValueError: with the reason why there is none.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    missing = {op: reasons["native"] for op, reasons in backends(device).items()}
    for op, reason in missing.items():
        if reason is not None and not allowed:
            raise ValueError(f"{op}: {reason}; to time plain PyTorch instead: {OPTION}")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse a benchmark's command line, which ends here where native kernels are missing."""
    parser.add_argument(OPTION, action="store_true", help=HELP)
    options = parser.parse_args()
    try:
        require(options.allow_reference, getattr(options, "device", None))
    except ValueError as error:
        parser.error(str(error))
    return options
