"""Dependencies point down: who may import whom in emorl."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "emorl"
# A room is a folder or a file of the package. It imports from floors below its own, and from no
# other room of its floor.
FLOORS = (
    ("cli",),
    ("bench",),
    ("training",),
    ("report",),
    ("evaluation",),
    ("compat", "data"),
    ("metrics", "models"),
    ("devices", "info", "memory", "nn", "runs"),
    ("extras", "ops", "paths", "suggestions", "terminal"),
    ("fields",),
)
RULE = " -> ".join(", ".join(rooms) for rooms in FLOORS)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """The room of a module's dotted name; the command `python -m emorl` is the command line's."""
    name = module.split(".")[1] if "." in module else ""
    return "cli" if name == "__main__" else name


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that a module imports, wherever in it the import stands.

    Names given as text, as `importlib` takes them, count too. `module` is the importing one's
    name with a last part for `__init__`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(module.split(".")[: -node.level]) if node.level else ""
            start = ".".join(filter(None, (package, node.module)))
            yield from ((node.lineno, f"{start}.{name.name}") for name in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"emorl(\.\w+)+", str(node.value)):
            yield node.lineno, str(node.value)


def upward(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Line and arrow of all imports that do not point down."""
    own = room_of(module)
    for line, name in imports(source, module):
        other = room_of(name) if name.startswith("emorl.") else ""
        if other in FLOOR_OF and other != own and FLOOR_OF[other] <= FLOOR_OF[own]:
            yield line, f"{own} -> {other}"


def found() -> list[tuple[str, str]]:
    """Place and arrow of every import in the package that does not point down."""
    return [
        (f"{path.relative_to(ROOT)}:{line}", arrow)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "__init__.py"
        for line, arrow in upward(path.read_text(), module_of(path))
    ]


def test_dependencies_point_down():
    wrong = [f"{place}: {arrow}" for place, arrow in found()]
    assert not wrong, "\n".join([*wrong, f"allowed is only down: {RULE}"])


def test_every_room_has_a_floor():
    rooms = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert rooms - {"__init__", "__main__"} <= FLOOR_OF.keys(), "give it a place in FLOORS"


def test_contributing_says_the_same():
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
    assert f"Dependencies point down: {RULE} -> csrc." in text


@pytest.mark.parametrize(
    "source",
    [
        "import emorl.training",
        "import emorl.training.trainer as trainer",
        "from emorl import training",
        "from emorl.training import GECO",
        "from ..training import GECO",
        "from .. import training",
        "def f():\n    from emorl.training.trainer import Trainer",
        "if TYPE_CHECKING:\n    from emorl.training import GECO",
        "importlib.import_module('emorl.training.trainer')",
        "from emorl import info, training",
    ],
)
def test_an_arrow_up_is_found_in_every_form(source):
    arrows = [arrow for _, arrow in upward(source, "emorl.nn.posterior")]
    assert "nn -> training" in arrows
    assert not [*upward(source, "emorl.cli.train")], "down is allowed"


def test_rooms_of_a_floor_are_strangers():
    source = "import torch\n\nfrom emorl.data import open_dataset"
    assert [*upward(source, "emorl.compat")] == [(3, "compat -> data")]
    assert not [*upward("from emorl.report.html import write_report", "emorl.report.__init__")]
