"""Whether a model takes what a curriculum will say, before the first step."""

from __future__ import annotations

from emorl.memory import require_memory, require_slots
from emorl.models import ObjectCentricModel
from emorl.training.config import Curriculum

_NUMBER = 4  # bytes


def require_possible(curriculum: Curriculum, model: ObjectCentricModel, images: int) -> None:
    """Refuse values that the model would refuse in the middle of a run, or that never end.

    Args:
        curriculum: that `check_curriculum` has passed.
        model: that is to be trained.
        images: of a step.

    Raises:
        ValueError: naming the entry of the curriculum.
    """
    for name, stages in curriculum.items():
        for begin, value in stages:
            where = f"trainer.curriculum.{name}: [{begin}, {value}]"
            if name == "kl_weight" and value != 1 and not model.has_kl:
                raise ValueError(f"{where}: {model.name} has no KL term, expected 1, got {value}")
            if name == "num_slots":
                _require_slots(where, int(value), model)
            if name == "refinement_steps":
                if not model.refines:
                    raise ValueError(f"{where}: {model.name} has no refinement steps")
                _require_steps(where, int(value), model, images)
    if model.refines and "refinement_steps" not in curriculum:
        steps = vars(model.config)["refinement_steps"]
        _require_steps("network.refinement_steps", steps, model, images)


def _require_slots(where: str, slots: int, model: ObjectCentricModel) -> None:
    own = model.config.num_slots
    if slots != own and not model.free_slots:
        raise ValueError(f"{where}: fixed by the network, expected {own}, got {slots}")
    try:
        require_slots(slots, model.config.image_size)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _require_steps(where: str, steps: int, model: ObjectCentricModel, images: int) -> None:
    """Each step keeps numbers of its own until the gradient: one of each slot, at the least."""
    least = _NUMBER * images * model.config.num_slots
    require_memory(steps * least, f"{where}: {steps} refinement steps of {images} images")
