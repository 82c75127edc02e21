"""The step of a case in a variant, as a process builds it; both codes have the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emorl.bench import released
from emorl.bench.step.cases import Case
from emorl.bench.step.variants import (
    FIRST_ORDER,
    RELEASED,
    inference,
    released_optimizer,
    training_step,
    variant_step,
)
from emorl.bench.workers import Step
from emorl.models import EfficientMORLConfig, ObjectCentricModel

TRAINING, INFERENCE = PARTS = ("training step", "inference")
_CHUNKS = 4  # of all slots of a batch, in the variant that scores them in turn


def build(
    case: Case, part: str, variant: str, official: Path | None, device: str
) -> dict[str, Step]:
    """The step of a variant by the part's name; all variants see the same images and noise.

    Args:
        case: the network.
        part: of `PARTS`.
        variant: as `emorl.bench.step.variants` has them.
        official: a checkout of the released code, whose weights both codes have then.
        device: "cpu" or "cuda".
    """
    if variant in (RELEASED, FIRST_ORDER):
        assert official is not None
        return {part: _released_step(case, part, variant, official, device)}
    if variant.endswith("chunked"):
        case = replace(case, chunk=max(1, case.slots * case.batch // _CHUNKS))
    model, images = _ours(case, part, official, device)
    if part == INFERENCE:
        return {part: inference(model, images, variant)}
    return {part: variant_step(model, images, variant, case.run_config().trainer)}


def _ours(
    case: Case, part: str, official: Path | None, device: str
) -> tuple[ObjectCentricModel, Tensor]:
    """Our network, with the weights of the released one if that is there, and images."""
    if official is None or not case.is_released:
        return case.build(device)
    theirs = _released(case, part, official)
    config: Any = case.network()
    model: ObjectCentricModel
    if isinstance(config, EfficientMORLConfig):
        model = released.ours(theirs, released.net_of(config, case.steps))
        model.config.score_chunk = config.score_chunk
    else:
        model = released.our_slot_attention(theirs, config)
    return model.to(device).train(), case.images().to(device)


def _released(case: Case, part: str, official: Path) -> nn.Module:
    """The released network, its weights the same each time.

    The decoder that it begins with makes grey images, by which no two inferences could be told
    apart, so an inference has another.
    """
    torch.manual_seed(0)
    config: Any = case.network()
    if isinstance(config, EfficientMORLConfig):
        model = released.build(official, released.net_of(config, case.steps), case.batch)
    else:
        model = released.build_slot_attention(official, config, case.batch)
    if part == INFERENCE:
        for name, parameter in model.named_parameters():
            if "image_decoder" in name and parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="linear")
    return model


def _released_step(case: Case, part: str, variant: str, official: Path, device: str) -> Step:
    model: Any = _released(case, part, official).to(device)
    images = 2 * case.images().to(device) - 1
    arguments = (None, 0, 1.0) if case.model == "efficient_morl" else ()
    if part == INFERENCE:
        model.eval()
        return lambda: _reconstruct(model, images, arguments, case)
    train = training_step(
        model,
        lambda: model(images, *arguments)["total_loss"],
        [released_optimizer(model)],
        case.run_config().trainer.clip_norm,
    )
    if variant == RELEASED:
        return train

    def with_first_derivatives() -> float:
        with released.first_derivatives():
            return train()

    return with_first_derivatives


def _reconstruct(model: Any, images: Tensor, arguments: tuple[Any, ...], case: Case) -> float:
    """An inference of the released code; the mean of its reconstruction.

    Its refinement differentiates, and so fails without derivatives.
    """
    with torch.set_grad_enabled(case.steps > 0):
        found = model(images, *arguments)
    if case.model == "efficient_morl":
        # The stages of its hierarchy are numbered from 0, and its refinement steps after them.
        config: Any = case.network()
        last = config.stochastic_layers - 1 + case.steps
        components, log_masks = found[f"means_{last}"], found[f"masks_{last}"]
    else:
        components, log_masks = found["x_means"], found["masks"]
    return float((components * log_masks.exp()).sum(1).mean().detach())
