"""Fixtures that every test file shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder with `data/` and `golden/`: $EMORL_FIXTURES, or `../shared` beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("EMORL_FIXTURES", default))
    if not (folder / "golden").is_dir():
        pytest.skip(
            f"no fixtures in {folder} (set EMORL_FIXTURES to a folder with data/ and golden/)"
        )
    return folder


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)
