"""What the operators' suite measures, in the order of its importance, and what it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import zip_longest

import torch

from emorl.bench.ops import block, forms, steps
from emorl.bench.ops.block import BLOCKS, Block
from emorl.bench.ops.cases import Work, name_of, works
from emorl.bench.ops.operators import OPERATORS
from emorl.bench.passes import PARTS
from emorl.bench.suite import Options, Record
from emorl.bench.tables import Rows
from emorl.bench.turns import ROUNDING, Group, Variant

MODELS = (*OPERATORS, block.NAME)
_ROUNDINGS = 16  # of half an eps each, in a row, by which the results of forms may differ

Item = Work | Block


def groups(options: Options) -> list[Group]:
    """All that can be measured, in the order of its importance.

    `torch.compile` takes tens of seconds for a case on a CPU. So it comes in groups of its own:
    those of each operator's first case after these, the others last.
    """
    first, *others = _rows(options)
    later = [item for row in others for item in row]
    return [
        _group(item, names, options.device)
        for some in (first, later)
        for compiled in (False, True)
        for item in some
        if (names := _together(item, compiled, options.device))
    ]


def obstacles(options: Options) -> list[str]:
    """A line for each form that cannot run here, with the reason."""
    found = {
        f"{_name(item)}, {variant}: {reason}": None
        for row in _rows(options)
        for item in row
        for variant in _variants(item, options.device)
        if (reason := _obstacle(item, variant, options.device))
    }
    return [*found]


def outline(options: Options) -> Rows:
    """A row for each case: the forms that would run on a device that has everything."""
    rows = [["work", "device", "variants", "parts"]]
    for item in [item for row in _rows(options) for item in row]:
        variants = ", ".join(_variants(item, options.device))
        rows.append([str(item), options.device, variants, ", ".join(_parts(item))])
    return rows


def _rows(options: Options) -> list[list[Item]]:
    """First the first case of all that is chosen, then the second of each, and so on."""
    rows: list[list[Item]] = [[*row] for row in works(options.device, options.models)]
    blocks: list[list[Item]] = [[one] for one in BLOCKS] if block.NAME in options.models else []
    return [[*(row or ()), *(more or ())] for row, more in zip_longest(rows, blocks)]


def _name(item: Item) -> str:
    return item.operator if isinstance(item, Work) else block.NAME


def _parts(item: Item) -> Sequence[str]:
    return OPERATORS[item.operator].parts if isinstance(item, Work) else PARTS


def _variants(item: Item, device: str) -> Sequence[str]:
    """The forms of an operator, or the modules; the first one is what others are compared with."""
    return forms.forms_of(item.operator, device) if isinstance(item, Work) else block.VARIANTS


def _obstacle(item: Item, variant: str, device: str) -> str | None:
    if isinstance(item, Work):
        return forms.obstacle(variant, item.operator, device, item.case)
    return block.obstacle_of(item, variant, device)


def _together(item: Item, compiled: bool, device: str) -> list[str]:
    """The variants that take turns: those without a compiler, or the first of them and the others.

    None, if there is nothing to compile.
    """
    possible = [name for name in _variants(item, device) if not _obstacle(item, name, device)]
    eager = [name for name in possible if "compiled" not in name]
    others = [name for name in possible if name not in eager]
    if not compiled:
        return eager
    return [*eager[:1], *others] if others else []


def _group(item: Item, names: Sequence[str], device: str) -> Group:
    rounding = max(ROUNDING, _ROUNDINGS * torch.finfo(item.dtype).eps / 2)
    variants = {}
    for name in names:
        if isinstance(item, Work):
            build = partial(steps.steps_of, item, name, device, _parts(item))
        else:
            build = partial(block.steps_of, item, name, device)
        variants[name] = Variant(build, rounding=rounding)
    entry: Record = {"work": str(item), "operator": _name(item), "dtype": name_of(item.dtype)}
    if isinstance(item, Work):
        entry["costs"] = {part: item.cost(part)._asdict() for part in _parts(item)}
    is_compiled = any("compiled" in name for name in names)
    return Group(f"{item}{', compiled' * is_compiled}", _parts(item), variants, entry)
