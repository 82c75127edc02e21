"""The configuration `your-images`: what of it follows the images that are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from emorl.data import ObjectDataset
from emorl.data.open import passed_over
from emorl.data.transforms import Shape, shape_of
from emorl.memory import most_allocated
from emorl.memory import size as in_bytes
from emorl.models import MODELS
from emorl.paths import local
from emorl.training.config import DataConfig, RunConfig
from emorl.training.images import held_out_images, training_images
from emorl.training.options import CONFIGS, YOUR_IMAGES

SLOTS = 7
"""Where the images have no label maps."""

_KEPT, _SHORTER, _MULTIPLE, _LONGEST = 128, 64, 8, 2  # pixels, and a side in shorter ones
_LOOKED_AT = 64  # images whose objects are counted
_MOST_SLOTS = 16


def is_own(path: Path) -> bool:
    """Whether a configuration is the one whose sizes follow the images."""
    return path.stem == YOUR_IMAGES and path.parent.parent == CONFIGS


def follow(config: RunConfig, given: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What the images say: options of a run, and lines for the user.

    Args:
        config: the run as it is configured without them.
        given: the options that the user gave, which stay.

    Raises:
        ValueError: if the images cannot be opened.
    """
    if config.data.size is not None:
        shape, reason = shape_of(config.data.size), "as data.size says"
    elif "network.image_size" in given:
        shape, reason = config.network.image_size, "as network.image_size says"
    else:
        shape, reason = trained_shape(config.data)
    data = replace(config.data, size=shape)
    images = training_images(data)
    options = {"data.size": _list(shape), "network.image_size": _list(shape)}
    lines = [f"image size: {shape[0]}x{shape[1]}, {reason}"]
    if "network.num_slots" not in given:
        slots, reason = slots_for(images)
        options["network.num_slots"] = str(slots)
        lines.append(f"slots: {slots}, {reason}")
    if "trainer.eval_every" not in given and held_out_images(data) is None:
        options["trainer.eval_every"] = "0"
        lines.append("no images to measure on: none belongs to the split val")
    if others := passed_over(local(data.train)):
        lines.append(f"passed over: {others}")
    return [f"--{key}={value}" for key, value in options.items() if key not in given], lines


def trained_shape(data: DataConfig) -> tuple[Shape, str]:
    """Height and width to train at, and why.

    Small images keep their size, the median where there are several. Larger ones get their median
    aspect, up to twice as long as short.
    """
    shapes = _shapes(data)
    height, width = (round(median(sides)) for sides in zip(*shapes, strict=True))
    if max(height, width) <= _KEPT:
        same = len({*shapes}) == 1
        return (height, width), "as the images have" if same else "the images' median"
    scale = _SHORTER / min(height, width)
    sides = [round(scale * side / _MULTIPLE) * _MULTIPLE for side in (height, width)]
    tall, wide = (min(side, _LONGEST * _SHORTER) for side in sides)
    return (tall, wide), f"a {_SHORTER} pixel side with the aspect of {height}x{width}, the median"


def slots_for(images: ObjectDataset) -> tuple[int, str]:
    """A slot for each object of the first images and one for what is behind them; and why."""
    masks = images.__getitems__(range(images.count(_LOOKED_AT))).mask
    if masks is None:
        return SLOTS, "since there are no label maps; network.num_slots sets another number"
    most = max(len(mask.unique()) for mask in masks)
    slots = min(max(most, 2), _MOST_SLOTS)
    return slots, f"since the first {len(masks)} label maps have up to {most} labels"


def describe_memory(config: RunConfig) -> str:
    """A line about the memory of a training step: two small ones are run, and drawn out."""
    batch = config.trainer.batch_size // config.trainer.accumulation
    first, second = (_peak(config, images) for images in (1, 2))
    needed = second + max(0, batch - 2) * (second - first)
    return f"memory: about {in_bytes(needed)} of tensors for steps of {batch} images at a time"


def _peak(config: RunConfig, images: int) -> int:
    """The most bytes of tensors during the forward and backward pass of some images."""
    on_gpu = torch.cuda.is_available() and config.trainer.device != "cpu"

    def step() -> None:
        model = MODELS[config.model](config.network).to("cuda" if on_gpu else "cpu")
        pictures = torch.zeros(images, 3, *config.network.image_size, dtype=torch.uint8)
        model.objective(pictures.to("cuda" if on_gpu else "cpu")).loss.backward()

    if not on_gpu:
        return most_allocated(step)
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def _shapes(data: DataConfig) -> list[Shape]:
    """The sizes of the first images, cropped."""
    folder = local(data.train)
    if not folder.is_dir():
        return [training_images(data).image_size]
    from emorl.data.readers.images import shapes_of

    return shapes_of(folder, data.split, data.crop)


def _list(shape: Shape) -> str:
    return f"[{shape[0]},{shape[1]}]"
