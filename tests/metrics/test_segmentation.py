"""Segmentation metrics against scikit-learn, brute force and hand-made cases."""

from __future__ import annotations

import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from emorl.metrics import (
    adjusted_rand_index,
    match_objects,
    match_segments,
    mean_best_overlap,
    mean_iou,
    mean_squared_error,
    segmentation_covering,
)

BOTH = [adjusted_rand_index, mean_iou]
ALL = [*BOTH, mean_best_overlap, segmentation_covering]


def oracle_iou(true: np.ndarray, predicted: np.ndarray, foreground_only: bool) -> float:
    """The definition, by trying every assignment of predicted to true segments."""
    segments = [t for t in np.unique(true) if not (foreground_only and t == 0)]
    if not segments:
        return float("nan")
    partners = [*np.unique(predicted), *[None] * len(segments)]
    iou = {
        (t, p): np.sum((true == t) & (predicted == p)) / np.sum((true == t) | (predicted == p))
        for t in segments
        for p in np.unique(predicted)
    }
    return max(
        sum(iou.get(pair, 0.0) for pair in zip(segments, chosen, strict=True)) / len(segments)
        for chosen in permutations(partners, len(segments))
    )


def oracle_ari(true: np.ndarray, predicted: np.ndarray, foreground_only: bool) -> float:
    kept = true != 0 if foreground_only else np.full(true.shape, True)
    return adjusted_rand_score(true[kept], predicted[kept]) if kept.any() else float("nan")


def oracle_best(
    true: np.ndarray, predicted: np.ndarray, foreground_only: bool
) -> list[tuple[float, int]]:
    """IoU with the best prediction, and pixels, of each true segment."""
    return [
        (
            max(
                np.sum((true == t) & (predicted == p)) / np.sum((true == t) | (predicted == p))
                for p in np.unique(predicted)
            ),
            np.sum(true == t),
        )
        for t in np.unique(true)
        if not (foreground_only and t == 0)
    ]


def oracle_mbo(true: np.ndarray, predicted: np.ndarray, foreground_only: bool) -> float:
    best = oracle_best(true, predicted, foreground_only)
    return np.mean([iou for iou, _ in best]) if best else float("nan")


def oracle_sc(true: np.ndarray, predicted: np.ndarray, foreground_only: bool) -> float:
    best = oracle_best(true, predicted, foreground_only)
    pixels = sum(size for _, size in best)
    return sum(iou * size for iou, size in best) / pixels if pixels else float("nan")


@st.composite
def label_maps(draw: st.DrawFn, names: int = 4) -> tuple[Tensor, Tensor]:
    """Two batches of label maps, with few or many labels, gaps in the numbering, any sizes."""
    batch, pixels = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    dtype = draw(st.sampled_from([torch.uint8, torch.int32, torch.int64]))
    both = []
    for _ in range(2):
        labels = draw(st.lists(st.integers(0, 200), min_size=1, max_size=names, unique=True))
        element = st.sampled_from(labels)
        flat = draw(st.lists(element, min_size=batch * pixels, max_size=batch * pixels))
        both.append(torch.tensor(flat, dtype=dtype).view(batch, pixels))
    return both[0], both[1]


@pytest.mark.parametrize("foreground_only", [False, True], ids=["all", "foreground"])
@pytest.mark.parametrize(
    ("metric", "oracle"),
    [
        (adjusted_rand_index, oracle_ari),
        (mean_iou, oracle_iou),
        (mean_best_overlap, oracle_mbo),
        (segmentation_covering, oracle_sc),
    ],
    ids=["ari-sklearn", "iou-brute-force", "mbo-loop", "sc-loop"],
)
def test_equals_oracle(metric, oracle, foreground_only) -> None:
    @settings(max_examples=100 if metric in BOTH else 30, deadline=None)
    @given(label_maps())
    def check(maps: tuple[Tensor, Tensor]) -> None:
        got = metric(*maps, foreground_only=foreground_only)
        pairs = zip(*(m.numpy() for m in maps), strict=True)
        expected = [oracle(t, p, foreground_only) for t, p in pairs]
        assert got.dtype == torch.float64
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)

    check()


@pytest.mark.parametrize("foreground_only", [False, True], ids=["all", "foreground"])
@pytest.mark.parametrize("metric", ALL)
def test_ignores_names_of_predicted_labels(metric, foreground_only) -> None:
    @settings(max_examples=50 if metric in BOTH else 10, deadline=None)
    @given(label_maps(), st.permutations(range(201)))
    def check(maps: tuple[Tensor, Tensor], names: list[int]) -> None:
        true, predicted = maps
        renamed = torch.tensor(names)[predicted.long()].to(predicted.dtype)
        got = metric(true, renamed, foreground_only=foreground_only)
        expected = metric(true, predicted, foreground_only=foreground_only)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12, equal_nan=True)
        if not foreground_only:  # the truth has one special label only, the background
            assert metric(renamed, renamed.clone()).eq(1).all()

    check()


@pytest.mark.parametrize("metric", ALL)
def test_only_the_same_partition_is_perfect(metric) -> None:
    """Merging two segments of the truth costs, and so does splitting one."""

    @settings(max_examples=30, deadline=None)
    @given(label_maps(), st.data())
    def check(maps: tuple[Tensor, Tensor], data: st.DataObject) -> None:
        true = maps[0][:1].long()
        labels, counts = true.unique(return_counts=True)
        if len(labels) > 1:
            first, second = data.draw(st.permutations(labels.tolist()))[:2]
            assert metric(true, torch.where(true == second, first, true)).item() < 1
        if (large := labels[counts > 1]).numel():
            label = data.draw(st.sampled_from(large.tolist()))
            pixels = (true[0] == label).nonzero()[:, 0]
            split = true.clone()
            split[0, pixels[: data.draw(st.integers(1, len(pixels) - 1))]] = 1000
            assert metric(true, split).item() < 1
        assert metric(true, true).item() == 1

    check()


def test_the_best_overlap_is_at_least_the_matched_one() -> None:
    @settings(max_examples=30, deadline=None)
    @given(label_maps())
    def check(maps: tuple[Tensor, Tensor]) -> None:
        assert (mean_best_overlap(*maps) >= mean_iou(*maps) - 1e-12).all()

    check()


@pytest.mark.parametrize(
    ("true", "predicted", "mbo", "fg_mbo", "sc", "fg_sc"),
    [
        # one slot for all: IoU 2/4 and 2/4 of the objects, mBO counts it for both
        pytest.param([3, 3, 4, 4], [1, 1, 1, 1], 1 / 2, 1 / 2, 1 / 2, 1 / 2, id="one-slot"),
        # background 2/3, objects 1/3 and 1; weighted by 2, 1 and 1 pixels
        pytest.param([0, 0, 1, 2], [4, 4, 4, 5], 2 / 3, 2 / 3, 2 / 3, 2 / 3, id="spill"),
        pytest.param([0, 0, 0, 1], [1, 1, 2, 2], 7 / 12, 1 / 2, 5 / 8, 1 / 2, id="weights"),
        pytest.param([0, 0], [1, 2], 1 / 2, np.nan, 1 / 2, np.nan, id="no-foreground"),
    ],
)
def test_overlaps_by_hand(true, predicted, mbo, fg_mbo, sc, fg_sc) -> None:
    maps = torch.tensor([true]), torch.tensor([predicted])
    metrics = (mean_best_overlap, segmentation_covering)
    values = [m(*maps, foreground_only=f).item() for m in metrics for f in (False, True)]
    np.testing.assert_allclose(values, [mbo, fg_mbo, sc, fg_sc], atol=1e-12)


def test_match_objects_leaves_out_the_small_and_the_badly_covered() -> None:
    true = torch.zeros(1, 20, 20).long()
    true[0, :10, :10] = 1  # 100 pixels, slot 5 on 80 of them
    true[0, 10:17, :7] = 2  # 49 pixels
    true[0, 10:, 10:] = 3  # 100 pixels, slot 7 on 9 of them and nowhere else
    predicted = torch.full((1, 20, 20), 9)
    predicted[0, :8, :10] = 5
    predicted[0, 10:17, :7] = 6
    predicted[0, 10:13, 10:13] = 7
    # slot 9 has 262 pixels, 91 of them of object 3: an IoU of 91 / 271
    assert match_objects(true, predicted) == [{5: 1, 9: 3}]
    assert match_objects(true, predicted, least_iou=0.4) == [{5: 1}]
    assert match_objects(true, predicted, least_pixels=49) == [{5: 1, 6: 2, 9: 3}]
    assert match_objects(true[:, :0], predicted[:, :0]) == [{}]


def test_match_objects_has_the_largest_sum() -> None:
    """Against every assignment, and the background is nobody's partner."""

    @settings(max_examples=30, deadline=None)
    @given(label_maps())
    def check(maps: tuple[Tensor, Tensor]) -> None:
        matched = match_objects(*maps, least_pixels=1, least_iou=0)
        score = mean_iou(*maps, foreground_only=True)
        for true, predicted, pairs, mean in zip(*maps, matched, score, strict=True):
            assert 0 not in pairs.values()
            overlaps = [
                ((true == t) & (predicted == p)).sum() / ((true == t) | (predicted == p)).sum()
                for p, t in pairs.items()
            ]
            objects = len({*true.tolist()} - {0})
            if objects:
                assert sum(overlaps) / objects == pytest.approx(mean.item(), abs=1e-6)

    check()


def test_ari_equals_sklearn_on_images() -> None:
    true = torch.randint(0, 7, (5, 128, 128), dtype=torch.uint8)
    predicted = torch.where(torch.rand(true.shape) < 0.7, true, torch.randint_like(true, 11))
    expected = [
        oracle_ari(t, p, True) for t, p in zip(true.numpy(), predicted.numpy(), strict=True)
    ]
    got = adjusted_rand_index(true, predicted, foreground_only=True)
    np.testing.assert_allclose(got, expected, rtol=1e-13)


ONE_IMAGE = [  # true, predicted, ARI, FG-ARI, mean IoU, mean IoU of the foreground
    pytest.param([5, 5, 5], [2, 2, 2], 1, 1, 1, 1, id="one-segment-on-both-sides"),
    pytest.param([3, 3, 4, 4], [1, 1, 1, 1], 0, 0, 0.25, 0.25, id="one-predicted-segment"),
    pytest.param([3, 3, 3, 3], [1, 1, 2, 2], 0, 0, 0.5, 0.5, id="one-true-segment"),
    pytest.param([1, 2, 3], [7, 8, 9], 1, 1, 1, 1, id="each-pixel-its-own-segment"),
    pytest.param([1], [0], 1, 1, 1, 1, id="one-pixel"),
    pytest.param([0], [0], 1, np.nan, 1, np.nan, id="one-background-pixel"),
    pytest.param([0, 0, 0], [1, 1, 2], 0, np.nan, 2 / 3, np.nan, id="no-foreground"),
    pytest.param([0, 0, 1, 2], [4, 4, 4, 5], 1 / 3, 1, 5 / 9, 2 / 3, id="slot-over-background"),
    pytest.param([1, 1, 2, 2], [1, 2, 1, 2], -0.5, -0.5, 1 / 3, 1 / 3, id="worse-than-chance"),
]


@pytest.mark.parametrize(("true", "predicted", "ari", "fg_ari", "iou", "fg_iou"), ONE_IMAGE)
def test_by_hand(true, predicted, ari, fg_ari, iou, fg_iou) -> None:
    maps = torch.tensor([true]), torch.tensor([predicted])
    values = [m(*maps, foreground_only=f).item() for m in BOTH for f in (False, True)]
    np.testing.assert_allclose(values, [ari, fg_ari, iou, fg_iou], atol=1e-12)


def test_fg_ari_does_not_see_the_true_background() -> None:
    true = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2]])
    spilled = torch.tensor([[1, 2, 1, 2, 1, 1, 2, 2]])
    assert adjusted_rand_index(true, spilled, foreground_only=True).item() == 1
    assert adjusted_rand_index(true, spilled).item() < 0.5
    assert mean_iou(true, spilled, foreground_only=True).item() == 0.5


def test_match_segments_pairs_the_best_overlaps() -> None:
    true = torch.tensor([[0, 0, 0, 7, 7, 9], [0, 0, 0, 0, 0, 0]])
    predicted = torch.tensor([[3, 3, 1, 1, 1, 2], [5, 5, 5, 6, 6, 5]])
    assert match_segments(true, predicted) == [{3: 0, 1: 7, 2: 9}, {5: 0}]


def test_image_shaped_maps_and_strides() -> None:
    true = torch.randint(0, 3, (2, 1, 5, 4))
    predicted = torch.randint(0, 3, (2, 1, 5, 4))
    for metric in BOTH:
        flat = metric(true.flatten(1), predicted.flatten(1))
        turned = metric(true.mT, predicted.mT)
        assert torch.equal(metric(true, predicted), flat)
        assert torch.equal(turned, flat)


INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64]
UNSIGNED = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
NO_LABELS = [torch.bool, torch.float64, torch.bfloat16, torch.float8_e5m2, torch.complex64]


@pytest.mark.parametrize("true_dtype", [*INTEGERS, *UNSIGNED], ids=str)
@pytest.mark.parametrize("predicted_dtype", [*INTEGERS, *UNSIGNED], ids=str)
def test_labels_of_every_integer_dtype(true_dtype, predicted_dtype) -> None:
    """The largest label of each dtype is one like any other."""
    most, predicted_most = torch.iinfo(true_dtype).max, torch.iinfo(predicted_dtype).max
    usual = torch.tensor([[0, 1, 1, 2, 2, 2]]), torch.tensor([[3, 3, 1, 1, 2, 2]])
    largest = (
        torch.tensor([[0, 1, 1, most, most, most]], dtype=true_dtype),
        torch.tensor([[predicted_most, predicted_most, 1, 1, 2, 2]], dtype=predicted_dtype),
    )
    for metric in BOTH:
        for foreground in (False, True):
            expected = metric(*usual, foreground_only=foreground)
            torch.testing.assert_close(metric(*largest, foreground_only=foreground), expected)
    assert match_segments(*usual) == [{3: 0, 1: 1, 2: 2}]
    assert match_segments(*largest) == [{predicted_most: 0, 1: 1, 2: most}]


@pytest.mark.parametrize("dtype", NO_LABELS, ids=str)
@pytest.mark.parametrize("metric", [*BOTH, match_segments])
def test_labels_of_every_other_dtype_are_refused(metric, dtype) -> None:
    labels = torch.ones(1, 3).to(dtype), torch.ones(1, 3).long()
    for name, pair in (("true", labels), ("predicted", labels[::-1])):
        with pytest.raises(ValueError, match=f"expected integer labels, got {name} .* of {dtype}"):
            metric(*pair)


@pytest.mark.parametrize("metric", [*BOTH, match_segments, mean_squared_error])
def test_what_holds_no_values(metric) -> None:
    for values, message in (
        ((np.ones((1, 3)), torch.ones(1, 3)), "expected a tensor, got ndarray"),
        ((torch.ones(1, 3), [[1, 2, 3]]), "expected a tensor, got list"),
        ((torch.ones(1, 3), torch.ones(1, 3, device="meta")), "one device, got cpu and meta"),
        ((torch.ones(1, 3, device="meta").byte(),) * 2, "expected values, got the device meta"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(*values)


def test_empty_batch_and_empty_images() -> None:
    for metric in ALL:
        assert metric(torch.ones(0, 4).long(), torch.ones(0, 4).long()).shape == (0,)
        assert metric(torch.ones(3, 0).long(), torch.ones(3, 0).long()).isnan().all()


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ((2, 3), (2, 4), r"one shape \[B, ...\], got \[2, 3\] and \[2, 4\]"),
        ((2, 1, 3), (2, 3), r"one shape \[B, ...\], got \[2, 1, 3\] and \[2, 3\]"),
        ((3,), (3,), r"one shape \[B, ...\], got \[3\] and \[3\]"),
    ],
    ids=["sizes", "axes", "no-batch"],
)
@pytest.mark.parametrize("metric", BOTH)
def test_shape_errors(metric, true, predicted, message) -> None:
    with pytest.raises(ValueError, match=message):
        metric(torch.zeros(true).long(), torch.zeros(predicted).long())


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (torch.zeros(1, 2), "expected integer labels, got predicted labels of torch.float32"),
        (torch.zeros(1, 2).bool(), "expected integer labels, got predicted labels of torch.bool"),
        (torch.tensor([[0, -1]]), "expected labels >= 0, got predicted label -1"),
        (torch.zeros(1, 2, device="meta").long(), "one device, got cpu and meta"),
    ],
    ids=["float", "bool", "negative", "device"],
)
@pytest.mark.parametrize("metric", BOTH)
def test_label_errors(metric, predicted, message) -> None:
    with pytest.raises(ValueError, match=message):
        metric(torch.zeros(1, 2).long(), predicted)


@pytest.mark.parametrize("name", ["scipy", "sklearn", "PIL"])
def test_what_needs_no_matching_needs_no_other_package(name, monkeypatch) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, name, None)
    maps = torch.tensor([[0, 1, 1]]), torch.tensor([[2, 2, 3]])
    for metric in (adjusted_rand_index, mean_best_overlap, segmentation_covering):
        assert metric(*maps).isfinite()
    assert mean_squared_error(torch.ones(1, 2), torch.zeros(1, 2)).item() == 1
    if name == "scipy":
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'emorl\[train\]'"):
            mean_iou(*maps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least_iou": float("nan")}, "least_iou: expected a number, got nan"),
        ({"least_iou": 50}, "least_iou: expected a number from 0 to 1, got 50"),
        ({"least_pixels": 2.5}, "least_pixels: expected a whole number, got 2.5"),
        ({"least_pixels": -1}, "least_pixels: expected at least 0, got -1"),
    ],
)
def test_bounds_of_matched_objects_are_held(options, message):
    labels = torch.ones(1, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        match_objects(labels, labels, **options)


@pytest.mark.parametrize(
    "metric", [adjusted_rand_index, mean_iou, mean_best_overlap, segmentation_covering]
)
@pytest.mark.parametrize("flag", ["no", 2, None])
def test_a_flag_is_yes_or_no(metric, flag):
    labels = torch.ones(1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="foreground_only: expected"):
        metric(labels, labels, foreground_only=flag)
