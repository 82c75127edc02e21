"""Slot Attention against a plain oracle, published facts and its own promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from slot_autoencoder_testing import (
    TINY,
    assert_same_gradients,
    error_left_on_four_scenes,
    gradients,
    tiny,
)

from emorl.data import open_dataset
from emorl.evaluation import evaluate
from emorl.models import SlotAttentionConfig, SlotAttentionModel, load_model
from emorl.models.slot_attention import plain
from emorl.training import GECO

VARIANTS = [
    {},
    {"variant": "efficient_morl"},
    {"iterations": 1},
    {"initial_slots": "learned"},
    {"initial_slots": "learned", "variant": "efficient_morl", "implicit_gradient": True},
    {"implicit_gradient": True},
    {"implicit_gradient": True, "iterations": 1, "variant": "efficient_morl"},
    {"decoder": "big", "image_size": (32, 48)},
    {"decoder": "iodine", "variant": "efficient_morl"},
]


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize(
    "changes", VARIANTS, ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()) or "default"
)
def test_objective_equals_plain_autograd(changes: dict[str, object], backend: str) -> None:
    model = tiny(SlotAttentionModel, backend=backend, **changes)
    images = torch.rand(2, 3, *model.config.image_size, dtype=torch.float64)
    torch.manual_seed(5)
    loss = model.objective(images).loss
    torch.manual_seed(5)
    expected = plain.objective(model, images)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    theirs = gradients(model, expected)
    assert_same_gradients(gradients(model, loss), theirs)
    untrained = {name for name, gradient in theirs.items() if gradient is None}
    initial = {f"initial_slots.{name}" for name, _ in model.initial_slots.named_parameters()}
    assert untrained == (initial if model.config.implicit_gradient else set())


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (SlotAttentionConfig(image_size=(96, 96), variant="efficient_morl"), 890_180),
        (
            SlotAttentionConfig(image_size=(64, 64), decoder="small", variant="efficient_morl"),
            479_204,
        ),
        (
            SlotAttentionConfig(
                image_size=(35, 35), decoder="small", slot_dim=32, variant="efficient_morl"
            ),
            419_236,
        ),
        (SlotAttentionConfig(), 890_180 + 2 * 64),  # one more layer norm
    ],
    ids=["clevr6", "multi_dsprites", "tetrominoes", "original"],
)
def test_parameter_count_is_the_published_one(config: SlotAttentionConfig, count: int) -> None:
    assert sum(p.numel() for p in SlotAttentionModel(config).parameters()) == count


def test_initialisation_is_that_of_the_variant() -> None:
    original = SlotAttentionModel(SlotAttentionConfig(image_size=(32, 32))).requires_grad_(False)
    glorot = (2 / (64 * 25 + 64 * 25)) ** 0.5
    assert float(original.encoder.convolutions[1].weight.std()) == pytest.approx(glorot, rel=0.05)
    assert 0.1 < float(original.initial_slots.raw.abs().max()) <= (6 / 65) ** 0.5
    variant = SlotAttentionModel(SlotAttentionConfig(image_size=(32, 32), variant="efficient_morl"))
    variant.requires_grad_(False)
    weights = (variant.encoder.convolutions[1].weight, variant.decoder.convolutions[1].weight)
    for weight in weights:
        assert float(weight.std()) == pytest.approx(0.02 * glorot, rel=0.05)
    slots = variant.initial_slots(2000, 1, torch.Generator().manual_seed(0))
    assert float(slots.mean()) == pytest.approx(0, abs=0.02)
    assert float(slots.std()) == pytest.approx(1.146, abs=0.01)


def test_slots_are_equivariant_to_permutations() -> None:
    model = tiny(SlotAttentionModel, initial_slots="learned", num_slots=4)
    images = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    before = model(images)
    loss = model.objective(images).loss
    order = [2, 0, 3, 1]
    model.initial_slots.slots.data = model.initial_slots.slots.data[order]
    after = model(images)
    for name in ("masks", "components", "slots"):
        torch.testing.assert_close(
            getattr(after, name), getattr(before, name)[:, order], rtol=1e-10, atol=1e-12
        )
    assert not torch.allclose(after.slots, before.slots)
    torch.testing.assert_close(model.objective(images).loss, loss, rtol=1e-12, atol=0)


def test_it_explains_four_scenes() -> None:
    assert error_left_on_four_scenes(SlotAttentionModel) < 0.5


@pytest.mark.parametrize("variant", ["original", "efficient_morl"])
@pytest.mark.parametrize("implicit", [False, True])
def test_bf16_has_finite_loss_and_gradients(variant: str, implicit: bool) -> None:
    config = {**TINY, "variant": variant, "implicit_gradient": implicit}
    model = SlotAttentionModel(SlotAttentionConfig(**config))
    images = torch.rand(2, 3, 9, 11)
    losses = []
    for enabled in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            torch.manual_seed(0)
            losses.append(model.objective(images).loss)
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=0)
    for name, gradient in gradients(model, losses[0]).items():
        if implicit and name.startswith("initial_slots"):
            assert gradient is None
        else:
            assert gradient is not None, name
            assert gradient.isfinite().all(), name


@pytest.mark.parametrize(("batch", "slots", "iterations"), [(1, 5, 1), (3, 1, 4), (2, 3, None)])
@pytest.mark.parametrize("variant", ["original", "efficient_morl"])
def test_batch_slots_and_iterations_are_free(
    batch: int, slots: int, iterations: int | None, variant: str
) -> None:
    model = SlotAttentionModel(SlotAttentionConfig(**{**TINY, "variant": variant}))
    images = torch.rand(batch, 3, 13, 8)
    torch.manual_seed(0)
    result = model.objective(images, num_slots=slots, iterations=iterations, step=7)
    assert result.terms.keys() == {"squared_error"}
    assert result.terms["squared_error"].shape == (batch,)
    torch.testing.assert_close(result.terms["squared_error"].mean(), result.loss.detach())
    assert (result.nll, result.kl) == (result.loss, 0)
    torch.manual_seed(0)
    whole = model(images, num_slots=slots, iterations=iterations, details=True)
    total = iterations or 3
    assert whole.masks.shape == (batch, slots, 1, 13, 8)
    assert whole.components.shape == (batch, slots, 3, 13, 8)
    assert whole.slots.shape == (batch, slots, 5)
    assert whole.attention is not None
    assert whole.attention.shape == (batch, total, slots, 13, 8)
    torch.testing.assert_close(whole.masks.sum(1), torch.ones(batch, 1, 13, 8))
    torch.testing.assert_close(whole.attention.sum(2), torch.ones(batch, total, 13, 8))
    assert [stage.name for stage in whole.stages] == [f"iteration {i + 1}" for i in range(total)]
    torch.testing.assert_close(whole.stages[-1].decomposition.masks, whole.masks)
    torch.testing.assert_close(result.decomposition.masks, whole.masks)
    assert not whole.reconstruction.requires_grad
    torch.manual_seed(0)
    once = model(images, num_slots=slots, iterations=1)
    torch.testing.assert_close(whole.stages[0].decomposition.slots, once.slots)
    torch.manual_seed(0)
    brief = model(images, num_slots=slots, iterations=iterations)
    assert (brief.attention, brief.stages) == (None, ())
    torch.testing.assert_close(brief.masks, whole.masks)


def test_decompositions_are_colours() -> None:
    """The original's decoder knows no bounds."""
    model = tiny(SlotAttentionModel)
    model.decoder.output.bias.data[:3] = torch.tensor([3.0, -3.0, 0.0])
    model.decoder.output.weight.data[:3] *= 0.01
    result = model(torch.rand(2, 3, 9, 11, dtype=torch.float64))
    red, green, blue = result.components.unbind(2)
    assert (red == 1).all()
    assert (green == 0).all()
    torch.testing.assert_close(blue, torch.full_like(blue, 0.5), rtol=0, atol=0.1)
    mixture = (result.masks * result.components).sum(1)
    torch.testing.assert_close(result.reconstruction, mixture, rtol=0, atol=0)


def test_inference_compiles_and_exports() -> None:
    model = tiny(SlotAttentionModel).eval()
    images = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    torch.manual_seed(0)
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(model, (images,)).module()
    for variant in (compiled, exported):
        torch.manual_seed(0)
        result = variant(images)
        torch.testing.assert_close(result.masks, expected.masks)
        torch.testing.assert_close(result.components, expected.components)


def test_noise_comes_from_the_generator_alone() -> None:
    model, learned = tiny(SlotAttentionModel), tiny(SlotAttentionModel, initial_slots="learned")
    images = torch.rand(1, 3, 9, 11, dtype=torch.float64)
    before = torch.get_rng_state()
    losses = [
        model.objective(images, generator=torch.Generator().manual_seed(seed)).loss
        for seed in (9, 9, 10)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert losses[0] == losses[1] != losses[2]
    assert learned.objective(images).loss == learned.objective(images).loss
    assert torch.equal(before, torch.get_rng_state())


def test_evaluation_has_the_squared_error_of_each_image() -> None:
    model = SlotAttentionModel(
        SlotAttentionConfig(**{**TINY, "image_size": (35, 35), "variant": "efficient_morl"})
    )
    metrics = evaluate(model, open_dataset("tetrominoes", split="test"), images=4, batch_size=4)[
        "metrics"
    ]
    assert metrics["nll"] == metrics["squared_error"]
    assert metrics["nll"]["std"] > 0
    assert metrics["squared_error"]["mean"] == pytest.approx(
        metrics["mse"]["mean"] * 3 * 35 * 35, rel=1e-5
    )
    assert metrics["kl"]["mean"] == 0


@pytest.mark.parametrize("initial_slots", ["sampled", "learned"])
def test_save_and_load(tmp_path: Path, initial_slots: str) -> None:
    model = SlotAttentionModel(SlotAttentionConfig(**TINY, initial_slots=initial_slots))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, SlotAttentionModel)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_slots": 0}, "num_slots: expected 1 or more, got 0"),
        ({"iterations": 0}, "iterations: expected 1 or more, got 0"),
        ({"refinement_steps": 2}, "refinement_steps: slot_attention has none, expected None,"),
        ({"geco": GECO(-1.0)}, "geco: slot_attention has no KL term, expected None, got a GECO"),
        ({"kl_weight": 0.5}, "kl_weight: slot_attention has no KL term, expected 1, got 0.5"),
    ],
)
def test_impossible_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(SlotAttentionModel).objective(torch.rand(1, 3, 9, 11), **arguments)


def test_impossible_inputs() -> None:
    with pytest.raises(ValueError, match=r"expected \[B, 3, H, W\], got \[2, 1, 9, 11\]"):
        tiny(SlotAttentionModel)(torch.rand(2, 1, 9, 11))
    with pytest.raises(ValueError, match="refinement_steps: slot_attention has none, expected"):
        tiny(SlotAttentionModel)(torch.rand(1, 3, 9, 11), refinement_steps=0)
    with pytest.raises(ValueError, match="num_slots: fixed by the network, expected 3, got 4"):
        tiny(SlotAttentionModel, initial_slots="learned")(torch.rand(1, 3, 9, 11), num_slots=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations must be positive, got 0"),
        ({"initial_slots": "fixed"}, "expected one of sampled, learned, got fixed"),
        ({"variant": "paper"}, "expected one of original, efficient_morl, got paper"),
        ({"decoder": "big"}, "must be multiples of 16, got 9x11"),
        ({"decoder": "large"}, "decoder: expected one of"),
        ({"init_gain": 0.0}, "init_gain must be positive, got 0.0"),
        ({"decoder_channels": 0}, "decoder_channels must be positive, got 0"),
        ({"num_slots": 0}, "num_slots must be positive, got 0"),
        ({"image_size": (9,)}, "expected .whole number, whole number., got"),
    ],
)
def test_impossible_configurations(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlotAttentionModel(SlotAttentionConfig(**{**TINY, **changes}))
