"""The squared error of reconstructions against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from emorl.metrics import mean_squared_error

NO_IMAGES = [
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64),
]


def test_the_error_of_uint8_and_float() -> None:
    image = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8)
    reconstruction = torch.rand(3, 3, 5, 7)
    expected = ((image.numpy() / 255 - reconstruction.double().numpy()) ** 2).mean((1, 2, 3))
    got = mean_squared_error(image, reconstruction)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert got.dtype == torch.float64
    assert mean_squared_error(image, image.double() / 255).eq(0).all()
    assert mean_squared_error(torch.zeros(1, 2), torch.ones(1, 2).bfloat16()).item() == 1


def test_the_error_of_objects() -> None:
    image, reconstruction = torch.rand(3, 3, 4, 5), torch.rand(3, 3, 4, 5)
    labels = torch.randint(0, 3, (3, 1, 4, 5))
    labels[2] = 0
    got = mean_squared_error(image, reconstruction, objects=labels)
    for own, a, b, mask in zip(got[:2], image, reconstruction, labels, strict=False):
        chosen = (a.double() - b.double())[:, mask[0] > 0]
        assert own.item() == pytest.approx(chosen.square().mean().item(), rel=1e-12)
    assert got[2].isnan()
    image[0, :, labels[0, 0] == 0] = math.nan  # is not looked at
    assert torch.equal(mean_squared_error(image, reconstruction, objects=labels)[:1], got[:1])
    for wrong in (labels[:, 0], labels[:, :, :2], labels[:2]):
        with pytest.raises(ValueError, match=r"broadcast to the image \[3, 3, 4, 5\], got"):
            mean_squared_error(reconstruction, reconstruction, objects=wrong)


@pytest.mark.parametrize("dtype", NO_IMAGES, ids=str)
def test_images_of_every_other_dtype_are_refused(dtype) -> None:
    image = torch.ones(1, 3).to(dtype)
    with pytest.raises(ValueError, match=f"expected uint8 or float, got image {dtype}"):
        mean_squared_error(image, image)


@pytest.mark.parametrize(
    ("reconstruction", "message"),
    [
        (torch.zeros(1, 4), r"got \[1, 3\] and \[1, 4\]"),
        (torch.full((1, 3), 200.0), r"expected reconstruction in \[0, 1\], got values from 200"),
        (torch.full((1, 3), -1.0), r"expected reconstruction in \[0, 1\], got values from -1"),
        (torch.zeros(1, 3).long(), "expected uint8 or float, got reconstruction torch.int64"),
        (torch.tensor([[math.nan, 1.0, 255.0]]), r"in \[0, 1\], got values from 1.0 to 255"),
    ],
    ids=["shape", "0-255", "centred", "dtype", "nan"],
)
def test_what_has_no_error_is_refused(reconstruction, message) -> None:
    with pytest.raises(ValueError, match=message):
        mean_squared_error(torch.zeros(1, 3), reconstruction)


@pytest.mark.parametrize("label", [float("nan"), float("inf")])
def test_objects_are_labels(label):
    image = torch.rand(2, 3, 4, 4)
    objects = torch.ones(2, 1, 4, 4)
    assert mean_squared_error(image, image, objects=objects).tolist() == [0, 0]
    objects[1, 0, 3, 3] = label
    with pytest.raises(ValueError, match="expected labels, got objects with NaN or infinity"):
        mean_squared_error(image, image, objects=objects)
