from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from training_fakes import FakeConfig, FakeImages, FakeModel

from emorl.data import Batch
from emorl.evaluation import evaluate
from emorl.models import Decomposition
from emorl.models.base import Request


def test_metrics_are_those_of_the_images(monkeypatch):
    """Against a loop over images with scikit-learn."""
    model, images = FakeModel(FakeConfig(noise=0.0)), FakeImages()
    result = evaluate(model, images, images=20, batch_size=7)
    batch = images.__getitems__(range(20))
    decomposition = model(batch.image)
    scores, errors = [], []
    for i in range(20):
        true, found = batch.mask[i].flatten(), decomposition.labels()[i].flatten()
        if (true > 0).any():
            scores.append(adjusted_rand_score(true[true > 0], found[true > 0]))
        target = batch.image[i].double() / 255
        errors.append((decomposition.reconstruction[i] - target).square().mean().item())
    metrics = result["metrics"]
    assert metrics["fg_ari"]["mean"] == pytest.approx(sum(scores) / len(scores), abs=1e-12)
    assert metrics["mse"]["mean"] == pytest.approx(sum(errors) / 20, rel=1e-6)
    spread = math.sqrt(sum((e - sum(errors) / 20) ** 2 for e in errors) / 20)
    assert metrics["mse"]["std"] == pytest.approx(spread, rel=1e-5)


def test_a_perfect_decomposition_scores_one(monkeypatch):
    images = FakeImages()
    model = FakeModel(FakeConfig(refinement_steps=0))

    def perfect(self: FakeModel, request: Request) -> Decomposition:
        pixels = request.target
        true = images.__getitems__(range(len(pixels))).mask
        masks = torch.stack([true == k for k in range(3)], dim=1).float()
        components = pixels[:, None].expand(-1, 3, -1, -1, -1)
        slots = self.colours.expand(len(pixels), -1, -1)
        return Decomposition((masks * components).sum(1), masks, components, slots)

    monkeypatch.setattr(FakeModel, "_explain", perfect)
    metrics = evaluate(model, images, images=12, batch_size=12)["metrics"]
    for name in ("fg_ari", "ari", "fg_miou", "miou"):
        assert metrics[name]["mean"] == pytest.approx(1.0)
    assert metrics["mse"]["mean"] < 1e-12


def test_images_without_objects_are_excluded_and_counted():
    result = evaluate(FakeModel(), FakeImages(), images=30)
    assert result["metrics"]["fg_ari"]["count"] == 20
    assert result["metrics"]["fg_ari"]["excluded"] == 10
    assert result["metrics"]["ari"]["excluded"] == 0
    assert math.isfinite(result["metrics"]["fg_ari"]["mean"])
    assert any("fg_ari is not defined for 10 images" in note for note in result["notes"])


def test_fewer_images_than_asked_for_are_announced():
    result = evaluate(FakeModel(), FakeImages(length=5), images=320)
    assert result["images"] == 5
    assert "squares has 5 images; 320 were asked for" in result["notes"]


def test_images_without_masks_have_no_segmentation_metrics():
    class Unlabelled(FakeImages):
        def __getitems__(self, indices):
            batch = super().__getitems__(indices)
            return Batch(batch.image, None, {}, batch.index)

    result = evaluate(FakeModel(), Unlabelled(), images=4)
    assert "ari" not in result["metrics"]
    assert "mse" in result["metrics"]
    assert any("has no masks" in note for note in result["notes"])


def test_every_term_has_its_name_and_the_last_step_counts():
    model = FakeModel()
    result = evaluate(model, FakeImages(), images=8, batch_size=4, refinement_steps=2)
    metrics = result["metrics"]
    assert result["refinement_steps"] == 2
    names = {"nll_0", "nll_1", "nll_2", "kl_layer_1", "kl_refinement_1", "kl_refinement_2"}
    assert names <= metrics.keys()
    assert metrics["nll"] == metrics["nll_2"]
    assert metrics["kl"] == metrics["kl_refinement_2"]
    assert evaluate(model, FakeImages(), images=8)["refinement_steps"] == 1


def test_without_refinement_the_layers_are_the_kl():
    result = evaluate(FakeModel(), FakeImages(), images=4, refinement_steps=0)
    assert result["metrics"]["kl"] == result["metrics"]["kl_layer_1"]


def test_the_same_seed_gives_the_same_numbers():
    model, images = FakeModel(), FakeImages()
    torch.manual_seed(1)
    first = evaluate(model, images, images=16, batch_size=8, seed=3)
    torch.manual_seed(2)
    assert evaluate(model, images, images=16, batch_size=8, seed=3) == first
    assert evaluate(model, images, images=16, batch_size=8, seed=4) != first


def test_the_model_and_the_global_generator_are_left_alone():
    model = FakeModel().train()
    state, weights = torch.get_rng_state(), model.colours.detach().clone()
    evaluate(model, FakeImages(), images=4)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.colours, weights)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["images", "batch_size"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        evaluate(FakeModel(), FakeImages(), **{name: 0})


@pytest.mark.parametrize("name", ["images", "batch_size", "seed"])
@pytest.mark.parametrize(("value", "got"), [(2.5, "2.5"), ("3", "'3'"), (True, "true")])
def test_numbers_must_be_whole(name, value, got):
    with pytest.raises(ValueError, match=f"{name}: expected a whole number, got {got}"):
        evaluate(FakeModel(), FakeImages(), **{name: value})


def test_a_model_that_fails_goes_on_in_its_mode():
    model = FakeModel().train()
    with pytest.raises(ValueError, match="num_slots"):
        evaluate(model, FakeImages(), images=4, num_slots=0)
    assert model.training


def test_a_number_that_is_nan_is_no_undefined_one():
    """Of all metrics only those of segmentation may be undefined."""
    model = FakeModel()
    with torch.no_grad():
        model.colours[0, 0] = math.nan
    with pytest.raises(ValueError, match="mse: expected a number for each image, got nan"):
        evaluate(model, FakeImages(), images=4)
