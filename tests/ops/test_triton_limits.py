"""What the Triton kernels take: on a device, in torch.compile, asked for by name or not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from emorl.ops import library, slot_attention
from emorl.ops.slot_attention import _limits
from emorl.ops.triton import limits

GPU = torch.device("cuda:0")
A100, H100, RTX_4090 = 163 * 1024, 227 * 1024, 99 * 1024  # bytes of shared memory


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU that need not be there."""
    properties = SimpleNamespace(shared_memory_per_block_optin=A100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return properties


@pytest.mark.parametrize(
    ("slots", "width", "dtype", "bytes_there", "fits"),
    [
        (7, 64, torch.float32, RTX_4090, True),
        (64, 256, torch.float32, A100, True),
        (64, 256, torch.float32, RTX_4090, False),
        (65, 16, torch.float32, H100, False),
        (1, 257, torch.float32, H100, False),
        (32, 128, torch.float64, A100, False),
        (32, 128, torch.float64, H100, True),
    ],
)
def test_the_device_decides(
    slots: int,
    width: int,
    dtype: torch.dtype,
    bytes_there: int,
    fits: bool,
    shared_memory: SimpleNamespace,
) -> None:
    shared_memory.shared_memory_per_block_optin = bytes_there
    assert (limits.slot_attention(slots, width, dtype, GPU) is None) == fits


def test_the_reason_says_what_was_needed_and_what_is_there(shared_memory: SimpleNamespace) -> None:
    shared_memory.shared_memory_per_block_optin = RTX_4090
    assert limits.slot_attention(64, 200, torch.float32, GPU) == (
        "64 slots of width 200 in torch.float32 need 163840 bytes of shared memory in Triton, "
        "this GPU has 101376"
    )
    assert limits.slot_attention(65, 1, torch.float32, GPU) == (
        "at most 64 slots and width 256 in Triton, got 65 slots, width 1"
    )


@pytest.mark.parametrize(
    ("width", "dtype", "bytes_there", "reason"),
    [
        (256, torch.float32, H100, None),
        (256, torch.float32, A100, None),
        (256, torch.float32, RTX_4090, "need 144000 bytes of shared memory, this GPU has 101376"),
        (128, torch.float32, RTX_4090, None),
        (128, torch.float64, A100, None),
        (128, torch.float64, RTX_4090, "need 148736 bytes of shared memory, this GPU has 101376"),
    ],
)
def test_the_device_decides_for_the_native_kernels(
    width: int,
    dtype: torch.dtype,
    bytes_there: int,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """64 slots: two arrays of them, their sums, and tiles of 4 pixels, of rows 4 values wider."""
    monkeypatch.setattr(library, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(library, "shared_memory", lambda device: bytes_there)
    q, v = torch.empty(1, 64, width), torch.empty(1, 3, width)
    expected = reason and f"64 slots of width {width} in {dtype} {reason}"
    assert _limits(q, v, dtype, "native")["native"] == expected


def test_torch_compile_traces_it(shared_memory: SimpleNamespace) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def taken(x: Tensor) -> Tensor:
        return x * 0 if limits.slot_attention(64, len(x), torch.float64, GPU) else x

    assert torch.equal(taken(torch.ones(64)), torch.ones(64))
    assert torch.equal(taken(torch.ones(256)), torch.zeros(256))  # a size that varies by now


def test_auto_goes_on_and_the_name_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_is_interpreted", lambda backend, tensor: False)
    monkeypatch.setattr(library, "on_gpu", lambda tensor: True)
    monkeypatch.setitem(library.obstacles["slot_attention"], "native", {"cpu": "not built"})
    monkeypatch.setitem(library.obstacles["slot_attention"], "triton", {"cpu": None})
    q, k = torch.randn(1, 64, 128).double(), torch.randn(1, 3, 128).double()
    assert library.resolve("slot_attention", "auto", (q,), {"triton": None}) == "triton"
    expected = slot_attention(q, k, k, backend="reference")
    assert torch.equal(slot_attention(q, k, k), expected)
    with pytest.raises(ValueError, match="'triton' cannot run: 64 slots of width 128 in"):
        slot_attention(q, k, k, backend="triton")


def test_the_operator_itself_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = pytest.importorskip("emorl.ops.triton.slot_attention")
    q, k = torch.randn(1, 65, 4), torch.randn(1, 3, 4)
    with pytest.raises(ValueError, match="slot_attention: at most 64 slots and width 256"):
        launcher.forward(q, k, None, None, None, 1e-8, False)
