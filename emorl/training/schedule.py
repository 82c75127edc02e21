"""What changes with the training step: the learning rate and the arguments of the objective."""

from __future__ import annotations

from typing import Any

Curriculum = dict[str, list[tuple[int, int | float]]]

_WHOLE_NUMBERS = ("refinement_steps", "num_slots")
SCHEDULABLE = (*_WHOLE_NUMBERS, "kl_weight")


def learning_rate(
    step: int,
    *,
    base: float,
    warmup_steps: int,
    decay_rate: float,
    decay_steps: int | None,
    steps: int,
    cooldown_steps: int,
) -> float:
    """Linear warm-up, exponential decay whose clock starts when the warm-up ends, linear cool-down.

    `base * t / warmup` up to t = warmup, then `base * decay_rate ** ((t - warmup) / decay_steps)`,
    as EfficientMORL was trained; its first step therefore has the rate 0. The cool-down multiplies
    by `(steps - t) / cooldown` over the last steps of the run.

    Args:
        step: optimiser steps done so far, t >= 0.
        base: the rate at the end of the warm-up.
        warmup_steps: length of the warm-up; 0 starts with `base`.
        decay_rate: factor per `decay_steps`.
        decay_steps: None keeps the rate constant after the warm-up.
        steps: of the whole run.
        cooldown_steps: length of the cool-down; 0 has none.

    Returns:
        The rate of the step number `step`, counted from 0.
    """
    if step < warmup_steps:
        return base * step / warmup_steps
    decay = 1.0
    if decay_steps is not None:
        decay = float(decay_rate ** ((step - warmup_steps) / decay_steps))
    return base * decay * min(1.0, (steps - step) / max(1, cooldown_steps))


def objective_arguments(curriculum: Curriculum, step: int) -> dict[str, Any]:
    """Keyword arguments of `model.objective` at a step: for each name, the last value begun.

    Example:
        >>> objective_arguments({"refinement_steps": [(0, 3), (100_000, 1)]}, 99_999)
        {'refinement_steps': 3}
    """
    return {
        name: [value for begin, value in stages if begin <= step][-1]
        for name, stages in curriculum.items()
    }


def check_curriculum(curriculum: Curriculum) -> None:
    """Make sure that every argument has a value at every step.

    Raises:
        ValueError: for a name that cannot be scheduled, a schedule that does not begin at step 0
            or is not in increasing order of steps, and a fraction where a count is expected.
    """
    for name, stages in curriculum.items():
        where = f"trainer.curriculum.{name}"
        if name not in SCHEDULABLE:
            raise ValueError(f"{where}: expected one of {', '.join(SCHEDULABLE)}, got {name}")
        begins = [begin for begin, _ in stages]
        if not begins or begins[0] != 0 or begins != sorted(set(begins)):
            raise ValueError(
                f"{where}: expected [[0, value], [later step, value], ...], got steps {begins}"
            )
        for _, value in stages:
            if value < 0 or (name in _WHOLE_NUMBERS and not isinstance(value, int)):
                kind = "whole number" if name in _WHOLE_NUMBERS else "number"
                raise ValueError(f"{where}: expected a {kind} >= 0, got {value}")
