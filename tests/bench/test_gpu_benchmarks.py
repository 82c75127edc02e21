"""What is measured on a GPU, as far as a CPU can tell: bytes, checks, variants, replays."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import tape
import torch

from emorl.bench import graph_replays
from emorl.bench.cases.convolution import ConvolutionCase
from emorl.bench.cases.mixture_nll import JoinedMixtureNllCase, MixtureNllCase
from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.bench.cases.spatial_broadcast import SpatialBroadcastCase
from emorl.bench.graph_replays import Replays, calls_of
from emorl.bench.ops.cases import all_works
from emorl.bench.ops.forms import check, function_of, obstacle
from emorl.bench.ops.operators import OPERATORS, Results, call
from emorl.bench.ops.steps import copy_of
from emorl.bench.passes import BOTH, FORWARD
from emorl.bench.step.variants import variant_step
from emorl.bench.workers import first_losses, in_turns
from emorl.models import EfficientMORL, EfficientMORLConfig
from emorl.ops import backends
from emorl.training import graph
from emorl.training.config import TrainerConfig

SMALL = {
    "slot_attention": SlotAttentionCase(2, 3, 70, 8),
    "mixture_nll": MixtureNllCase(2, 3, 9, 9),
    "mixture_nll_and_gradient": JoinedMixtureNllCase(2, 3, 9, 9),
    "spatial_broadcast": SpatialBroadcastCase(6, 8, 9, 9),
    "convolution": ConvolutionCase(8, 32, 16, 19, 17, kernel=5, padding=1),
}


def test_bytes_of_slot_attention_are_two_reads_and_one_write():
    """57 MB, as docs/gpu.md says, and what belongs to slots."""
    case = SlotAttentionCase(4, 7, 9216, 64, 64)
    inputs = case.inputs()
    gradients = [torch.empty_like(x) for x in inputs.values()]
    moved = OPERATORS["slot_attention"].bytes_moved(inputs, torch.empty(4, 7, 64), gradients)
    pixels = 2 * 4 * 9216 * 64 * 4
    slots = 3 * 4 * 4 * 7 * (64 + 1) + 2 * 4 * 4 * 7 * 64
    assert moved == 3 * pixels + slots
    forward = OPERATORS["slot_attention"].bytes_moved(inputs, torch.empty(4, 7, 64), ())
    assert forward == pixels + 4 * 4 * 7 * (64 + 1 + 64)


def test_bytes_of_the_likelihood_are_one_read_and_one_write():
    inputs = {"rgb": torch.empty(2, 3, 3, 5, 5), "image": torch.empty(2, 3, 5, 5)}
    moved = OPERATORS["mixture_nll"].bytes_moved(inputs, torch.empty(2), [inputs["rgb"]])
    assert moved == 4 * (2 * 450 + 150 + 2 * 2)


def test_bytes_of_a_broadcast_are_one_write_and_two_reads():
    """1.86 GB, as docs/gpu.md says, and what belongs to slots and positions."""
    inputs = {"slot": torch.empty(224, 64, device="meta")}
    output = torch.empty(224, 64, 104, 104, device="meta")
    moved = OPERATORS["spatial_broadcast"].bytes_moved(inputs, output, [inputs["slot"]])
    assert moved == 3 * 4 * 224 * 64 * 104 * 104 + 3 * 4 * 224 * 64


def test_bytes_of_a_gradient_that_comes_with_its_value_are_one_read_and_one_write():
    """32 a pixel and slot in float32, as `mixture_nll_and_gradient` says, and the images."""
    inputs = {"image": torch.empty(2, 3, 5, 5), "decoded": torch.empty(2, 3, 4, 5, 5)}
    operator = OPERATORS["mixture_nll_and_gradient"]
    moved = operator.bytes_moved(inputs, torch.empty(2), [inputs["decoded"]])
    assert moved == 32 * 2 * 3 * 25 + 4 * (150 + 2)


def test_every_operator_is_timed_in_every_part():
    for device in ("cpu", "cuda"):
        assert {work.operator for work in all_works(device)} == {*OPERATORS}
        in_module = {"slot_iterations"}  # the work slot_attention_block
        assert {op.kernels for op in OPERATORS.values()} == {*backends(device)} - in_module
    parts = {name: op.parts for name, op in OPERATORS.items()}
    assert parts.pop("mixture_nll_and_gradient") == (BOTH,)
    assert {*parts.values()} == {(FORWARD, BOTH)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_results_are_checked_against_float64(operator, dtype):
    """Also those that are float32 where the plain form is bfloat16."""
    if reason := obstacle("native", operator, "cpu"):
        pytest.skip(reason)
    if operator == "convolution" and dtype != torch.float32:
        pytest.skip("the CPU's convolution takes float32 or float64")
    case = SMALL[operator]
    inputs = case.inputs(dtype)
    results = call(function_of("native", operator, case), inputs, BOTH)
    check(results, operator, case, inputs, BOTH)
    wrong = Results(results.output, [1.1 * x + 0.1 for x in results.gradients])
    with pytest.raises(AssertionError, match="error"):
        check(wrong, operator, case, inputs, BOTH)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("biased", [True, False])
def test_sums_of_a_convolution_have_as_many_products_as_counted(kernel, biased):
    case = ConvolutionCase(2, 3, 4, 9, 8, kernel, padding=1, activation="none", biased=biased)
    ones = {name: torch.ones_like(x).requires_grad_() for name, x in case.inputs().items()}
    found = call(function_of("plain", "convolution", case), ones, BOTH)
    inner = [float(x.max()) for x in (found.output - int(biased), *found.gradients)]
    assert inner == list(case.products())


@pytest.mark.parametrize(
    ("size", "count"), [(1, 64), (10 << 20, 20), (33 << 20, 7), (1 << 30, 4), (0, 64)]
)
def test_inputs_do_not_fit_in_the_cache(size, count):
    assert calls_of(size, 50 << 20) == count


@pytest.mark.parametrize("operator", OPERATORS)
def test_copies_of_inputs_have_their_form(operator):
    """Kernels of colours and masks in one tensor look at the distance between the two."""
    inputs = SMALL[operator].inputs(torch.bfloat16)
    copies = copy_of(inputs)
    for name, x in inputs.items():
        assert torch.equal(copies[name], x)
        assert copies[name].stride() == x.stride()
        assert copies[name].data_ptr() != x.data_ptr()
        assert copies[name].is_leaf
        assert copies[name].requires_grad == x.requires_grad
    if operator == "mixture_nll":
        assert copies["mask_logits"].data_ptr() - copies["rgb"].data_ptr() == 3 * 2


class FakeEvent:
    clock = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.clock

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


class FakeGraph:
    def replay(self) -> None:
        FakeEvent.clock += 12.0  # milliseconds


def test_a_replay_is_shared_out_among_its_calls(monkeypatch):
    class Cuda:
        Event, CUDAGraph = FakeEvent, FakeGraph
        graph = stream = staticmethod(contextmanager(lambda _: iter([None])))
        Stream = current_stream = staticmethod(lambda: Cuda)
        wait_stream = staticmethod(lambda _: None)

    made: list[int] = []
    monkeypatch.setattr(graph_replays.torch, "cuda", Cuda)
    replays = Replays([lambda i=i: made.append(i) for i in range(4)])
    assert made == [0, 1, 0, 1, 2, 3]  # two aside, then all captured
    replays.round()
    replays.round()
    assert replays.seconds == [0.003, 0.003]


TINY = EfficientMORLConfig(
    image_size=(12, 12),
    num_slots=2,
    slot_dim=8,
    encoder_channels=8,
    encoder_layers=1,
    decoder="small",
    decoder_channels=8,
    refinement_steps=1,
    init_gain=0.5,
)


def test_a_graphs_steps_have_the_losses_of_the_others(monkeypatch):
    monkeypatch.setattr(graph, "capture", tape.capture)
    monkeypatch.setattr(graph, "run_aside", lambda body: body())
    losses = []
    for name in ("float32", "float32 graph"):
        torch.manual_seed(0)
        model = EfficientMORL(TINY)
        images = torch.randint(256, (2, 3, 12, 12), dtype=torch.uint8)
        step = variant_step(model, images, name, TrainerConfig())
        losses.append([])
        for _ in range(6):  # the last ones replayed
            torch.manual_seed(1)
            losses[-1].append(step())
    assert len({*losses[0]}) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_variant_that_dies_leaves_the_others():
    class Dies:
        def step(self) -> tuple[float, float]:
            raise EOFError

    class Lives:
        loss = 2.0

        def step(self) -> tuple[float, float]:
            self.loss += 1
            return 0.1, self.loss

    workers = {"float32": Lives(), "bf16 graph": Dies(), "released": Lives()}
    assert first_losses(workers, 5) == {"float32": 3.0, "released": 3.0}
    assert [*workers] == ["float32", "released"]


def test_a_variant_that_dies_later_leaves_the_others():
    class Lives:
        def step(self) -> tuple[float, float]:
            return 0.1, 2.0

        def peak(self) -> int:
            return 5

    class DiesAtThird(Lives):
        steps = 0

        def step(self) -> tuple[float, float]:
            self.steps += 1
            if self.steps == 3:
                raise BrokenPipeError
            return super().step()

    class DiesAtLast(Lives):
        def peak(self) -> int:
            raise EOFError

    workers = {"a": Lives(), "b": DiesAtThird(), "c": DiesAtLast(), "d": Lives()}
    found = in_turns(workers, 4)
    assert [*found] == [*workers] == ["a", "d"]
    assert found["d"]["seconds"]["median"] == pytest.approx(0.1)
    assert found["d"]["peak_bytes_above_start"] == 5
