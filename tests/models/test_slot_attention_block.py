"""The slot attention module and its initial slots, used alone."""

from __future__ import annotations

import pytest
import torch

from emorl.models.slot_attention.attention import SlotAttention
from emorl.nn import LinearFeatures
from emorl.nn.initial_slots import LearnedSlots, SampledSlots


@pytest.mark.parametrize("norm_inputs", [True, False])
def test_the_block_alone_takes_dense_and_linear_features(norm_inputs: bool) -> None:
    block = SlotAttention(6, 5, hidden=7, norm_inputs=norm_inputs).double()
    features = LinearFeatures(*(torch.randn(s).double() for s in ((2, 13, 4), (6, 4), (6,))))
    slots = torch.randn(2, 3, 5, dtype=torch.float64)
    sparse = block(features, slots, iterations=2, keep_attention=True)
    dense = block(features.dense(), slots, iterations=2, keep_attention=True)
    torch.testing.assert_close(sparse, dense, rtol=1e-10, atol=1e-12)
    x = features.dense()
    if norm_inputs:
        x = (x - x.mean(2, True)) / (x.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    query = block.query(torch.nn.functional.layer_norm(slots, (5,))) * 5**-0.5
    first = (query @ block.key(x).mT).softmax(1)
    torch.testing.assert_close(dense.attention[0], first, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="iterations: expected at least 1, got 0"):
        block(features, slots, iterations=0)


def test_initial_slots_alone() -> None:
    sampled, learned = SampledSlots(4, "exp"), LearnedSlots(3, 4)
    assert sampled(2, 5, None).shape == (2, 5, 4)
    with torch.no_grad():
        sampled.raw.fill_(-100.0)
    torch.testing.assert_close(sampled(2, 5, None), sampled.mean.expand(2, 5, 4))
    assert learned(2, 3, None).shape == (2, 3, 4)
    assert learned(2, 3, None)[1].equal(learned.slots)
