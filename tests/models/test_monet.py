"""MONet against a plain oracle, its published sizes and its own promises."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from emorl.data import open_dataset
from emorl.models import MONet, MONetConfig, load_model
from emorl.models.monet import plain
from emorl.models.monet.component_vae import ComponentVAE
from emorl.models.monet.unet import UNet
from emorl.report.pictures import write_pictures
from emorl.training import GECO
from emorl.training.config_file import find_config, load_config
from emorl.training.optimizers import make_optimizers

TINY = {
    "image_size": (9, 11),
    "num_slots": 3,
    "slot_dim": 3,
    "unet_channels": (3, 4, 5),
    "encoder_channels": (3, 4),
    "decoder_channels": 4,
    "sigma_background": 0.4,
    "sigma_foreground": 0.6,
}
OFFICIAL = ["clevr6", "multi_dsprites", "tetrominoes"]


def tiny(**changes: object) -> MONet:
    """A small model in float64 whose weights are all far from zero."""
    model = MONet(MONetConfig(**{**TINY, **changes})).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(0.3 * noise)
    return model


def gradients(model: MONet, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


VARIANTS = [
    {},
    {"backend": "reference"},
    {"likelihood": "mixture"},
    {"rgb_activation": "sigmoid"},
    {"num_slots": 1},
    {"image_size": (8, 16), "beta": 0.0, "gamma": 2.0},
    {"unet_channels": (4,), "image_size": (5, 7)},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(c) or "default")
def test_objective_equals_the_formulas(changes: dict[str, object]) -> None:
    model = tiny(**changes)
    images = torch.rand(2, 3, *model.config.image_size, dtype=torch.float64)
    torch.manual_seed(5)
    found = model.objective(images, kl_weight=0.7)
    torch.manual_seed(5)
    expected, terms = plain.objective(model, images, model.config.num_slots, kl_weight=0.7)

    torch.testing.assert_close(found.loss, expected, rtol=1e-11, atol=0)
    assert set(found.terms) == {"nll", "kl", "mask_kl"}
    for name, values in terms.items():
        torch.testing.assert_close(found.terms[name], values.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.nll, terms["nll"].detach().mean())
    torch.testing.assert_close(found.kl, terms["kl"].detach().mean())
    ours, theirs = gradients(model, found.loss), gradients(model, expected)
    scale = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in ours.items():
        largest = float(theirs[name].abs().max())
        tolerance = 1e-9 * largest + 1e-13 * scale  # some gradients are exactly zero in theory
        assert float((gradient - theirs[name]).abs().max()) <= tolerance, name


@pytest.mark.parametrize("num_slots", [1, 2, 5])
def test_any_number_of_slots_at_call_time(num_slots: int) -> None:
    model, images = tiny(), torch.rand(2, 3, 9, 11, dtype=torch.float64)
    torch.manual_seed(3)
    loss = model.objective(images, num_slots=num_slots).loss
    torch.manual_seed(3)
    torch.testing.assert_close(loss, plain.objective(model, images, num_slots)[0])
    result = model(images, num_slots=num_slots)
    expected = torch.stack(plain.masks(model, images, num_slots), dim=1)
    torch.testing.assert_close(result.masks, expected.detach())
    torch.testing.assert_close(result.masks.sum(1), torch.ones(2, 1, 9, 11).double())
    assert result.components.shape == (2, num_slots, 3, 9, 11)
    assert result.slots.shape == (2, num_slots, 3)


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_masks_of_extreme_logits_are_finite_and_sum_to_one(logit: float) -> None:
    model = MONet(MONetConfig(**{**TINY, "num_slots": 5}))
    with torch.no_grad():
        model.attention.output.weight.zero_()
        model.attention.output.bias.fill_(logit)
    objective = model.objective(torch.rand(2, 3, 9, 11))
    assert objective.loss.isfinite()
    for parameter in gradients(model, objective.loss).values():
        assert parameter.isfinite().all()
    taker = 0 if logit > 0 else 4  # the first slot takes all, or leaves all to the last
    masks = objective.decomposition.masks
    assert masks.sum(dim=1).eq(1).all()
    assert masks[:, taker].eq(1).all()


def test_parameter_count_is_that_of_the_published_networks() -> None:
    down = 9 * (4 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 64)  # 3x3 kernels without bias
    up = 9 * (128 * 64 + 128 * 64 + 128 * 32 + 64 * 32 + 64 * 32)  # each also sees its skip
    norms = 2 * (32 + 32 + 64 + 64 + 64) + 2 * (64 + 64 + 32 + 32 + 32)  # scale and shift
    pixels = 4 * 4 * 64  # of the bottleneck, between 128 hidden units
    bottleneck = (pixels * 128 + 128) + (128 * 128 + 128) + (128 * pixels + pixels)
    attention = down + up + norms + bottleneck + 32 + 1  # the 1x1 convolution to a logit
    convolutions = 9 * (4 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 32 + 32 + 64 + 64
    encoder = convolutions + (4 * 4 * 64 * 256 + 256) + (256 * 32 + 32)  # mean, raw variance: 16
    decoder = 9 * (18 * 32 + 3 * 32 * 32) + 4 * 32 + (32 * 4 + 4)  # 18 = slot, x and y
    model = MONet()
    assert sum(p.numel() for p in model.attention.parameters()) == attention
    assert sum(p.numel() for p in model.parameters()) == attention + encoder + decoder
    # At 128 x 128: one more block of 32 channels each way, and 8 x 8 pixels for the encoder.
    larger = MONet(load_config(find_config("clevr6", "monet")).network)
    more = 9 * (32 * 32 + 64 * 32) + 2 * (32 + 32) + (8 * 8 - 4 * 4) * 64 * 256
    assert sum(p.numel() for p in larger.parameters()) == attention + encoder + decoder + more


def test_the_first_slot_alone_has_the_background_sigma() -> None:
    images = torch.rand(2, 3, 9, 11, dtype=torch.float64)

    def nll(num_slots: int, **sigmas: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        model = tiny(**sigmas)
        model.attention.output.weight.data.zero_()
        model.attention.output.bias.data.fill_(-1e4)  # all pixels to the last slot
        return model.objective(images, num_slots=num_slots, generator=generator).nll

    for num_slots, decisive, idle in (
        (1, "sigma_background", "sigma_foreground"),
        (3, "sigma_foreground", "sigma_background"),
    ):
        assert nll(num_slots, **{idle: 0.1}) == nll(num_slots)
        assert not torch.isclose(nll(num_slots, **{decisive: 0.1}), nll(num_slots))


def test_details_show_the_masks_after_each_pass() -> None:
    model, images = tiny(num_slots=4), torch.rand(2, 3, 9, 11, dtype=torch.float64)
    masks = model(images).masks[:, :, 0]
    passes = model(images, details=True).attention
    assert passes is not None
    assert passes.shape == (2, 3, 4, 9, 11)
    torch.testing.assert_close(passes[:, 2], masks)
    for number in (1, 2):  # a pass less: its last slot still holds what the next ones will take
        shorter = model(images, num_slots=number + 1).masks[:, :, 0]
        torch.testing.assert_close(passes[:, number - 1, : number + 1], shorter)
        assert passes[:, number - 1, number + 1 :].eq(0).all()
    assert model(images).attention is None
    assert model(images, num_slots=1, details=True).attention is None


def test_pictures_of_a_decomposition(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 9, 11)
    result = MONet(MONetConfig(**TINY))(images, details=True)
    written = [path.name for path in write_pictures(tmp_path, images, result)]
    assert written == ["decomposition.png", "masks.png", "attention.png"]


def test_reconstruction_mixes_components_that_are_colours() -> None:
    images = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    for activation in ("none", "sigmoid"):
        model = tiny(rgb_activation=activation)
        model.component.decoder.output.bias.data[0] = 5.0  # bright red: 5, or nearly 1
        result = model(images)
        assert 0 <= float(result.components.min()) < float(result.components.max()) <= 1
        mixed = (result.masks * result.components).sum(1)
        torch.testing.assert_close(result.reconstruction, mixed)


def test_initial_samples_are_as_noisy_as_asked_for() -> None:
    images = torch.rand(4, 3, 9, 11)
    for bias, expected in ((0.0, 0.83), (-3.0, 0.22)):  # sqrt(softplus(bias))
        model = MONet(MONetConfig(**{**TINY, "init_raw_bias": bias}))
        scale = model.component.encode(images, torch.zeros(4, 1, 9, 11)).scale
        assert float(scale.mean().detach()) == pytest.approx(expected, rel=0.15)


def test_four_images_are_learnt_by_heart() -> None:
    images = open_dataset("tetrominoes").__getitems__(range(4)).image
    small = {"unet_channels": (4, 4, 8), "encoder_channels": (8, 8, 8), "decoder_channels": 8}
    start = {"init_raw_bias": -3.0, "slot_dim": 8}
    model = MONet(MONetConfig(image_size=(35, 35), num_slots=4, **small, **start))
    optimizers = make_optimizers(model.parameters(), "muon", 1e-2)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(80):
        objective = model.objective(images, generator=generator, kl_weight=0.1)
        objective.loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(objective.loss.detach()))
    least = 3 * 35 * 35 * math.log(0.09)  # of the likelihood; black images alone give 7,000 more
    assert losses[-1] - least < (losses[0] - least) / 4


def test_bfloat16_is_finite_and_near() -> None:
    model, images = MONet(MONetConfig(**TINY)), torch.rand(2, 3, 9, 11)
    exact = model.objective(images, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.objective(images, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=0.02, atol=0)
    assert rounded.decomposition.masks.dtype == torch.float32
    assert rounded.decomposition.slots.dtype == torch.float32
    for name, gradient in gradients(model, rounded.loss).items():
        assert gradient.isfinite().all(), name


def test_noise_comes_from_the_generator_alone() -> None:
    model, images = tiny(), torch.rand(2, 3, 9, 11, dtype=torch.float64)
    before = torch.get_rng_state()
    first, again, other = (
        model.objective(images, generator=torch.Generator().manual_seed(seed)) for seed in (9, 9, 8)
    )
    used = model(images, generator=torch.Generator().manual_seed(9))
    assert torch.equal(before, torch.get_rng_state())
    assert first.loss == again.loss != other.loss
    assert torch.equal(used.slots, first.decomposition.slots)
    assert torch.equal(used.components, first.decomposition.components)


def test_a_score_has_the_loss_without_a_graph() -> None:
    model, images = tiny(), torch.rand(2, 3, 9, 11, dtype=torch.float64)
    torch.manual_seed(4)
    trained = model.objective(images)
    torch.manual_seed(4)
    scored = model.score(images)
    assert scored.loss == trained.loss
    assert not scored.loss.requires_grad
    results = [trained.nll, trained.kl, *trained.terms.values(), trained.decomposition.masks]
    assert not any(result.requires_grad for result in results)


def test_bytes_are_scaled() -> None:
    model = MONet(MONetConfig(**TINY))
    images = torch.randint(0, 256, (1, 3, 9, 11), dtype=torch.uint8)
    torch.testing.assert_close(model(images).masks, model(images / 255).masks)


def test_save_and_load(tmp_path: Path) -> None:
    model = MONet(MONetConfig(**TINY))
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, MONet)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_configurations_are_the_published_settings(name: str) -> None:
    config = load_config(find_config(name, "monet"))
    n, t = config.network, config.trainer
    assert (n.slot_dim, n.encoder_channels, n.decoder_channels) == (16, (32, 32, 64, 64), 32)
    assert (n.sigma_background, n.sigma_foreground, n.beta, n.gamma) == (0.09, 0.11, 0.5, 0.5)
    assert (n.likelihood, n.rgb_activation, n.init_raw_bias) == ("mixture_joint", "none", 0.0)
    assert (t.optimizer, t.learning_rate, t.batch_size) == ("rmsprop", 1e-4, 64)
    assert (t.steps, t.warmup_steps, t.decay_steps) == (1_000_000, 0, None)
    assert (t.clip_norm, t.geco, t.curriculum) == (None, None, {})
    assert (n.image_size, n.num_slots, n.unet_channels) == {
        "clevr6": ((128, 128), 7, (32, 32, 32, 64, 64, 64)),
        "multi_dsprites": ((64, 64), 6, (32, 32, 64, 64, 64)),
        "tetrominoes": ((35, 35), 4, (32, 32, 64, 64)),
    }[name]


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (torch.rand(3, 9, 11), {}, r"expected \[B, 3, H, W\], got \[3, 9, 11\]"),
        (2 * torch.ones(1, 3, 9, 11), {}, r"expected floats in \[0, 1\], got \[2, 2\]"),
        (torch.rand(1, 3, 11, 9), {}, "images: size fixed by the network, expected 9x11, got 11x9"),
        (
            torch.rand(1, 3, 8, 11),
            {"num_slots": 1},
            "images: size fixed by the network, expected 9x11, got 8x11",
        ),
        (torch.rand(1, 3, 9, 11), {"num_slots": 0}, "num_slots: expected 1 or more, got 0"),
        (
            torch.rand(1, 3, 9, 11),
            {"refinement_steps": 0},
            "refinement_steps: monet has none, expected None, got 0",
        ),
    ],
)
def test_impossible_inputs(images: torch.Tensor, arguments: dict, message: str) -> None:
    model = MONet(MONetConfig(**TINY))
    for use in (model, model.objective):
        with pytest.raises(ValueError, match=message):
            use(images, **arguments)


def test_a_constraint_is_refused() -> None:
    model = MONet(MONetConfig(**TINY))
    with pytest.raises(ValueError, match="geco: monet is trained without a constraint"):
        model.objective(torch.rand(1, 3, 9, 11), geco=GECO(-1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet_channels": []}, r"unet_channels: expected positive numbers of .* got \(\)"),
        ({"encoder_channels": [8, 0]}, r"encoder_channels: .* got \(8, 0\)"),
        ({"unet_channels": [2] * 5}, "fewer than 5 blocks .* halve 9x11 pixels to a single one"),
        ({"likelihood": "gaussian"}, "likelihood: expected one of mixture_joint, mixture"),
        ({"rgb_activation": "tanh"}, "rgb_activation: expected one of sigmoid, none"),
        ({"sigma_background": 0.0}, "sigma_background must be positive, got 0.0"),
        ({"sigma_foreground": -1.0}, "sigma_foreground must be positive, got -1.0"),
        ({"num_slots": 0}, "num_slots must be positive, got 0"),
        ({"slot_dim": 0}, "slot_dim must be positive, got 0"),
        ({"decoder_channels": 0}, "decoder_channels must be positive, got 0"),
        ({"beta": -0.1}, "beta must not be negative, got -0.1"),
        ({"gamma": -0.1}, "gamma must not be negative, got -0.1"),
    ],
)
def test_impossible_configurations(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MONet(MONetConfig(**{**TINY, **changes}))


def test_the_networks_are_usable_alone() -> None:
    assert UNet(2, (3, 4), (5, 6))(torch.rand(2, 2, 5, 6)).shape == (2, 1, 5, 6)
    vae = ComponentVAE(3, (7, 5), channels=(4, 4), decoder_channels=4)
    posterior = vae.encode(torch.rand(2, 3, 7, 5), torch.zeros(2, 1, 7, 5))
    assert vae.decode(posterior.mean).shape == (2, 4, 7, 5)
