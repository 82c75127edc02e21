"""YAML as configurations need it: names and values, each given once, in a file of human size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from emorl.fields import shown

_MOST_BYTES, _MOST_VALUES, _DEEPEST = 2**17, 10_000, 16


def read_file(path: Path) -> dict[str, Any]:
    """The keys and values of a file.

    Raises:
        ValueError: in one line, if it is not YAML, larger or deeper than a configuration can be,
            has a key twice, or holds something else.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path}: expected at most {_MOST_BYTES} bytes, got more")
    try:
        values = read_text(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        got = "an empty file" if values is None else shown(values)
        raise ValueError(f"{path}: expected keys and values, got {got}")
    return values


def read_text(text: str | bytes) -> Any:
    """What a document says.

    `yes`, `no`, `on` and `off`, dates and numbers with a leading 0 are text: what they mean depends
    on what the key expects.

    Raises:
        ValueError: as `read_file`, without the file's name.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"not YAML in line {line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None


def as_text(values: dict[str, Any]) -> str:
    """A document that `read_text`, and other readers of YAML, take for these values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which would not quote the text `1e5`, to it no number."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with unique keys, without tags, and a bound on what it makes."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # of a node: values and depth, by its id

    def scan_flow_scalar_non_spaces(self, double: Any, start_mark: Any) -> Any:
        """A piece of quoted text, whose escapes are characters."""
        try:
            return super().scan_flow_scalar_non_spaces(double, start_mark)
        except (ValueError, OverflowError):
            problem = "an escape beyond the last character, U+10FFFF"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=start_mark) from None

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, if it is within the bounds."""
        event = self.peek_event()
        line = f"line {event.start_mark.line + 1}"
        _require(not getattr(event, "tag", None), f"{line}: expected a value without a tag")
        self._depth += 1
        _require(self._depth <= _DEEPEST, f"{line}: nested more than {_DEEPEST} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._sizes[id(node)] = self._size(node)
        _require(id(node) in self._sizes, f"{line}: an alias inside what it stands for")
        values, depth = self._sizes[id(node)]
        _require(values <= _MOST_VALUES, f"{line}: more than {_MOST_VALUES} values")
        _require(depth <= _DEEPEST, f"{line}: nested more than {_DEEPEST} deep")
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping, if its keys are text and differ."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            is_text = key.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
            _require(is_text, f"line {line}: expected a name as key")
            first = lines.get(key.value)
            _require(first is None, f"{key.value} is given twice, in lines {first} and {line}")
            lines[key.value] = line
        return node

    def _size(self, node: yaml.Node) -> tuple[int, int]:
        """How many values a node stands for, aliases counted as what they repeat, and how deep."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 1
        pairs = isinstance(node, yaml.MappingNode)
        inner = [part for pair in node.value for part in pair] if pairs else node.value
        values, depths = zip((0, 0), *(self._sizes[id(part)] for part in inner), strict=True)
        return 1 + sum(values), 1 + max(depths)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]{0,30}|0x[0-9a-fA-F]{1,16})", [*"-+0123456789"]),
    (
        "float",
        r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9]+[eE][-+]?[0-9]+
        |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)""",
        [*"-+.0123456789"],
    ),
    ("merge", r"<<", ["<"]),
):
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$", re.VERBOSE), _first
        )
