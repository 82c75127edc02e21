"""ClevrTex and its variants: a folder of scenes as they were published.

`CLEVRTEX_<variant>_000123.png` is a scene, `..._flat.png` its label map, `....json` what is in it,
in folders of a thousand. The published splits go by position: the first tenth is "test", the second
"val", the rest "train"; `outd` is one split, whatever is asked for. Give the whole folder: a part
of it is divided as if it were all. Factors are those that are numbers: x, y, z, rotation, size and
visibility, with entity 0 as the background.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emorl.data.random import SPLITS
from emorl.data.readers.images import PictureFiles, find_pictures
from emorl.data.readers.pictures import ENDINGS
from emorl.data.splits import ALL
from emorl.data.values import ValueRange
from emorl.paths import require_regular

_SCENE = re.compile(r"CLEVRTEX_([A-Za-z]+)_(\d{6})\.png")
_UNSPLIT = "outd"
_TENTHS = {"test": (0, 1), "val": (1, 2), "train": (2, 10)}
_ENTITIES = 11  # the background and up to ten objects
_SIZES = {"small": 0.4, "medium": 0.6, "large": 0.9}
_SIZES_UNSPLIT = {"small": 0.6, "medium": 0.8, "large": 1.0}  # of outd's other shapes
_NOTHING = dict.fromkeys(("x", "y", "z", "rotation", "size", "visibility"), 0.0)


class ClevrTex(PictureFiles):
    """A split of a ClevrTex folder.

    Args:
        path: the folder, of a variant.
        split: "train", "val", "test" or "all".
        crop: as in `emorl.data.transforms.cut`; "clevrtex" is ClevrTex's own.
        size: height and width; one number for squares.
        value_range: what the numbers mean, if not what their format says.
        lenient: as of `PictureFiles`.

    Raises:
        ValueError: if there are no scenes of the split, scenes of several variants, or a file
            cannot be used.
    """

    layout = "ClevrTex"

    def __init__(
        self,
        path: Path,
        split: str = "train",
        crop: str | Sequence[int] | None = None,
        size: int | Sequence[int] | None = None,
        value_range: ValueRange | None = None,
        *,
        lenient: bool = False,
    ) -> None:
        scenes = scenes_of(path)
        variants = sorted({variant for variant, _, _ in scenes})
        if len(variants) > 1:
            raise ValueError(f"{path}: expected a variant of ClevrTex, got {', '.join(variants)}")
        names = [name for _, _, name in scenes]
        chosen = names if variants == [_UNSPLIT] or split == ALL else _of_split(path, names, split)
        pictures = [str(path / name) for name in chosen]
        masks = [f"{picture.removesuffix('.png')}_flat.png" for picture in pictures]
        self._sizes = _SIZES_UNSPLIT if variants == [_UNSPLIT] else _SIZES
        super().__init__(path, pictures, masks, crop, size, value_range, lenient=lenient)
        self.is_whole = variants == [_UNSPLIT] or split == ALL
        if not self.is_whole:
            self.part = f"{split}: {len(chosen):,} of {len(names):,} scenes, as published"

    def files(self) -> Sequence[Path]:
        """The scenes, their label maps and descriptions."""
        described = [Path(_description(picture)) for picture in self.pictures]
        return [*super().files(), *(path for path in described if path.is_file())]

    def _factors(self, indices: Sequence[int]) -> dict[str, Tensor]:
        places = [_description(self.pictures[index]) for index in indices]
        rows = [_entities(place, self._sizes) for place in places]
        return {
            name: torch.tensor([[e[name] for e in row] for row in rows], dtype=torch.float32)
            for name in _NOTHING
        }


def is_clevrtex(folder: Path) -> bool:
    """Whether a folder is ClevrTex's, as its first pictures tell."""
    for _, folders, files in os.walk(folder):
        folders.sort()
        if pictures := [name for name in files if Path(name).suffix.lower() in ENDINGS]:
            return any(map(_SCENE.fullmatch, pictures))
    return False


def scenes_of(folder: Path) -> list[tuple[str, int, str]]:
    """Variant, number and name of each scene below a folder, by number."""
    found = []
    for name in find_pictures(folder):
        if scene := _SCENE.fullmatch(name.rpartition("/")[2]):
            found.append((scene[1], int(scene[2]), name))
    return sorted(found)


def _of_split(path: Path, names: Sequence[str], split: str) -> list[str]:
    if split not in SPLITS:
        raise ValueError(f"{path}: expected a split, {', '.join(SPLITS)} or {ALL}, got {split!r}")
    first, last = (tenth * len(names) // 10 for tenth in _TENTHS[split])
    if first == last:
        raise ValueError(f"{path}: none of the {len(names)} scenes belongs to split {split!r}")
    return [*names[first:last]]


def _description(picture: str) -> str:
    return picture.removesuffix(".png") + ".json"


def _entities(path: str, sizes: Mapping[str, float]) -> list[dict[str, float]]:
    """The factors of the background, of each object, and of what is not there."""
    require_regular(path)
    try:
        objects = json.loads(Path(path).read_bytes())["objects"]
        rows = [_numbers(each, sizes) for each in objects]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        text = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not the description of a scene: {text}") from None
    if len(rows) >= _ENTITIES:
        raise ValueError(f"{path}: expected up to {_ENTITIES - 1} objects, got {len(rows)}")
    background = {**_NOTHING, "visibility": 1.0}
    return [background, *rows, *[_NOTHING] * (_ENTITIES - 1 - len(rows))]


def _numbers(described: dict[str, Any], sizes: Mapping[str, float]) -> dict[str, float]:
    """What of an object's description is a number."""
    x, y, z = map(float, described["3d_coords"])
    size = described["size"]
    return {
        "x": x,
        "y": y,
        "z": z,
        "rotation": float(described["rotation"]),
        "size": float(sizes[size] if isinstance(size, str) else size),
        "visibility": 1.0,
    }
