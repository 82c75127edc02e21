"""IODINE against a plain oracle, published facts and its own promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from iodine_testing import DEEPMIND, TINY, form, some_images, tiny

from emorl.data import open_dataset
from emorl.evaluation import evaluate
from emorl.metrics import mean_squared_error
from emorl.models import IODINE, IODINEConfig, load_model
from emorl.models.iodine import plain
from emorl.training import GECO
from emorl.training.config_file import find_config, load_config
from emorl.training.optimizers import make_optimizers

VARIANTS = {
    "authors": {},
    "authors, joint": {"likelihood": "mixture_joint"},
    "authors, logistic": {"likelihood": "logistic", "refinement_steps": 1},
    "authors, no refinement": {"refinement_steps": 0},
    "authors, chunks": {"score_chunk": 4},
    "authors, kept": {"keep_activations": True},
    "authors, compiled": {"backend": "auto"},
    "deepmind": DEEPMIND,
    "deepmind, gaussian, compiled": {
        **DEEPMIND,
        "likelihood": "mixture_joint",
        "coordinates": "linear",
        "backend": "auto",
    },
    "deepmind, per channel": {**DEEPMIND, "likelihood": "mixture", "encoder_kernel": 3},
    "deepmind, no lstm": {**DEEPMIND, "lstm_width": None, "refinement_steps": 3},
    "deepmind, chunks": {**DEEPMIND, "score_chunk": 1},
    "deepmind, kept": {**DEEPMIND, "keep_activations": True},
}


def gradients(model: IODINE, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("objective", ["elbo", "beta", "geco"])
def test_objective_equals_plain_autograd(changes: dict[str, object], objective: str) -> None:
    model, images = tiny(**changes), some_images()
    geco = GECO(-1.3, moving_average=-70.0, raw_multiplier=0.8) if objective == "geco" else None
    kl_weight = 0.3 if objective == "beta" else 1.0

    torch.manual_seed(5)
    loss = model.objective(images, geco=geco, kl_weight=kl_weight).loss
    torch.manual_seed(5)
    expected = plain.objective(model, images, geco=geco, kl_weight=kl_weight)

    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    ours, theirs = gradients(model, loss), gradients(model, expected)
    for name, gradient in ours.items():
        tolerance = 1e-9 * float(theirs[name].abs().max())
        assert float((gradient - theirs[name]).abs().max()) <= tolerance, name


@pytest.mark.parametrize(("side", "count"), [(64, 1_440_676), (96, 2_751_396), (128, 4_586_404)])
def test_parameter_count_of_the_authors_form(side: int, count: int) -> None:
    """2,751,396 is published; 1.44 and 4.59 million follow from the flattened images."""
    model = IODINE(IODINEConfig(image_size=(side, side)))
    assert sum(p.numel() for p in model.parameters()) == count


def test_parameter_count_of_the_deepmind_form() -> None:
    model = IODINE(load_config(find_config("clevr6", "iodine")).network)
    decoder = 67 * 64 * 9 + 64 + 3 * (64 * 64 * 9 + 64) + 64 * 4 * 9 + 4
    encoder = 18 * 64 * 9 + 64 + 3 * (64 * 64 * 9 + 64) + 64 * 256 + 256 + 256 * 256 + 256
    lstm = 4 * 256 * (256 + 4 * 64 + 1 + 256) + 2 * 4 * 256  # PyTorch has two biases, Sonnet one
    head, initial, norms = 256 * 128 + 128, 128, 2 * (3 + 1 + 1 + 1 + 128)
    total = decoder + encoder + lstm + head + initial + norms
    assert sum(p.numel() for p in model.parameters()) == total == 1_178_192


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("clevr6", 18),
        ("clevr6-96-authors", 16),
        ("multi_dsprites", 24),
        ("tetrominoes", 24),
        ("tetrominoes-laptop", 16),
        ("smoke", 16),
    ],
)
def test_configurations_that_come_along_build_a_model(name: str, channels: int) -> None:
    run = load_config(find_config(name, "iodine"))
    assert run.model == "iodine"
    assert IODINE(run.network).inputs.channels == channels


def test_initialisation_is_the_published_one() -> None:
    model = IODINE().requires_grad_(False)
    xavier = 0.02 * (2 / (32 * 25 + 32 * 25)) ** 0.5
    assert float(model.decoder.convolutions[1].weight.std()) == pytest.approx(xavier, rel=0.05)
    assert float(model.refinement.convolutions[1].weight.std()) == pytest.approx(xavier, rel=0.05)
    assert float(model.refinement.cell.weight_hh.abs().max()) == pytest.approx(128**-0.5, rel=0.01)
    assert model.initial.tolist() == [[0.0] * 64 + [1.0] * 64]

    model = IODINE(load_config(find_config("clevr6", "iodine")).network).requires_grad_(False)
    weight, cell = model.decoder.convolutions[1].weight, model.refinement.cell
    deviation = (64 * 9) ** -0.5
    assert float(weight.std()) == pytest.approx(0.88 * deviation, rel=0.02)  # for being truncated
    assert float(weight.abs().max()) <= 2 * deviation
    assert float(cell.weight_ih.abs().max()) <= 2 * (513 + 256) ** -0.5
    assert float(cell.bias_ih[256:512].mean()) == pytest.approx(1, abs=0.01)
    assert 0 < float(model.initial.abs().max()) <= (3 / 128) ** 0.5


@form
def test_slots_are_interchangeable(form: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, order = tiny(**form), some_images(), torch.tensor([2, 0, 1])
    noise = [torch.randn(2, 3, 5, dtype=torch.float64) for _ in range(3)]

    def decompose(order: torch.Tensor) -> torch.Tensor:
        draws = iter(noise)
        monkeypatch.setattr(torch, "randn", lambda *_, **__: next(draws)[:, order].flatten(0, 1))
        return model(images).components

    expected = decompose(torch.arange(3))
    assert float((expected[:, 0] - expected[:, 1]).abs().max()) > 1e-3
    torch.testing.assert_close(decompose(order), expected[:, order])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("steps", [0, 1, 3])
@form
def test_batch_slots_and_steps_are_free(form: dict, batch: int, slots: int, steps: int) -> None:
    model = IODINE(IODINEConfig(**{**TINY, **form}))
    images = torch.rand(batch, 3, 9, 8)
    result = model.objective(images, num_slots=slots, refinement_steps=steps)
    result.loss.backward()
    assert result.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    names = [f"{term}_{i}" for term in ("nll", "kl") for i in range(steps + 1)]
    assert [*result.terms] == names
    assert all(term.shape == (batch,) for term in result.terms.values())
    torch.testing.assert_close(result.nll, result.terms[f"nll_{steps}"].mean())
    torch.testing.assert_close(result.kl, result.terms[f"kl_{steps}"].mean())
    decomposition = model(images, num_slots=slots, refinement_steps=steps, details=True)
    assert decomposition.masks.shape == (batch, slots, 1, 9, 8)
    assert decomposition.components.shape == (batch, slots, 3, 9, 8)
    assert float(decomposition.components.min()) >= 0
    assert float(decomposition.components.max()) <= 1
    assert decomposition.slots.shape == (batch, slots, 5)
    torch.testing.assert_close(decomposition.masks.sum(1), torch.ones(batch, 1, 9, 8))
    names = [stage.name for stage in decomposition.stages]
    assert names == ["start", *(f"refinement {i}" for i in range(1, steps + 1))]
    last = decomposition.stages[-1].decomposition
    torch.testing.assert_close(last.reconstruction, decomposition.reconstruction)


def test_averaging_all_pixels_frees_the_image_size() -> None:
    model = IODINE(IODINEConfig(**{**TINY, **DEEPMIND}))
    assert model(torch.rand(1, 3, 12, 7)).masks.shape == (1, 3, 1, 12, 7)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("keep", [False, True])
@form
def test_inference_gives_the_objective_numbers_in_every_mode(
    form: dict, keep: bool, mode: type
) -> None:
    model, images = tiny(**form, keep_activations=keep), some_images()
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


@form
def test_frozen_model_still_refines(form: dict) -> None:
    model, images = tiny(**form), some_images()
    torch.manual_seed(0)
    expected = model.objective(images)
    torch.manual_seed(0)
    frozen = model.requires_grad_(False).objective(images)
    torch.testing.assert_close(frozen.loss.detach(), expected.loss.detach())


def test_inference_refines_with_the_loss_weights_of_training() -> None:
    model, images = tiny(), some_images()
    torch.manual_seed(2)
    trained = model.objective(images, kl_weight=50.0)
    assert model.loss_weights.tolist() == [1.0, 50.0]
    torch.manual_seed(2)
    torch.testing.assert_close(model(images).masks, trained.decomposition.masks)
    torch.manual_seed(2)
    unweighted = model.eval().objective(images)
    assert not torch.allclose(unweighted.decomposition.masks, trained.decomposition.masks)
    assert model.loss_weights.tolist() == [1.0, 50.0]


@form
def test_bfloat16_is_finite(form: dict) -> None:
    model = IODINE(IODINEConfig(**{**TINY, **form}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.objective(torch.rand(2, 3, 9, 8)).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@form
def test_four_scenes_are_learnt(form: dict) -> None:
    """With the same noise at every step, which leaves nothing but the scenes to learn."""
    images = open_dataset("tetrominoes").__getitems__(range(4)).image[:, :, 1::3, 1::3]
    small = {
        "image_size": (12, 12),
        "num_slots": 4,
        "slot_dim": 16,
        "refinement_steps": 1,
        "decoder_layers": 3,
        "decoder_kernel": 3,
        "decoder_padding": 1,
        "decoder_final_kernel": 3,
        "decoder_channels": 16,
        "encoder_channels": 8,
        "encoder_stride": 1,
        "pooling": "flatten",
        "code_width": 16,
        "lstm_width": 16,
        "init_gain": None if form else 1.0,
        "init_raw": 0.0,
        "backend": "auto",
    }
    coarse = {} if form else {"likelihood": "mixture_joint", "sigma": 0.3}
    torch.manual_seed(0)
    model = IODINE(IODINEConfig(**{**TINY, **form, **small, **coarse}))
    optimizers = make_optimizers(model.parameters(), "muon", 1e-2)
    for _ in range(100):
        model.zero_grad()
        noise = torch.Generator().manual_seed(0)
        objective = model.objective(images, kl_weight=0.1, generator=noise)
        objective.loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    error = mean_squared_error(images / 255, objective.decomposition.reconstruction).mean()
    black = mean_squared_error(images / 255, torch.zeros(4, 3, 12, 12)).mean()
    assert float(error) < 0.6 * float(black)


def test_evaluation_tells_the_last_step_of_each_image() -> None:
    model = IODINE(IODINEConfig(**{**TINY, "image_size": (35, 35)}))
    metrics = evaluate(model, open_dataset("tetrominoes"), images=4, batch_size=2)["metrics"]
    for name in ("nll", "kl"):
        assert metrics[name] == metrics[f"{name}_2"] != metrics[f"{name}_0"]


def test_global_noise_is_left_alone_when_a_generator_is_given() -> None:
    model, images = tiny(), some_images()
    before = torch.get_rng_state()
    losses = [
        model.objective(images, generator=torch.Generator().manual_seed(9)).loss for _ in range(2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert losses[0] == losses[1]


@form
def test_save_and_load(form: dict, tmp_path: Path) -> None:
    model = IODINE(IODINEConfig(**{**TINY, **form}))
    model.loss_weights.copy_(torch.tensor([2.0, 0.5]))
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, IODINE)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("size", "arguments", "message"),
    [
        ((3, 9, 8), {}, r"expected \[B, 3, H, W\], got \[3, 9, 8\]"),
        ((1, 3, 9, 8), {"num_slots": 0}, "num_slots: expected 1 or more, got 0"),
        ((1, 3, 9, 8), {"refinement_steps": -1}, "refinement_steps: expected 0 or more, got -1"),
        (
            (1, 3, 9, 9),
            {},
            "images: size fixed by the network, expected 9x8, got 9x9",
        ),
    ],
)
def test_impossible_inputs(size: tuple[int, ...], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IODINE(IODINEConfig(**TINY))(torch.rand(size), **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": "all"}, "inputs: expected one of authors, deepmind, got all"),
        ({"likelihood": "gaussian"}, "likelihood: expected one of .*logistic.*, got gaussian"),
        ({"pooling": "max"}, "pooling: expected one of"),
        ({"coordinates": "polar"}, "coordinates: expected one of"),
        ({"prior": "normal"}, "prior: expected one of"),
        ({"rgb_activation": "tanh"}, "rgb_activation: expected one of"),
        ({"step_weights": "flat"}, "step_weights: expected one of"),
        ({"sigma": 0.0}, "sigma must be positive, got 0.0"),
        ({"lstm_width": 0}, "lstm_width must be positive, got 0"),
        ({"encoder_stride": 0}, "encoder_stride must be positive, got 0"),
        ({"score_chunk": 0}, "score_chunk must be positive, got 0"),
        ({"refinement_steps": -1}, "refinement_steps must not be negative, got -1"),
        ({"decoder_kernel": 4}, "decoder_kernel must be odd, got 4"),
        ({"encoder_kernel": 2}, "encoder_kernel must be odd, got 2"),
        ({"decoder_final_kernel": 2}, "decoder_final_kernel must be odd, got 2"),
        (
            {"decoder_padding": 3},
            "decoder_padding must be less than half of decoder_kernel, 5, got 3",
        ),
        (
            {"image_size": (3, 8)},
            r'image_size: pooling "flatten" expects sides of more than 3, got \(3, 8\)',
        ),
    ],
)
def test_impossible_configurations(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IODINEConfig(**{**TINY, **changes})
