"""Where the label maps of a folder's pictures are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from emorl.paths import real

_BESIDE = "_mask"


def masks_beside(names: Sequence[str]) -> dict[str, str]:
    """The label map beside each picture, by the picture's name without ending."""
    stems = {name.rpartition(".")[0] for name in names}
    found = {}
    for name in names:
        stem, _, ending = name.rpartition(".")
        if ending.lower() == "png" and (of := stem.removesuffix(_BESIDE)) != stem and of in stems:
            found[of] = name
    return found


def _parallel(path: Path) -> Path | None:
    """The folder of label maps beside a folder, else beside what a link to it leads to.

    Raises:
        ValueError: if something else is called so.
    """
    places = [each.with_name(f"{each.name}_masks") for each in (path, real(path))]
    found = next((place for place in places if os.path.lexists(place)), None)
    if found is not None and not found.is_dir():
        raise ValueError(f"{found}: expected a folder of label maps, got no folder")
    return found


def require_own(path: Path, names: Sequence[str]) -> None:
    """Refuse two pictures that would have the same label map.

    Raises:
        ValueError: naming them.
    """
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(name.rpartition(".")[0], name)) != name:
            raise ValueError(
                f"{path / name}: expected a picture with a label map of its own, got that of "
                f"{Path(other).name}; rename one of them"
            )


def masks_of(path: Path, names: Sequence[str], beside: dict[str, str]) -> list[str]:
    """The label map of each picture; nothing if there are none.

    Raises:
        ValueError: naming the first that is missing.
    """
    stems = [name.rpartition(".")[0] for name in names]
    parallel = _parallel(path)
    if parallel is not None:
        masks = [str(parallel / f"{stem}.png") for stem in stems]
        missing = next((mask for mask in masks if not os.path.isfile(mask)), None)
        if missing is not None:
            raise ValueError(f"{missing}: no such file; {parallel} must have one for each picture")
        return masks
    if not beside:
        return []
    without = next(
        (name for name, stem in zip(names, stems, strict=True) if stem not in beside), None
    )
    if without is not None:
        raise ValueError(
            f"{path / without}: no label map beside it ({Path(without).stem}{_BESIDE}.png), as "
            f"{len(beside)} other pictures have"
        )
    return [str(path / beside[stem]) for stem in stems]
