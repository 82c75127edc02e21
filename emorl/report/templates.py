"""HTML pages that need no other file."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2


def render(template: Path, **values: object) -> str:
    """The text of a page.

    Args:
        template: its file, which may include others of this folder.
        values: by the names that the template has for them; what is no markup is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # no browser reads NaN
    text = environment.get_template(template.name).render(**values)
    return text.encode(errors="backslashreplace").decode()  # half characters, as of odd file names


def embedded(image: bytes) -> str:
    """The address of an image that holds the image itself: the bytes of a PNG file."""
    return "data:image/png;base64," + base64.b64encode(image).decode()
