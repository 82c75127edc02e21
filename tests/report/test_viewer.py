"""What the viewer shows: pixels against the model's own, and how large it gets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from viewed_model import Blobs, BlobsConfig, Greys, picture_of, pixels_at, recomposed

from emorl.evaluation import traversals
from emorl.evaluation.measuring import noise_for
from emorl.report import viewer
from emorl.report.html import write_report
from emorl.report.viewer import View, make_view, masks_as_bytes


@pytest.fixture(scope="module")
def model() -> Blobs:
    return Blobs()


@pytest.fixture(scope="module")
def view(model) -> View:
    return make_view(model, Greys(), "step-00000007")


def decomposition(model):
    noise = noise_for(model, range(8), seed=0, device=torch.device("cpu"), means=True)
    return model(Greys().read_images(range(8)), generator=noise, details=True)


def as_pixels(images: torch.Tensor) -> np.ndarray:
    """[..., 3, H, W] from 0 to 1 -> [..., H, W, 3] from 0 to 255."""
    return (255 * images).movedim(-3, -1).double().numpy()


def test_a_view_tells_what_it_shows(view):
    assert (view.data, view.checkpoint) == ("greys", "step-00000007")
    assert (view.height, view.width) == (16, 20)
    assert view.stages == ["layer 1", "layer 2", "layer 3"]
    assert len(view.images) == 8
    image = view.images[0]
    assert [len(image.stages), len(image.colours), len(image.own)] == [3, 3, 3]
    assert all(
        stage.scores.startswith("MSE ") and "FG-ARI" in stage.scores for stage in image.stages
    )
    assert json.loads(json.dumps(view.as_json(), allow_nan=False))["width"] == 20


def test_all_slots_together_are_the_reconstruction(model, view):
    """Off by rounding alone, in 255ths of a colour.

    The sum by a half, appearances by a half, and K masks by one each, up and down alike: what half
    of them has too much, times a difference of appearances of 255 at most.
    """
    whole = decomposition(model)
    for number, image in enumerate(view.images):
        assert (pixels_at(image.picture) == as_pixels(Greys().read_images([number])[0] / 255)).all()
        for stage, own in enumerate(whole.stages):
            shown = recomposed(view, image, stage, [0, 1, 2]).astype(float)
            error = np.abs(shown - as_pixels(own.decomposition.reconstruction[number]))
            assert error.max() <= 0.5 + 0.5 + len(image.own) / 2


def test_a_slot_alone_is_its_appearance_over_a_checker(model, view):
    whole = decomposition(model)
    image, slot = view.images[3], 1
    mask = as_pixels(whole.masks[3, slot].expand(3, -1, -1)) / 255
    y, x = np.indices((16, 20)) // 4
    checker = np.array([247, 219])[(y + x) % 2][..., None]
    expected = mask * as_pixels(whole.components[3, slot]) + (1 - mask) * checker
    assert np.abs(recomposed(view, image, 2, [slot]) - expected).max() <= 0.5 + 0.5 + 1


def test_masks_stay_shares_of_a_whole():
    masks = np.random.default_rng(0).dirichlet(np.full(7, 0.3), size=(40, 40)).transpose(2, 0, 1)
    rounded = masks_as_bytes(masks).astype(float)
    assert (rounded.sum(0) == 255).all()
    assert np.abs(rounded - 255 * masks).max() < 1


def test_traversals_are_those_of_the_evaluation(model, view):
    samples = traversals.infer(model, Greys(), viewer.MEASURED, means=False)
    activity = traversals.activeness(model, samples)
    low, high = traversals.ranges(samples)
    order = traversals.active(activity)[:6]
    assert [d.number for d in view.dimensions] == order.tolist()
    assert 7 not in order.tolist()
    slots = decomposition(model).slots[2]
    for t in traversals.traverse(model, slots, order, low, high, viewer.VALUES):
        place = order.tolist().index(t.dimension)
        assert view.dimensions[place].values == pytest.approx(t.values.tolist(), rel=1e-6)
        assert view.images[2].own[t.slot][place] == pytest.approx(slots[t.slot, t.dimension].item())
        for value, image in enumerate(t.images):
            shown = picture_of(view.images[2].traversals[t.slot][place], value, view.width)
            # half of COLOUR_STEP, and what float32 does to a value just at the middle
            assert np.abs(shown - as_pixels(image)).max() <= 2.5 + 1e-4


def test_large_images_are_thinned_out():
    size = (40, 300)
    view = make_view(Blobs(BlobsConfig(image_size=size, layers=1)), Greys(size, 1), "large")
    assert (view.height, view.width) == (14, 100)
    whole = Greys(size, 1).read_images([0])[0].permute(1, 2, 0).numpy()
    assert (pixels_at(view.images[0].picture) == whole[::3, ::3]).all()


def test_a_model_without_stages_shows_its_result(monkeypatch, model):
    plain = Blobs(BlobsConfig(layers=1))
    whole = plain._decompose
    monkeypatch.setattr(plain, "_decompose", lambda r: viewer.Decomposition(*whole_parts(whole(r))))
    view = make_view(plain, Greys(length=1), "plain")
    assert view.stages == ["result"]


def whole_parts(result):
    return result.reconstruction, result.masks, result.components, result.slots


def test_images_that_take_too_much_are_left_out(monkeypatch, model, view):
    sizes = [image.size() for image in view.images]
    monkeypatch.setattr(viewer, "ROOM", sum(sizes[:3]))
    assert make_view(model, Greys(), "less").images == view.images[:3]
    monkeypatch.setattr(viewer, "ROOM", sizes[0] - 1)
    with pytest.raises(ValueError, match=r"expected an image of at most 0\.0"):
        make_view(model, Greys(), "none")


def test_weights_that_make_no_pictures_are_refused(view):
    broken = Blobs()
    with torch.no_grad():
        broken.slots[0, 0] = torch.nan
    with pytest.raises(ValueError, match="expected finite pictures"):
        make_view(broken, Greys(length=2), "broken")


def large_view(images: int, grain: float) -> View:
    """Of 96x96 pixels, 7 slots and 6 layers and steps, every slot moved along 6 dimensions."""
    size = (96, 96)
    config = BlobsConfig(image_size=size, num_slots=7, layers=6, grain=grain)
    view = make_view(Blobs(config), Greys(size, images), "large")
    assert len(view.dimensions) == 6
    return view


def test_eight_large_images_fit(monkeypatch):
    """One of them stands for all, since each takes about as much."""
    monkeypatch.setattr(viewer, "MEASURED", 2)
    assert 8 * large_view(1, grain=0).images[0].size() < viewer.ROOM


@pytest.mark.slow
def test_a_report_of_large_images_stays_below_15_mb(tmp_path):
    """With grain, which does not pack: then there are fewer than eight."""
    view = large_view(8, grain=0.03)
    assert 4 <= len(view.images) < 8
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
    path = write_report(tmp_path, view_of=lambda _: view)
    assert 10e6 < path.stat().st_size < 15e6
