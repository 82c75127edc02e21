"""The training steps and inferences that are timed: of the official configurations."""

from __future__ import annotations

from emorl.bench.steps import ON_GPU, Case, autocast, compile_networks, set_precision, variant_step
from emorl.bench.workers import Step

PARTS = ("forward", "step")
_BATCHES = {"tetrominoes": 4, "multi_dsprites": 2, "clevr6": 2}  # on the CPU; official: 32
_SIDES = {"tetrominoes": 35, "multi_dsprites": 64, "clevr6": 96}  # official


def timed(device: str) -> list[Case]:
    """The cases that are timed on a device, on a GPU at the official batch size."""

    def case(config: str, steps: int, side: int) -> Case:
        batch = 32 if device == "cuda" else _BATCHES[config]
        return Case(config, batch, steps, size=side)

    return [
        *(case(config, steps, side) for config, side in _SIDES.items() for steps in (0, 1, 3)),
        *(case("clevr6", 3, side) for side in (64, 128)),
    ]


def variants(device: str) -> list[str]:
    """The variants that are timed on a device."""
    return [*ON_GPU, "tf32 compiled"] if device == "cuda" else ["float32"]


def name_of(case: Case) -> str:
    """Short, without spaces."""
    return f"{case.config}-{case.size}-B{case.batch}-I{case.steps}"


def make_step(case: Case, part: str, variant: str, device: str) -> Step:
    """The function to time: "forward", an inference, or "step", a training step."""
    model, images = case.build(device)
    if part == "step":
        return variant_step(model, images, variant)
    set_precision(variant)
    if variant.endswith("compiled"):
        compile_networks(model)

    def infer() -> float:
        with autocast(variant, device):
            return float(model.eval()(images).reconstruction.sum())

    return infer
