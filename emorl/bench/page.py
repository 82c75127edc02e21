"""A record's figures and tables on one page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from emorl.bench.tables import Rows

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; margin: 1.5rem 0; font-size: 0.85rem; }}
th, td {{ border-bottom: 1px solid #ccc; padding: 0.25rem 0.6rem; text-align: left; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{caption}</p>
{body}
</body>
</html>
"""


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
    images = [
        f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for name, png in pictures.items()
    ]
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    body = [*images, *map(_table, tables), f"<ul>{listed}</ul>" if listed else ""]
    return _PAGE.format(title=escape(title), caption=escape(caption), body="\n".join(body))


def _table(rows: Rows) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    heading, *others = rows
    return "\n".join(
        ["<table>", line(heading, "th"), *(line(row, "td") for row in others), "</table>"]
    )
