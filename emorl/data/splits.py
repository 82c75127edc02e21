"""Splits of files that hold all images of a data set, as they were published.

* DeepMind's TFRecords have none of their own. Papers train on the first 60,000 images of
  Tetrominoes and Multi-dSprites and the first 70,000 of CLEVR, and test on 320 others, which are
  here those that follow.
* object-centric-library takes 90,000 images for training, then 5,000 for validation and 5,000 for
  testing; multi_object_datasets_torch likewise, but tests on the former 5,000.

A file with fewer images than that is one split.
"""

from __future__ import annotations

ALL = "all"
"""The split of all images of a file that has no groups."""

_TESTED = 320
_PUBLISHED: dict[str, tuple[tuple[str, int], ...]] = {
    "tetrominoes": (("train", 60_000), ("test", _TESTED)),
    "multi-dsprites": (("train", 60_000), ("test", _TESTED)),
    "clevr": (("train", 70_000), ("test", _TESTED)),
    "object-centric-library's files": (("train", 90_000), ("val", 5_000), ("test", 5_000)),
    "multi_object_datasets_torch's files": (("train", 90_000), ("test", 5_000), ("val", 5_000)),
}


def published(layout: str, split: str) -> range | None:
    """The images of a published split; None where nothing is published.

    Args:
        layout: name of a TFRecord's or HDF5 file's layout.
        split: "train", "val", "test" or `ALL`.

    Raises:
        ValueError: if the published splits have another name.
    """
    if split == ALL or layout not in _PUBLISHED:
        return None
    start = 0
    for name, images in _PUBLISHED[layout]:
        if name == split:
            return range(start, start + images)
        start += images
    names = ", ".join(name for name, _ in _PUBLISHED[layout])
    raise ValueError(f"expected a published split, {names} or {ALL}, got {split!r}")


def needed(layout: str) -> int:
    """Images that a file must have to be divided as published; 0 where nothing is published."""
    return sum(images for _, images in _PUBLISHED.get(layout, ()))


def shown(split: str, images: range) -> str:
    """What stands beside a result for these images."""
    return f"{split}: images {images.start:,} to {images.stop - 1:,} of the file, as published"
