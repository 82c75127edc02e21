"""EfficientMORL against a plain oracle, published facts and its own promises."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from op_testing import allocations

from emorl.models import EfficientMORL, EfficientMORLConfig, load_model
from emorl.models.efficient_morl import plain
from emorl.training import GECO

TINY = {
    "image_size": (9, 11),
    "num_slots": 3,
    "slot_dim": 5,
    "encoder_channels": 6,
    "encoder_layers": 2,
    "decoder": "small",
    "decoder_channels": 4,
    "backend": "reference",
}


def tiny(**changes: object) -> EfficientMORL:
    """A small model in float64 whose weights are all far from zero."""
    model = EfficientMORL(EfficientMORLConfig(**{**TINY, **changes})).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(0.25 * noise)
    return model


def gradients(model: EfficientMORL, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


VARIANTS = [
    {},
    {"refinement_steps": 0},
    {"refinement_steps": 1, "prior": "reversed"},
    {"refinement_steps": 2, "prior": "bottom_up"},
    {"refinement_weighting": "paper"},
    {"gru": "single", "refinement_steps": 1},
    {"likelihood": "mixture"},
    {"decoder": "iodine", "refinement_steps": 1, "decoder_activation": "relu"},
    {"decoder_activation": "elu", "refinement_steps": 1},
    {"decoder": "big", "image_size": (32, 48), "refinement_steps": 1},
    {"stochastic_layers": 1, "refinement_steps": 1},
    {"stochastic_layers": 2, "refinement_steps": 1},
    {"stochastic_layers": 0, "refinement_steps": 2},
    {"score_chunk": 5, "refinement_steps": 2},
]


@pytest.mark.parametrize(
    "changes", VARIANTS, ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()) or "default"
)
@pytest.mark.parametrize("objective", ["elbo", "beta", "geco"])
def test_objective_equals_plain_autograd(changes: dict[str, object], objective: str) -> None:
    model = tiny(**changes)
    images = torch.rand(2, 3, *model.config.image_size, dtype=torch.float64)
    geco = GECO(-1.3, moving_average=-70.0, raw_multiplier=0.8) if objective == "geco" else None
    kl_weight = 0.3 if objective == "beta" else 1.0

    torch.manual_seed(5)
    loss = model.objective(images, geco=geco, kl_weight=kl_weight).loss
    torch.manual_seed(5)
    expected = plain.objective(model, images, geco=geco, kl_weight=kl_weight)

    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    ours, theirs = gradients(model, loss), gradients(model, expected)
    scale = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in ours.items():
        largest = float(theirs[name].abs().max())
        tolerance = 1e-9 * largest + 1e-13 * scale  # some gradients are exactly zero in theory
        assert float((gradient - theirs[name]).abs().max()) <= tolerance, name


def test_chunks_need_less_memory_for_the_same_numbers() -> None:
    images = torch.rand(6, 3, 9, 11, dtype=torch.float64)
    results, largest = [], []
    for chunk in (None, 3):
        model = tiny(decoder_channels=16, score_chunk=chunk, refinement_steps=1)
        results.append(model(images, generator=torch.Generator().manual_seed(0)))
        largest.append(max(allocations(lambda: model.objective(images).loss.backward())))  # noqa: B023
    assert largest[1] * 5 < largest[0]
    torch.testing.assert_close(results[1].masks, results[0].masks, rtol=1e-10, atol=0)
    torch.testing.assert_close(results[1].components, results[0].components, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (EfficientMORLConfig(image_size=(35, 35), slot_dim=32, decoder="small"), 467_238),
        (EfficientMORLConfig(image_size=(96, 96), num_slots=7), 666_502),
        (EfficientMORLConfig(image_size=(96, 96), decoder="big"), 1_031_110),
    ],
    ids=["tetrominoes", "clevr6", "big"],
)
def test_parameter_count_is_the_published_one(config: EfficientMORLConfig, count: int) -> None:
    geco = 2  # the released code counts GECO's two scalars as parameters
    assert sum(p.numel() for p in EfficientMORL(config).parameters()) == count - geco


def test_initialisation_is_the_released_one() -> None:
    model = EfficientMORL()
    model.requires_grad_(False)
    gru = model.posterior.gru
    assert float(gru.weight_hn_2.std()) == pytest.approx(1, abs=0.1)
    assert float(gru.bias_ih.std()) == pytest.approx(1, abs=0.2)
    xavier = 0.02 * math.sqrt(2 / (64 * 25 + 64 * 25))
    assert float(model.encoder.convolutions[1].weight.std()) == pytest.approx(xavier, rel=0.05)
    assert float(model.encoder.position.project.weight.abs().max()) > 0.3  # PyTorch's default
    assert float(model.refinement.cell.weight_hh.abs().max()) == pytest.approx(0.125, rel=0.05)
    assert float(model.decoder.position.project.weight.abs().max()) < 0.02
    dim = model.config.slot_dim
    assert model.posterior.initial.tolist() == [[0.0] * dim + [1.0] * dim]


@pytest.mark.parametrize("decoder", ["small", "big"])
def test_the_position_map_starts_larger_where_asked(decoder: str) -> None:
    weights = {}
    for gain in (1.0, 4.0):
        torch.manual_seed(0)
        config = {**TINY, "decoder": decoder, "image_size": (16, 16), "init_position_gain": gain}
        weights[gain] = EfficientMORL(EfficientMORLConfig(**config)).state_dict()
    changed = [name for name, w in weights[1.0].items() if not w.equal(weights[4.0][name])]
    assert changed == ["decoder.position.project.weight"]
    assert weights[4.0][changed[0]].equal(4 * weights[1.0][changed[0]])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_batch_slots_and_steps_are_free(batch: int, slots: int, steps: int) -> None:
    model = EfficientMORL(EfficientMORLConfig(**TINY))
    images = torch.rand(batch, 3, 13, 8)
    result = model.objective(images, num_slots=slots, refinement_steps=steps)
    assert result.loss.isfinite()
    assert {*result.terms} == {
        *(f"nll_{i}" for i in range(steps + 1)),
        *(f"kl_layer_{n}" for n in (1, 2, 3)),
        *(f"kl_refinement_{i}" for i in range(1, steps + 1)),
    }
    assert all(term.shape == (batch,) for term in result.terms.values())
    decomposition = model(images, num_slots=slots, refinement_steps=steps, details=True)
    assert decomposition.masks.shape == (batch, slots, 1, 13, 8)
    assert decomposition.components.shape == (batch, slots, 3, 13, 8)
    assert decomposition.slots.shape == (batch, slots, 5)
    assert decomposition.attention is not None
    assert decomposition.attention.shape == (batch, 3, slots, 13, 8)
    torch.testing.assert_close(decomposition.masks.sum(1), torch.ones(batch, 1, 13, 8))
    torch.testing.assert_close(decomposition.attention.sum(2), torch.ones(batch, 3, 13, 8))
    names = [stage.name for stage in decomposition.stages]
    assert names == [f"layer {n}" for n in (1, 2, 3)] + [
        f"refinement {i}" for i in range(1, steps + 1)
    ]
    last = decomposition.stages[-1].decomposition
    torch.testing.assert_close(last.reconstruction, decomposition.reconstruction)


def test_numbers_of_last_step_are_means_of_the_terms() -> None:
    result = tiny().objective(torch.rand(2, 3, 9, 11, dtype=torch.float64))
    torch.testing.assert_close(result.nll, result.terms["nll_3"].mean())
    torch.testing.assert_close(result.kl, result.terms["kl_refinement_3"].mean())
    result = tiny().objective(torch.rand(2, 3, 9, 11, dtype=torch.float64), refinement_steps=0)
    layers = sum(result.terms[f"kl_layer_{n}"] for n in (1, 2, 3))
    torch.testing.assert_close(result.kl, layers.mean())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("layers", [0, 3])
def test_inference_gives_the_objective_numbers_in_every_mode(
    mode: type, steps: int, layers: int
) -> None:
    model = tiny(refinement_steps=steps, stochastic_layers=layers)
    images = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    torch.manual_seed(3)
    expected = model.objective(images)
    with mode():
        torch.manual_seed(3)
        decomposition = model(images)
        torch.manual_seed(3)
        scored = model.score(images)
    torch.testing.assert_close(decomposition.masks, expected.decomposition.masks)
    torch.testing.assert_close(decomposition.components, expected.decomposition.components)
    torch.testing.assert_close(scored.loss, expected.loss.detach())
    torch.testing.assert_close(scored.terms, expected.terms)
    assert not decomposition.reconstruction.requires_grad
    assert not scored.loss.requires_grad


@pytest.mark.parametrize("decoder", ["small", "big"])
def test_inference_without_refinement_compiles_and_exports(decoder: str) -> None:
    model = tiny(decoder=decoder, image_size=(16, 16), backend="auto").eval()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    torch.manual_seed(0)
    expected = model(images, refinement_steps=0)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(model, (images,), {"refinement_steps": 0}).module()
    for variant in (compiled, exported):
        torch.manual_seed(0)
        result = variant(images, refinement_steps=0)
        torch.testing.assert_close(result.masks, expected.masks)
        torch.testing.assert_close(result.components, expected.components)


def test_frozen_model_still_refines() -> None:
    model = tiny()
    images = torch.rand(1, 3, 9, 11, dtype=torch.float64)
    torch.manual_seed(0)
    expected = model(images).reconstruction
    torch.manual_seed(0)
    frozen = model.requires_grad_(False)
    torch.testing.assert_close(frozen(images).reconstruction, expected)


def test_inference_refines_with_the_loss_weights_of_training() -> None:
    model = tiny(refinement_steps=1)
    images = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    torch.manual_seed(2)
    trained = model.objective(images, kl_weight=50.0)
    assert model.loss_weights.tolist() == [1.0, 50.0]
    torch.manual_seed(2)
    torch.testing.assert_close(model(images).masks, trained.decomposition.masks)
    torch.manual_seed(2)
    unweighted = model.eval().objective(images)
    assert not torch.allclose(unweighted.decomposition.masks, trained.decomposition.masks)
    assert model.loss_weights.tolist() == [1.0, 50.0]


def test_global_noise_is_left_alone_when_a_generator_is_given() -> None:
    model = tiny()
    images = torch.rand(1, 3, 9, 11, dtype=torch.float64)
    before = torch.get_rng_state()
    losses = [
        model.objective(images, generator=torch.Generator().manual_seed(9)).loss for _ in range(2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert losses[0] == losses[1]


def test_uint8_images_are_scaled() -> None:
    model = EfficientMORL(EfficientMORLConfig(**TINY))
    images = torch.randint(0, 256, (1, 3, 9, 11), dtype=torch.uint8)
    torch.manual_seed(0)
    from_bytes = model(images).reconstruction
    torch.manual_seed(0)
    torch.testing.assert_close(from_bytes, model(images / 255).reconstruction)


def test_warm_start_keeps_geco_out() -> None:
    model, images = tiny(), torch.rand(1, 3, 9, 11, dtype=torch.float64)
    geco = GECO(-1.3, moving_average=5.0, raw_multiplier=3.0)

    def loss(**arguments: object) -> float:
        torch.manual_seed(0)
        return float(model.objective(images, **arguments).loss.detach())

    assert loss(geco=geco, step=999) == loss()
    assert loss(geco=geco, step=1000) == loss(geco=geco) != loss()
    assert loss(geco=geco, kl_weight=0.0) == loss(kl_weight=0.0)


def test_save_and_load(tmp_path: Path) -> None:
    model = EfficientMORL(EfficientMORLConfig(**TINY))
    model.loss_weights.copy_(torch.tensor([2.0, 0.5]))
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, EfficientMORL)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_loading_what_is_no_model_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json and model\.safetensors missing"):
        load_model(tmp_path)
    EfficientMORL(EfficientMORLConfig(**TINY)).save_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**description, "model": "vae"}))
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="unknown model 'vae', expected one of"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (torch.rand(3, 9, 11), {}, r"expected \[B, 3, H, W\], got \[3, 9, 11\]"),
        (torch.rand(2, 1, 9, 11), {}, r"expected \[B, 3, H, W\], got \[2, 1, 9, 11\]"),
        (torch.rand(0, 3, 9, 11), {}, r"expected one or more, with pixels, got \[0, 3, 9, 11\]"),
        (2 * torch.ones(1, 3, 9, 11), {}, r"expected floats in \[0, 1\], got \[2, 2\]"),
        (torch.ones(1, 3, 9, 11).long(), {}, r"expected uint8 or a float .* got torch.int64"),
        (torch.rand(1, 3, 9, 11), {"num_slots": 0}, "num_slots: expected 1 or more, got 0"),
        (torch.rand(1, 3, 9, 11), {"refinement_steps": -1}, "expected 0 or more, got -1"),
        (torch.rand(1, 3, 9, 11), {"refinement_steps": 1.5}, "expected a whole number, got 1.5"),
    ],
)
def test_impossible_inputs(images: torch.Tensor, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientMORL(EfficientMORLConfig(**TINY))(images, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "large"}, "decoder: expected one of iodine, small, big, got large"),
        ({"decoder": "big"}, "must be multiples of 16, got 9x11"),
        ({"decoder_activation": "gelu"}, "activation: expected one of"),
        ({"decoder": "big", "image_size": (16, 16), "decoder_activation": "elu"}, 'must be "relu"'),
        ({"prior": "forward"}, "prior: expected one of"),
        ({"likelihood": "poisson"}, "likelihood: expected one of"),
        ({"gru": "triple"}, "gru: expected one of"),
        ({"refinement_weighting": "flat"}, "refinement_weighting: expected one of"),
        ({"sigma": 0.0}, "sigma must be positive, got 0.0"),
        ({"score_chunk": 0}, "score_chunk must be positive, got 0"),
        ({"stochastic_layers": -1}, "must not be negative, got -1"),
        ({"image_size": (3, 9, 11)}, "expected .whole number, whole number., got"),
    ],
)
def test_impossible_configurations(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientMORL(EfficientMORLConfig(**{**TINY, **changes}))


def test_big_decoder_says_which_sizes_are_possible() -> None:
    model = tiny(decoder="big", image_size=(32, 32))
    assert model(torch.rand(1, 3, 16, 64).double()).reconstruction.shape == (1, 3, 16, 64)
    with pytest.raises(ValueError, match="must be multiples of 16, got 20x32"):
        model(torch.rand(1, 3, 20, 32).double())


def test_inference_asks_for_no_gradients_of_weights() -> None:
    """Refinement descends with respect to slots; the fused convolution would compute both."""
    model = tiny()
    asked = []
    model.decoder.register_forward_hook(
        lambda decoder, *_: asked.append([p.requires_grad for p in decoder.parameters()])
    )
    model(torch.rand(1, 3, *model.config.image_size, dtype=torch.float64), refinement_steps=1)
    assert asked
    assert not any(map(any, asked))
    assert all(p.requires_grad for p in model.parameters())
