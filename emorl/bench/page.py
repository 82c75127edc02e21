"""A record's figures and tables on one page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from emorl.bench.tables import Rows
from emorl.report.templates import embedded, render


def page(
    title: str,
    caption: str,
    pictures: Mapping[str, bytes],
    tables: Sequence[Rows],
    notes: Sequence[str],
) -> str:
    """The HTML text.

    Args:
        title: of the page.
        caption: of the record.
        pictures: name -> the bytes of a PNG file.
        tables: in their order.
        notes: a line each.
    """
    return render(
        Path(__file__).with_name("page.html"),
        title=title,
        caption=caption,
        pictures={name: embedded(png) for name, png in pictures.items()},
        tables=tables,
        notes=notes,
    )
