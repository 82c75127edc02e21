"""What is believed of the published data sets, and asked of a user's files.

Each answer is one line: PASS or FAIL, the belief, and what was found. A FAIL is no fault of a
file: it tells that our generators, or these beliefs, differ from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from emorl.data.generators.tetromino_shapes import FRAME
from emorl.data.problems import OF_TETROMINOES

Factors = Mapping[str, Tensor]
"""Name -> float32 [N, E] or [N, E, n] of all images that were read."""

_KS_ONE_PERCENT = 1.628  # Kolmogorov-Smirnov: sqrt(n) * distance exceeds it once in 100 times
_TOUCHING = 0.15  # pairs of Tetrominoes that touch, if whole scenes are drawn until none overlap
_SPRITE_AREAS = (19.2**2, 3.1416 * 12.8 * 7.2, 225.0)  # square, ellipse, heart at scale 1, pixels
_SPRITES = (64, 64)  # images in which they have these areas
_HIDDEN = {6: 0.02, 5: 0.008, 4: 0.006}  # share of the generator's images, by entities
_SURE = 6.0  # where so many are usual, there are none once in 400 times
_WHOLE = 0.8  # of its area a sprite has at least, if none lies on it: edges cost some pixels
_CLEVR_CODES = {"size": 2, "material": 2, "shape": 3, "color": 8}
# A number of each entity in all data that are asked.
_OF_ENTITIES = {"orientation", "rotation", "scale", "shape", "size", "visibility", "z"}


def answers(factors: Factors, pixels: Tensor | None, image_size: tuple[int, int]) -> list[str]:
    """The questions that these factors can answer, one line each.

    Images with a factor that is not finite, which is a problem of its own, are not asked.

    Args:
        factors: of the images that were read.
        pixels: of each label, int64 [N, L]; None without masks.
        image_size: height and width; Tetrominoes have 35x35, others' factors have such names too.
    """
    if factors:
        finite = torch.stack([x.isfinite().flatten(1).all(1) for x in factors.values()]).all(0)
        if not finite.any():
            return []
        factors = {name: values[finite] for name, values in factors.items()}
        pixels = None if pixels is None else pixels[finite]
    if len({factors[name].shape[1:] for name in _OF_ENTITIES & factors.keys()}) > 1:
        return []
    if {"orientation", "scale", "color", "visibility", "shape"} <= factors.keys():
        found = _multi_dsprites(factors, pixels if image_size == _SPRITES else None)
    elif {"z", "rotation", *_CLEVR_CODES, "visibility"} <= factors.keys():
        found = _clevr(factors)
    elif image_size == (FRAME, FRAME) and factors.keys() == OF_TETROMINOES:
        found = _tetrominoes(factors)
    else:
        return []
    return [f"{'PASS' if passed else 'FAIL'} {belief}: {seen}" for passed, belief, seen in found]


def _multi_dsprites(factors: Factors, pixels: Tensor | None) -> Iterator[tuple[bool, str, str]]:
    there = factors["visibility"][:, 1:] > 0
    if factors["color"].dim() == 3:
        sprites = factors["color"][:, 1:][there]
        value = sprites.amax(1)
        saturation = (value - sprites.amin(1)) / value.clamp(min=1e-6)
        if saturation.any():  # the binarized variant's sprites are white
            least = torch.stack([saturation, value]).amin(1).tolist()
            yield (
                min(least) >= 0.5 - 1e-3,
                "sprites have saturation and value from 0.5 on",
                f"at least {least[0]:.3f} and {least[1]:.3f}",
            )
        grey = factors["color"][:, 0]
        if grey.any() and (grey == grey[:, :1]).all():  # its background is black
            distance = _distance_from_uniform(grey[:, 0])
            yield (
                distance * len(grey) ** 0.5 < _KS_ONE_PERCENT,
                "grey levels are uniform from 0 to 1",
                f"Kolmogorov-Smirnov distance {distance:.3f} of {len(grey)} images",
            )
    if pixels is not None:
        areas = torch.tensor((0, *_SPRITE_AREAS))[factors["shape"].long().clamp(0, 3)]
        entities = there.shape[1] + 1
        part = (pixels[:, 1:entities] / (areas * factors["scale"] ** 2)[:, 1:])[:, : entities - 1]
        last = there.long().cumsum(1).argmax(1)
        whole = float(part.gather(1, last[:, None]).min())
        yield whole > _WHOLE, "the last sprite lies on top", f"{whole:.2f} of its area at least"
        hidden = int(((pixels[:, 1:entities] == 0) & there).any(1).sum())
        usual = _HIDDEN.get(entities, 0) * len(pixels)
        yield (
            hidden > 0 or usual < _SURE,
            "a sprite may be hidden altogether",
            f"so in {hidden} images, usually in {usual:.1f}",
        )


def _clevr(factors: Factors) -> Iterator[tuple[bool, str, str]]:
    there = factors["visibility"] > 0
    objects = there[:, 1:].sum(1)
    low, high = int(objects.min()), int(objects.max())
    yield 3 <= low <= high <= 10, "3 to 10 objects, as all of CLEVR", f"{low} to {high}"
    in_order = (there.long().diff(dim=1) <= 0).all(1) & there[:, 0]
    yield (
        bool(in_order.all()),
        "background first, null entities last",
        f"in {int(in_order.sum())} of {len(in_order)} images",
    )
    objects_there = there[:, 1:]
    if not objects_there.any():
        return
    for name, most in _CLEVR_CODES.items():
        codes = factors[name][:, 1:][objects_there]
        low, high = int(codes.min()), int(codes.max())
        yield 1 <= low <= high <= most, f"codes of {name} from 1 to {most}", f"{low} to {high}"
    large = factors["size"][:, 1:][objects_there] == 1
    expected = torch.where(large, 0.7, 0.35)
    off = float((factors["z"][:, 1:][objects_there] - expected).abs().max())
    yield off < 1e-3, "z is 0.7 of large and 0.35 of small objects", f"within {off:.3g}"


def _tetrominoes(factors: Factors) -> Iterator[tuple[bool, str, str]]:
    from emorl.data.generators.tetromino_shapes import render

    shapes = factors["shape"][:, 1:]
    low, high = int(shapes.min()), int(shapes.max())
    yield 1 <= low <= high <= 19, "shapes from 1 to 19", f"{len(shapes.unique())} kinds seen"
    try:
        _, mask = render(factors)
    except ValueError as error:
        yield False, "scenes are drawn until none overlap", str(error)
        return
    touching = _touching(mask[:, 0])
    share = float(touching.float().mean())
    deviation = (_TOUCHING * (1 - _TOUCHING) / touching.numel()) ** 0.5
    yield (
        abs(share - _TOUCHING) < 3 * deviation,
        f"{_TOUCHING:.0%} of pairs touch, give or take {3 * deviation:.1%}, as in scenes "
        "drawn until none overlap",
        f"{share:.1%} of {touching.numel()} pairs",
    )


def _touching(labels: Tensor) -> Tensor:
    """Which of the pairs of labels 1 to 3 are neighbours in label maps [N, H, W], bool [N, 3]."""
    pairs = []
    for first, second in ((1, 2), (1, 3), (2, 3)):
        a, b = labels == first, labels == second
        beside = (a[:, 1:] & b[:, :-1]) | (a[:, :-1] & b[:, 1:])
        below = (a[..., 1:] & b[..., :-1]) | (a[..., :-1] & b[..., 1:])
        pairs.append(beside.flatten(1).any(1) | below.flatten(1).any(1))
    return torch.stack(pairs, 1)


def _distance_from_uniform(values: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of numbers [N] from the uniform distribution on [0, 1]."""
    ordered = values.sort().values
    steps = torch.arange(len(ordered) + 1) / len(ordered)
    return float(torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max())
