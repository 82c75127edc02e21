"""`emorl.macs`: the published counts, the documented ones, and what each rewriting saves."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Distribution, Normal
from torch.utils.flop_counter import FlopCounterMode

import emorl
from emorl.bench.macs import Count, Macs
from emorl.bench.tally import Tally
from emorl.models import (
    EfficientMORL,
    EfficientMORLConfig,
    ObjectCentricModel,
    SlotMLP,
    SlotMLPConfig,
)
from emorl.models.slot_mlp import plain
from emorl.ops import backends, slot_attention, slot_iterations
from emorl.ops.slot_iterations import IterationWeights

ROOT = Path(__file__).resolve().parents[2]
EFFICIENT_MORL, IODINE = "efficient_morl/clevr6", "iodine/clevr6-96-authors"
ATTENTION = "slot_attention/clevr6"
# Rows of docs/models.md, and what they count; 7 slots each.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "EfficientMORL, I = 0": (EFFICIENT_MORL, {"refinement_steps": 0}),
    "EfficientMORL, I = 1": (EFFICIENT_MORL, {"refinement_steps": 1}),
    "EfficientMORL, I = 3": (EFFICIENT_MORL, {"refinement_steps": 3}),
    "Slot Attention": (ATTENTION, {}),
    "Slot MLP": ("slot_mlp/clevr6", {}),
    "IODINE, I = 4": (IODINE, {}),
    "MONet": ("monet/clevr6", {}),
}
# Of the published models' convolutions, 10^9: forward, and forward and backward, at 64, 96 and 128.
# The first arithmetic gave 388 for IODINE's last one, but 9 passes of a decoder of 15.738 and 4 of
# 7.340 forward, and twice 5 and 4 backward, are 387.1.
PUBLISHED = {
    "EfficientMORL, I = 0": (("6.3", "18.8"), ("13.6", "40.7"), ("23.6", "70.9")),
    "EfficientMORL, I = 1": (("16.2", "38.7"), ("34.9", "83.4"), ("60.7", "145")),
    "EfficientMORL, I = 3": (("36.2", "78.6"), ("77.7", "169"), ("134.8", "293")),
    "Slot Attention": (("5.3", "15.8"), ("11.8", "35.5"), ("21.0", "63.1")),
    "IODINE, I = 4": (("44.8", "101"), ("97.7", "221"), ("171", "387")),
}
SIZES = (64, 96, 128)
EACH_SIZE = [64, *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:])]


@cache
def counted(name: str, size: int, **changes: Any) -> Macs:
    return emorl.macs(name, size, **changes)


def skip_without_native(op: str) -> None:
    if (reason := backends()[op]["native"]) is not None:
        pytest.skip(reason)


def documented(row: str, size: int) -> list[str]:
    """Parameters and numbers of a row of the table in docs/models.md."""
    text = (ROOT / "docs/models.md").read_text()
    (line,) = (x for x in text.splitlines() if x.startswith(f"| {row} | {size} |"))
    return line.strip("| ").split(" | ")[2:]


def fits(printed: str, number: float) -> bool:
    """Whether a printed number is another one, rounded."""
    half_unit = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    return abs(float(printed) - number) <= half_unit * (1 + 1e-9)


@pytest.mark.parametrize("size", EACH_SIZE)
@pytest.mark.parametrize("row", CASES)
def test_counts_are_those_of_the_paper_and_of_the_documentation(row: str, size: int) -> None:
    name, changes = CASES[row]
    found = counted(name, size, **changes)
    own = [
        count
        for passes in (found.as_published, found.as_computed)
        for count in (passes.forward, passes.forward_and_backward)
    ]
    for printed, count in zip(PUBLISHED.get(row, [()] * 3)[SIZES.index(size)], own, strict=False):
        assert fits(printed, sum(count.convolutions.values()) / 1e9), (printed, count)
    skip_without_native("convolution")
    parameters, *numbers = documented(row, size)
    assert parameters == f"{found.parameters:,}"
    assert numbers == [f"{count.total / 1e9:.1f}" for count in own]


@pytest.mark.parametrize(
    ("name", "size", "changes", "parameters"),
    [
        (EFFICIENT_MORL, 96, {"decoder": "big"}, 1_031_110 - 2),  # GECO's two are not the network's
        (EFFICIENT_MORL, 96, {}, 666_502 - 2),
        (ATTENTION, 96, {"variant": "efficient_morl"}, 890_180),
        (IODINE, 96, {}, 2_751_396),
        ("monet/multi_dsprites", 64, {}, 974_085),  # the U-Net for 64x64; below that for 128x128
        ("monet/clevr6", 64, {}, 804_485),
    ],
)
def test_parameters_are_the_published_ones(
    name: str, size: int, changes: dict[str, Any], parameters: int
) -> None:
    assert counted(name, size, **changes).parameters == parameters


def test_of_each_part() -> None:
    """The encoder's 4 layers of 5x5 and the decoder's of 3x3, the last to 4 channels."""
    published = counted(EFFICIENT_MORL, 64, refinement_steps=0).as_published
    encoder = 64**2 * 25 * 64 * (3 + 3 * 64)
    decoder = 7 * 9 * 64 * (64 * (72**2 + 70**2 + 68**2 + 66**2) + 4 * 64**2)
    assert published.forward.convolutions == {"encoder": encoder, "decoder": decoder}
    assert published.forward_and_backward.convolutions == {
        "encoder": 3 * encoder,
        "decoder": 3 * decoder,
    }


@pytest.mark.parametrize("batch", [1, 4])
def test_the_broadcast_is_split_and_its_positions_are_shared(batch: int) -> None:
    changes = {"refinement_steps": 0, "convolution_backend": "reference"}
    found = counted(EFFICIENT_MORL, 64, batch=batch, **changes)
    kernel, grid = 9 * 64**2, 72**2
    whole = found.as_published.forward.convolutions["decoder"]
    split = whole - 7 * grid * kernel + grid * kernel / batch
    assert found.as_computed.forward.convolutions["decoder"] == split


def test_winograd_counts_what_it_multiplies() -> None:
    skip_without_native("convolution")
    fast, plain = (
        counted(EFFICIENT_MORL, 64, refinement_steps=0, convolution_backend=backend).as_computed
        for backend in ("auto", "reference")
    )
    first = 64**2 * 25 * 64 * 3  # of too few channels
    parts = (plain.forward.convolutions, fast.forward.convolutions)
    assert parts[1]["encoder"] - first == pytest.approx(0.4 * (parts[0]["encoder"] - first))
    # In tiles of 4x4 outputs, 36 products each instead of 144.
    tiles = 18**2 + 17**2 + 17**2
    saved = 7 * 64**2 * (9 * (70**2 + 68**2 + 66**2) - 36 * tiles)
    assert parts[0]["decoder"] - parts[1]["decoder"] == saved
    # Backward the gradients by the weights have the tiles of the outputs, those by x its own.
    own = fast.forward_and_backward.convolutions["decoder"] - parts[1]["decoder"]
    other = plain.forward_and_backward.convolutions["decoder"] - parts[0]["decoder"]
    tiles += 18**2 + 18**2 + 17**2
    assert other - own == 7 * 64**2 * (2 * 9 * (70**2 + 68**2 + 66**2) - 36 * tiles)


def test_a_score_is_differentiated_once() -> None:
    """And the positions' convolution is a step's, not a score's."""
    once, twice = (
        counted(EFFICIENT_MORL, 64, refinement_steps=steps, convolution_backend="reference")
        for steps in (0, 1)
    )
    decoded = once.as_published.forward.convolutions["decoder"]
    published = twice.as_published.forward_and_backward.convolutions["decoder"]
    assert published == (2 * 3 + 1) * decoded
    positions = 3 * 9 * 64**2 * 72**2 / 4
    score = once.as_computed.forward_and_backward.convolutions["decoder"] - positions
    step = twice.as_computed.forward_and_backward.convolutions["decoder"]
    assert step == positions + 2 * score


def test_inference_takes_no_gradient_of_the_last_score() -> None:
    """Nor a weight's: 1 + I passes forward and I backward, to the slots alone."""
    none, one, three = (
        counted(EFFICIENT_MORL, 64, refinement_steps=steps, convolution_backend="reference")
        for steps in (0, 1, 3)
    )
    work = [x.as_computed.forward.convolutions["decoder"] for x in (none, one, three)]
    assert work[2] - work[0] == 3 * (work[1] - work[0])
    positions = 9 * 64**2 * 72**2 / 4  # once, and no gradient of them is needed
    assert work[1] - work[0] == 2 * (work[0] - positions)


@pytest.mark.parametrize("widths", [(8, None), (8, 6)], ids=["v is k", "v"])
def test_slot_attention_multiplies_as_often_as_its_reference(
    widths: tuple[int, int | None],
) -> None:
    """Backward once more often, for the attention that it did not keep."""
    skip_without_native("slot_attention")
    found = []
    for backend in ("native", "reference"):
        q = torch.randn(2, 3, widths[0], requires_grad=True)
        k = torch.randn(2, 20, widths[0], requires_grad=True)
        v = k if widths[1] is None else torch.randn(2, 20, widths[1], requires_grad=True)
        with Tally(torch.nn.Module()) as tally:
            updates = slot_attention(q, k, v, backend=backend)
            forward = tally.products
            updates.sum().backward()
        found.append((forward, tally.products))
    (forward, both), reference = found
    assert (forward, both - 2 * 3 * 20 * widths[0]) == reference


def test_iterations_multiply_as_often_as_their_reference() -> None:
    """Backward once more often, for the attention."""
    skip_without_native("slot_iterations")
    d, c, q, e, h = 6, 5, 4, 3, 7
    shapes = [(d,), (d,), (q, d), (q,), (q, c), (d,), (e, c), (3 * d, e), (3 * d, d), (3 * d,)]
    shapes += [(3 * d,), (d,), (d,), (h, d), (h,), (d, h), (d,)]
    weights = IterationWeights(*(torch.randn(shape, requires_grad=True) for shape in shapes))
    found = []
    for backend in ("native", "reference"):
        x, slots = (torch.randn(2, n, w, requires_grad=True) for n, w in ((20, c), (3, d)))
        with Tally(torch.nn.Module()) as tally:
            states = slot_iterations(x, slots, weights, iterations=2, backend=backend)
            forward = tally.products
            states.sum().backward()
        found.append((forward, tally.products))
    (forward, both), reference = found
    assert (forward, both - 2 * 2 * 3 * 20 * c) == reference


def test_counts_as_the_library_does() -> None:
    """Of a model without gradients within its forward pass, which PyTorch's counter refuses."""
    config = SlotMLPConfig(image_size=(16, 32), num_slots=3, hidden_dim=8)
    found = emorl.macs(SlotMLP(config), batch=2).as_published
    model, images = SlotMLP(config), torch.rand(2, 3, 16, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        loss = plain.objective(model, images)
        forward = counter.get_total_flops()
        loss.backward()
    assert 2 * 2 * found.forward.total == forward
    assert 2 * 2 * found.forward_and_backward.total == counter.get_total_flops()


def test_takes_models_names_and_files(tmp_path: Path) -> None:
    config = EfficientMORLConfig(
        image_size=(16, 20), num_slots=3, decoder="small", refinement_steps=0
    )
    found = emorl.macs(EfficientMORL(config))
    assert (found.model, found.config) == ("efficient_morl", config)
    changes = {"num_slots": 3, "decoder": "small", "refinement_steps": 0}
    assert emorl.macs(EfficientMORL(), (16, 20), **changes) == found
    (tmp_path / "mine.yaml").write_text(
        "model: efficient_morl\nnetwork: {image_size: [16, 20], num_slots: 3, decoder: small, "
        "refinement_steps: 0}\n"
    )
    assert emorl.macs(str(tmp_path / "mine.yaml")) == found
    assert emorl.macs("slot_mlp/smoke", num_slots=2).config.num_slots == 2
    assert emorl.macs("smoke", refinement_steps=0).model == "efficient_morl"


def test_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Distribution, "_validate_args", True)  # torch.compile may have unset it
    model = SlotMLP(SlotMLPConfig(image_size=(16, 16), num_slots=2, hidden_dim=8))
    state = torch.get_rng_state()
    emorl.macs(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())
    with pytest.raises(ValueError, match="scale"):
        Normal(0.0, -1.0)


def test_prints_a_table() -> None:
    found = counted(EFFICIENT_MORL, 96, refinement_steps=1)
    first, *lines = str(found).splitlines()
    assert first == "efficient_morl, 96x96, 7 slots: 666,500 parameters"
    assert [line[:25].strip() for line in lines[2:]] == [
        *("encoder", "decoder", "matrix products", "total")
    ]
    assert lines[-1].split()[1] == f"{found.as_published.forward.total / 1e9:.3f}"
    assert len({len(line) for line in lines}) == 1


class OwnModel(SlotMLP):
    name = "mine"


class OtherModel(ObjectCentricModel):
    """Derives from none of the five."""

    name = "other"
    Config = SlotMLPConfig
    _objective = _decompose = SlotMLP.objective


SMALL = SlotMLPConfig(image_size=(16, 16), num_slots=2, hidden_dim=8)


def test_a_class_of_ones_own_counts_as_what_it_derives_from() -> None:
    own, plain = emorl.macs(OwnModel(SMALL)), emorl.macs(SlotMLP(SMALL))
    assert own == dataclasses.replace(plain, model="mine")
    assert emorl.macs(OwnModel(SMALL), num_slots=3).config.num_slots == 3


def test_total() -> None:
    assert Count({"encoder": 1.0, "decoder": 2.5}, 4.0).total == 7.5


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        ("clevr7", {}, ValueError, "clevr7"),
        ("iodin/clevr6", {}, ValueError, "iodin"),
        ("clevr6", {"batch": 0}, ValueError, "batch: expected 1 or more, got 0"),
        ("clevr6", {"batch": 2.5}, ValueError, "batch: expected a whole number, got 2.5"),
        ("clevr6", {"size": 64, "image_size": (64, 64)}, ValueError, "got both"),
        (
            OtherModel.__new__(OtherModel),
            *(
                {},
                ValueError,
                "one of efficient_morl, .* or a class that derives from one, got Oth",
            ),
        ),
        (5, {}, ValueError, "model: expected a model or a configuration's name, got int"),
        (None, {}, ValueError, "model: expected a model or a configuration's name, got NoneType"),
        ("clevr6", {"num_slots": 0}, ValueError, "num_slots must be positive, got 0"),
        (ATTENTION, {"size": 100}, ValueError, "multiples of 16"),
        (ATTENTION, {"refinement_steps": 1}, TypeError, "refinement_steps"),
    ],
)
def test_refuses(
    model: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        emorl.macs(model, **arguments)


def test_the_package_lists_it() -> None:
    assert "macs" in dir(emorl)


def test_what_the_package_has_not() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'mac'"):
        emorl.mac  # noqa: B018
