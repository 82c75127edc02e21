"""Folders of pictures and NumPy's files, written with Pillow and numpy, and what must be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from layout_testing import Scenes, scenes
from PIL import Image

ENTITIES = 11  # of ClevrTex's factors
SIZES = {"small": 0.4, "medium": 0.6, "large": 0.9}


def pictures(path: Path) -> Scenes:
    """A PNG and its label map beside it, in a folder called as its split."""
    made = scenes(factors=())
    assert made.labels is not None
    (path / "train").mkdir(parents=True)
    for number, (image, labels) in enumerate(zip(made.images, made.labels, strict=True)):
        Image.fromarray(image).save(path / f"train/{number}.png")
        Image.fromarray(labels).save(path / f"train/{number}_mask.png")
    return made


def clevrtex(path: Path) -> Scenes:
    """Ten scenes, of which the last eight are for training."""
    made = scenes(count=10, factors=("x", "y", "z", "rotation", "size", "visibility"))
    assert made.labels is not None
    (path / "0").mkdir(parents=True)
    made.factors = {
        name: np.pad(values[:, 1:], ((0, 0), (1, ENTITIES - values.shape[1])))
        for name, values in made.factors.items()
    }
    made.factors["visibility"][:, 0] = 1
    made.factors["size"][:, 1:3] = SIZES["small"], SIZES["large"]
    for number, (image, labels) in enumerate(zip(made.images, made.labels, strict=True)):
        stem = f"{path}/0/CLEVRTEX_full_{number:06}"
        Image.fromarray(image).save(f"{stem}.png")
        Image.fromarray(labels).save(f"{stem}_flat.png")
        objects = [described(made, number, entity) for entity in (1, 2)]
        Path(f"{stem}.json").write_text(json.dumps({"objects": objects}))
    last = slice(2, None)
    factors = {name: values[last] for name, values in made.factors.items()}
    return Scenes(made.images[last], made.labels[last], factors)


def described(made: Scenes, number: int, entity: int) -> dict[str, object]:
    """An object as a scene's JSON has it."""
    value = {name: float(values[number, entity]) for name, values in made.factors.items()}
    return {
        "3d_coords": [value["x"], value["y"], value["z"]],
        "rotation": value["rotation"],
        "size": ("small", "large")[entity - 1],
        "shape": "cube",
    }


def archive(path: Path) -> Scenes:
    """Images, label maps and factors by their names."""
    made = scenes()
    with path.open("wb") as file:
        np.savez_compressed(file, image=made.images, mask=made.labels, **made.factors)
    return made


def array(path: Path) -> Scenes:
    """Images, and their label maps in a file beside."""
    made = scenes(factors=())
    for name, stored in (
        (path.name, made.images),
        (f"{path.stem}_masks{path.suffix}", made.labels),
    ):
        with path.with_name(name).open("wb") as file:
            np.save(file, stored)
    return made


OWN: dict[str, Callable[[Path], Scenes]] = {
    "folder of pictures": pictures,
    "ClevrTex": clevrtex,
    "NumPy archive (.npz)": archive,
    "NumPy array (.npy)": array,
}
