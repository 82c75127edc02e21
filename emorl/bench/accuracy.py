"""The bound on a kernel's error, asserted in tests and before timings."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_as_accurate_as_plain(
    actual: dict[str, Tensor],
    plain: dict[str, Tensor],
    truth: dict[str, Tensor],
    roundings: dict[str, float],
) -> None:
    """Assert that no error against float64 exceeds twice the plain result's, plus rounding.

    Plain may be right by luck, and is where it is the truth itself. So `roundings`, derived from
    the operator's formula, tell by how much rounding moves each result: sums of absolute terms
    times roundings of each, in units of half an eps of the dtype that is computed in, float32 or
    wider. In float64 the unit is a whole eps, since the truth is as rounded as the result. Narrower
    results are rounded once more when they are stored.
    """
    for name, expected in truth.items():
        assert actual[name].shape == expected.shape, name
        if expected.numel() == 0:
            continue
        dtype = plain[name].dtype
        wide = torch.promote_types(dtype, torch.float32)
        unit = torch.finfo(wide).eps / (1 if wide == torch.float64 else 2)
        rounding = unit * roundings[name]
        if wide != dtype:
            rounding += torch.finfo(dtype).eps / 2 * expected.abs().max().item()
        allowed = 2 * (plain[name] - expected).abs().max().item() + rounding
        error = (actual[name] - expected).abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
