"""A fixture that a file of tests imports to have small reports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def small_viewers() -> Iterator[None]:
    """Every training ends with a report: its viewer shows and measures two images here."""
    from emorl.report import viewer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(viewer, "IMAGES", 2)
        patch.setattr(viewer, "MEASURED", 2)
        yield
