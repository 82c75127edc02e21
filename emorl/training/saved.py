"""What a checkpoint holds, compared with what it must hold before any of it is used.

Fused optimisers write where the sizes of their parameters tell them to: a state of another shape
would let them write into foreign memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import torch
from torch import Tensor

from emorl.models import ObjectCentricModel
from emorl.models.geco import GECO
from emorl.models.pretrained import first_non_finite
from emorl.runs import checkpoint
from emorl.runs.folder import STATE_FILE, step_of
from emorl.runs.integrity import DamagedError
from emorl.training.optimizers import OptimizerName, make_optimizers

Model = TypeVar("Model", bound=ObjectCentricModel)

_KEYS = ("step", "optimizer", "optimizers", "geco")
_NOT_IN_OLDER = ("precision",)

OptimizerState = dict[int, dict[str, Tensor]]


@dataclass(frozen=True)
class Saved(Generic[Model]):
    """A checkpoint, all of whose parts fit together.

    Attributes:
        folder: the checkpoint's.
        model: on the CPU.
        step: optimiser steps done.
        precision: that it was trained with; None where an older checkpoint does not tell.
        optimizer: name of the optimiser.
        optimizers: for each of `make_optimizers`, parameter's number -> name -> state, on the CPU.
        geco: state of GECO, if it was used.
    """

    folder: Path
    model: Model
    step: int
    precision: str | None
    optimizer: OptimizerName
    optimizers: list[OptimizerState]
    geco: dict[str, float] | None


def read(kind: type[Model], folder: Path) -> Saved[Model]:
    """A checkpoint of a model of class `kind`.

    Raises:
        DamagedError: naming the file and the entry that is missing, odd or not as it was written.
        ValueError: if the model is another one, or another version's.
        OSError: if a file cannot be read.
    """
    model = kind.from_pretrained(folder)
    state = checkpoint.load_state(folder)
    file = folder / STATE_FILE
    _require_keys(file, "", state, _KEYS, _KEYS + _NOT_IN_OLDER)
    _require_values(file, state, step_of(folder))
    name: OptimizerName = state["optimizer"]
    return Saved(
        folder,
        model,
        state["step"],
        state.get("precision"),
        name,
        _optimizer_states(file, state["optimizers"], [*model.parameters()], name),
        state["geco"],
    )


def restore(optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Give an optimiser its state; its settings stay those of this version."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _require_values(file: Path, state: dict[str, Any], step: int) -> None:
    if type(state["step"]) is not int or state["step"] != step:
        raise DamagedError(f"{file}: step: expected {step}, got {state['step']!r}")
    precision = state.get("precision")
    if not isinstance(precision, str | None):
        raise DamagedError(f"{file}: precision: expected a name, got {precision!r}")
    names = get_args(OptimizerName)
    if state["optimizer"] not in names:
        raise DamagedError(
            f"{file}: optimizer: expected one of {[*names]}, got {state['optimizer']!r}"
        )
    if state["geco"] is not None:
        keys = {*GECO(0.0).state_dict()}
        _require_keys(file, "geco", state["geco"], keys, keys)
        for name, value in state["geco"].items():
            if type(value) not in (float, int) or not math.isfinite(value):
                raise DamagedError(f"{file}: geco.{name}: expected a finite number, got {value!r}")


def _optimizer_states(
    file: Path, saved: Any, parameters: Sequence[Tensor], name: OptimizerName
) -> list[OptimizerState]:
    """The states, laid out in memory as these optimisers do it themselves."""
    expected = [optimizer.state_dict() for optimizer in _after_a_step(parameters, name)]
    if not isinstance(saved, list) or len(saved) != len(expected):
        raise DamagedError(f"{file}: optimizers: expected a list of {len(expected)}")
    for number, (found, own) in enumerate(zip(saved, expected, strict=True)):
        key = f"optimizers[{number}]"
        _require_keys(file, key, found, own.keys(), own.keys())
        _require_groups(file, f"{key}.param_groups", found["param_groups"], own["param_groups"])
        _require_keys(file, f"{key}.state", found["state"], (), own["state"].keys())
    return [
        {
            index: _fitting(
                file, f"optimizers[{number}].state[{index}]", state, own["state"][index]
            )
            for index, state in found["state"].items()
        }
        for number, (found, own) in enumerate(zip(saved, expected, strict=True))
    ]


def _after_a_step(parameters: Sequence[Tensor], name: OptimizerName) -> list[torch.optim.Optimizer]:
    """Optimisers of parameters like these after their first step, which shows their whole state."""
    copies = [torch.zeros_like(p, requires_grad=True) for p in parameters]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    optimizers = make_optimizers(copies, name, 0.0)
    for optimizer in optimizers:
        optimizer.step()
    return optimizers


def _require_groups(file: Path, key: str, found: Any, own: list[dict[str, Any]]) -> None:
    """The parameters' numbers; other settings in the file are not used."""
    numbers = [group["params"] for group in own]
    try:
        fits = [group["params"] for group in found] == numbers
    except (TypeError, KeyError):
        fits = False
    if not fits:
        raise DamagedError(f"{file}: {key}: expected the parameters {numbers}")


def _fitting(file: Path, key: str, found: Any, own: dict[str, Tensor]) -> dict[str, Tensor]:
    _require_keys(file, key, found, own.keys(), own.keys())
    for name, value in own.items():
        given = found[name]
        if not isinstance(given, Tensor):
            raise DamagedError(f"{file}: {key}.{name}: expected a tensor, got {given!r}")
        if (given.dtype, given.shape) != (value.dtype, value.shape):
            raise DamagedError(
                f"{file}: {key}.{name}: expected {value.dtype} {[*value.shape]}, "
                f"got {given.dtype} {[*given.shape]}"
            )
    if bad := first_non_finite(found):
        raise DamagedError(f"{file}: {key}.{bad}: expected finite numbers")
    # A file may give any strides, 0 too; the optimiser writes as if they were its own.
    return {name: value.detach().copy_(found[name]) for name, value in own.items()}


def _require_keys(
    file: Path, key: str, found: Any, needed: Iterable[Any], possible: Iterable[Any]
) -> None:
    where = f"{file}: {key}".removesuffix(": ")
    if not isinstance(found, dict):
        raise DamagedError(f"{where}: expected names and values, got {type(found).__name__}")
    for name in needed:
        if name not in found:
            raise DamagedError(f"{where}: {name} is missing")
    known = {*possible}
    for name in found:
        if name not in known:
            raise DamagedError(f"{where}: unknown entry {name!r}")
