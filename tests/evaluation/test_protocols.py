from __future__ import annotations

import math
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from training_fakes import SIZE, FakeConfig, FakeImages, FakeModel

from emorl.data import Batch, ObjectDataset, open_dataset
from emorl.data.transforms import TransformedDataset
from emorl.evaluation import evaluate, per_image, protocols, sweep
from emorl.metrics import adjusted_rand_index
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


def test_a_model_keeps_its_weights_where_a_device_has_no_memory():
    model = FakeModel(FakeConfig(noise=0.0))
    with pytest.raises(ValueError, match=r"^device: expected one with memory, got meta$"):
        evaluate(model, FakeImages(), images=2, device="meta")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


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
    assert "squares has 5 images, fewer than the 320 to measure" in result["notes"]


def test_slots_beyond_all_memory_are_refused():
    with pytest.raises(ValueError, match=r"^99999999999 slots of 8x8 pixels would take "):
        evaluate(FakeModel(), FakeImages(), images=1, num_slots=99_999_999_999)


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


def test_the_default_is_a_sample():
    model, images = FakeModel(), FakeImages()
    default = evaluate(model, images, images=6)
    assert evaluate(model, images, images=6, protocol="sample") == default
    assert default["protocol"] == "sample"
    assert evaluate(model, images, images=6, protocol="mean")["metrics"] != default["metrics"]


def test_means_do_not_depend_on_the_seed():
    """Of a model whose slots start from no noise."""
    model, images = FakeModel(), FakeImages()
    both = [
        evaluate(model, images, images=6, protocol="mean", seed=seed)["metrics"] for seed in (0, 1)
    ]
    assert both[0] == both[1]


def test_the_papers_protocol_is_taken_whole():
    with pytest.raises(ValueError, match="protocol paper: expected 320 images and 1 sample, got 4"):
        evaluate(FakeModel(), FakeImages(), images=4, protocol="paper")
    with pytest.raises(ValueError, match="got 320 and 2"):
        evaluate(FakeModel(), FakeImages(), samples=2, protocol="paper")
    with pytest.raises(ValueError, match="expected one of sample, mean, paper, got best"):
        evaluate(FakeModel(), FakeImages(), protocol="best")
    paper = evaluate(FakeModel(), FakeImages(), protocol="paper")
    assert paper["images"] == 48
    assert "squares has 48 images, fewer than the 320 to measure" in paper["notes"]


class LargeImages(FakeImages):
    """Twice the size, with an object of half a pixel's width at the model's size."""

    image_size = (2 * SIZE, 2 * SIZE)

    def __getitems__(self, indices):
        batch = super().__getitems__(indices)
        twice = batch.apply(lambda x: x if x.dim() < 4 else x.repeat_interleave(2, -1))
        image, mask = (x.repeat_interleave(2, -2) for x in (twice.image, twice.mask))
        mask[:, :, :, -1] = 3
        return Batch(image, mask, {}, batch.index)


def test_the_paper_compares_at_the_size_of_the_true_masks():
    """Soft masks are enlarged, by Pillow, before the largest is taken."""
    model, large = FakeModel(FakeConfig(noise=0.0)), LargeImages(6)
    with torch.no_grad():
        model.masks.weight.mul_(20)
    small = TransformedDataset(large, size=SIZE)
    paper = evaluate(model, small, protocol="paper")["metrics"]
    plain = evaluate(model, small, images=6)["metrics"]
    batch, true = small.__getitems__(range(6)), large.__getitems__(range(6)).mask[:, 0]
    masks = model(batch.image).masks[:, :, 0]
    enlarged = [
        [Image.fromarray(m.numpy()).resize((2 * SIZE,) * 2, Image.Resampling.BICUBIC) for m in own]
        for own in masks.detach()
    ]
    labels = torch.tensor(np.array([np.stack(own).argmax(0) for own in enlarged]))
    scores = adjusted_rand_index(true, labels)
    assert paper["ari"]["mean"] == pytest.approx(scores.mean().item(), abs=1e-12)
    assert paper["ari"]["mean"] != plain["ari"]["mean"]
    assert paper["mse"] == plain["mse"]


def test_the_paper_reads_whole_masks_one_by_one(monkeypatch):
    """Those of a batch of large pictures would fill the memory; neither are they enlarged so."""
    small = TransformedDataset(LargeImages(6), size=SIZE)
    read, enlarged = [], []
    read_whole, score = protocols._whole, per_image.segmentation_scores

    def whole(dataset):
        before = read_whole(dataset)
        inner = type(before).__getitems__
        monkeypatch.setattr(
            type(before),
            "__getitems__",
            lambda self, indices: (
                (self is before and read.append(len(indices))) or inner(self, indices)
            ),
        )
        return before

    def scores(true, masks):
        enlarged.append(len(true))
        return score(true, masks)

    monkeypatch.setattr(protocols, "_whole", whole)
    monkeypatch.setattr(per_image, "segmentation_scores", scores)
    evaluate(FakeModel(), small, protocol="paper", batch_size=4)
    assert read == enlarged == [1] * 6


def test_several_samples_are_averaged_image_by_image():
    model, images = FakeModel(), FakeImages()
    alone = [evaluate(model, images, images=5, seed=seed, per_image=True) for seed in (3, 4)]
    both = evaluate(model, images, images=5, samples=2, seed=3, batch_size=2, per_image=True)
    expected = sum(torch.tensor(one["per_image"]["mse"]) for one in alone) / 2
    assert both["metrics"]["mse"]["mean"] == pytest.approx(expected.mean().item(), rel=1e-6)
    assert both["metrics"]["mse"]["std"] == pytest.approx(
        expected.std(correction=0).item(), rel=1e-5
    )
    for seed, one in zip(("3", "4"), alone, strict=True):
        assert both["seeds"][seed]["mse"] == pytest.approx(one["metrics"]["mse"]["mean"], rel=1e-6)
    rows = both["per_image"]
    assert rows["seed"] == [3] * 5 + [4] * 5
    assert rows["image"] == [*range(5)] * 2
    joined = alone[0]["per_image"]["mse"] + alone[1]["per_image"]["mse"]
    assert rows["mse"] == pytest.approx(joined, rel=1e-6)
    assert "seeds" not in alone[0]
    assert "per_image" not in evaluate(model, images, images=5)


def test_attention_is_scored_beside_the_masks(monkeypatch):
    model, images = FakeModel(FakeConfig(noise=0.0)), FakeImages()
    assert (
        "fake has no attention maps" in evaluate(model, images, images=4, attention=True)["notes"]
    )
    plain = FakeModel._decompose

    def attending(self: FakeModel, request: Request) -> Decomposition:
        result = plain(self, request)
        true = images.__getitems__(range(len(request.target))).mask
        maps = torch.stack([true[:, 0] == k for k in range(3)], dim=1).float()
        result.attention = torch.stack([1 - maps, maps], dim=1)
        return result

    monkeypatch.setattr(FakeModel, "_decompose", attending)
    metrics = evaluate(model, images, images=4, attention=True)["metrics"]
    assert metrics["attention_ari"]["mean"] == metrics["attention_fg_mbo"]["mean"] == 1
    assert metrics["ari"]["mean"] < 1
    assert "attention_ari" not in evaluate(model, images, images=4)["metrics"]


def test_a_perceptual_distance_gets_its_name():
    def distance(image, reconstruction):
        assert image.shape == reconstruction.shape
        return torch.arange(len(image)).double()

    metrics = evaluate(FakeModel(), FakeImages(), images=3, perceptual=distance)["metrics"]
    assert metrics["lpips"]["mean"] == 1


def test_an_error_of_one_process_is_one_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the others would wait, or take the batches of the next run for those of this one."""
    error = ValueError("a.h5: image 3: damaged")

    def gather(shares: list, own: object) -> None:
        shares[:] = [own, error]

    monkeypatch.setattr(protocols.distributed, "all_gather_object", gather)
    with pytest.raises(ValueError, match=r"a\.h5: image 3: damaged"):
        protocols._gathered([{"mse": torch.zeros(1, 2)}], 2, 2)


def test_the_paper_compares_a_folder_s_masks_before_they_are_resized(tmp_path):
    """As those of data that are resized after reading; without masks nothing is compared."""
    large = LargeImages(6).__getitems__(range(6))
    for folder, pixels in (("a", large.image), ("a_masks", large.mask[:, 0])):
        (tmp_path / folder).mkdir()
        for number, own in enumerate(pixels):
            own = own.permute(1, 2, 0) if own.dim() == 3 else own
            Image.fromarray(own.numpy()).save(tmp_path / folder / f"{number}.png")
    model = FakeModel(FakeConfig(noise=0.0))

    def score(dataset: ObjectDataset, **options: Any) -> float:
        return evaluate(model, dataset, **options)["metrics"]["ari"]["mean"]

    folder = open_dataset(tmp_path / "a", split="all", size=SIZE)
    later = TransformedDataset(open_dataset(tmp_path / "a", split="all"), size=SIZE)
    assert score(folder, protocol="paper") == score(later, protocol="paper")
    assert score(folder, protocol="paper") != score(folder)
    Image.fromarray(np.full((9, 20, 3), 99, np.uint8)).save(tmp_path / "a/0.png")
    Image.fromarray(np.eye(9, 20, dtype=np.uint8)).save(tmp_path / "a_masks/0.png")
    folder = open_dataset(tmp_path / "a", split="all", size=SIZE)
    with pytest.raises(ValueError, match=r"expected pictures of one size .* got several"):
        score(folder, protocol="paper")
    shutil.rmtree(tmp_path / "a_masks")
    folder = open_dataset(tmp_path / "a", split="all", size=SIZE)
    assert "ari" not in evaluate(model, folder, protocol="paper")["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": ["paper"]}, "protocol: expected one of sample, mean, paper, got"),
        ({"protocol": None}, "protocol: expected one of"),
        ({"dataset": []}, r"dataset: expected an ObjectDataset, got list \[\]"),
        ({"model": []}, r"model: expected an ObjectCentricModel, got list \[\]"),
        ({"device": "nonsense"}, "device: expected one that is there, got nonsense: "),
        ({"device": "cuda:99"}, "device: expected one that is there, got cuda:99: "),
        ({"device": 5}, "device: expected a torch.device or its name, got 5"),
        ({"perceptual": lambda a, b: torch.zeros(3)}, r"perceptual: expected a tensor \[6\]"),
        ({"perceptual": 3}, "perceptual: expected a distance of images and reconstructions, got 3"),
        ({"perceptual": lambda a, b: 0.5}, "one of each image, got 0.5"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    given = {"model": FakeModel(), "dataset": FakeImages(), "images": 6, **arguments}
    for measure in (evaluate, sweep):
        swept = {"parameter": "refinement_steps", "values": [0, 1]} if measure is sweep else {}
        with pytest.raises(ValueError, match=message) as caught:
            measure(**given, **swept)
        assert "\n" not in str(caught.value)
