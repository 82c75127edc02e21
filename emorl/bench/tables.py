"""Tables as text."""

from __future__ import annotations

Rows = list[list[str]]  # the first one is the heading


def as_text(rows: Rows) -> str:
    """Aligned columns, in Markdown."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
