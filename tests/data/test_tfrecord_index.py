"""Shards, and records in any order."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from record_writing import GZIP, TFRECORDS, cater, record, shards

from emorl.data import open_dataset
from emorl.data.readers import tfrecord, tfrecord_index
from emorl.data.readers.tfrecord_index import Records

PAYLOADS = [bytes([number]) * (100 * number) for number in range(60)]


def packed(compress=bytes, payloads=PAYLOADS) -> bytes:
    """A file whose records hold one feature."""
    rows = [record({"a": np.frombuffer(payload, np.uint8)}) for payload in payloads]
    return compress(b"".join(rows))


@pytest.fixture(params=[bytes, GZIP], ids=["plain", "gzip"])
def files(request, tmp_path: Path) -> list[Path]:
    """Three files of 60, 1 and 60 records."""
    paths = [tmp_path / name for name in "abc"]
    for path, payloads in zip(paths, (PAYLOADS, PAYLOADS[:1], PAYLOADS), strict=True):
        path.write_bytes(packed(request.param, payloads))
    return paths


@pytest.mark.parametrize("most", [3, 10, 1000])
def test_records_are_found_in_any_order(files, most, monkeypatch):
    """However few places are kept."""
    monkeypatch.setattr(tfrecord_index, "MOST_MARKS", most)
    expected = [*Records(files)]
    assert len(expected) == 121
    records = Records(files)
    draw = random.Random(0)
    for number, index in enumerate(draw.choices(range(121), k=200)):
        if number == 100:
            records = pickle.loads(pickle.dumps(records))
        assert records.record(index) == expected[index]
    with pytest.raises(IndexError, match=r"c: index 130 beyond 121 records"):
        records.record(130)
    assert records.count() == 121


@pytest.mark.parametrize("most", [0, 1, 59, 60, 61, 62, 120, 121, 122])
def test_counting_stops_where_enough_is_seen(files, most):
    records = Records(files)
    assert records.count(most) == min(most, 121)
    assert records.count() == 121


@pytest.mark.parametrize("zeros", [1, 512, 200_000])
def test_zeros_behind_the_data_are_no_records(zeros, tmp_path):
    """However many; another member may follow them."""
    path = tmp_path / "a"
    content = packed(GZIP)
    path.write_bytes(content + bytes(zeros))
    assert Records([path]).count() == 60
    path.write_bytes(content + bytes(zeros) + content)
    assert Records([path]).count() == 120


def test_places_are_few(files, monkeypatch):
    monkeypatch.setattr(tfrecord_index, "MOST_MARKS", 30)
    records = Records(files)
    records.count()
    kept = [len(shard._marks) for shard in records._shards]
    gzipped = files[0].read_bytes()[:2] == b"\x1f\x8b"
    assert kept[0] == (8 if gzipped else 61)


def test_a_pattern_means_all_shards_in_order(tmp_path):
    made = cater(tmp_path / "one")
    pattern = shards(tmp_path, [(tmp_path / "one").read_bytes()] * 3)
    dataset = open_dataset(pattern)
    assert len(dataset) == 99
    images = dataset.__getitems__([98, 33, 5]).image
    assert (images.numpy() == made.images[[32, 0, 5]].transpose(0, 3, 1, 2)).all()
    damaged = tmp_path / "cater_with_masks_train.tfrecords-00002-of-00003"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"00002-of-00003: record 0: "):
        open_dataset(pattern)
    with pytest.raises(ValueError, match=r"train-\*: no file matches; docs/datasets.md tells"):
        open_dataset(tmp_path / "train-*")


def test_a_video_on_disk_is_read_frame_by_frame(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord, "MEMORY_LIMIT", 1000)
    made = cater(tmp_path / "a")
    dataset = open_dataset(tmp_path / "a")
    assert not dataset.in_memory
    assert dataset.count(10) == 10
    image = dataset.__getitems__([7])
    assert (image.image[0].numpy() == made.images[7].transpose(2, 0, 1)).all()
    assert len(dataset) == 33
    with pytest.raises(IndexError):
        dataset[33]


def test_the_order_of_the_masks_axes_is_told_by_content(tmp_path):
    """Files that others wrote from arrays [E, H, W] are read as well as the published ones."""
    path = tmp_path / "a"
    made = TFRECORDS["Multi-dSprites, colored on grayscale"](path)
    rows = [
        {"image": image, "mask": mask, **{k: v[row] for k, v in made.factors.items()}}
        for row, (image, mask) in enumerate(zip(made.images, made.entity_masks, strict=True))
    ]
    path.write_bytes(b"".join(map(record, rows)))
    assert (open_dataset(path)[:].mask[:, 0].numpy() == made.labels).all()


def test_pickled_metadata_are_refused_with_the_cure(tmp_path):
    path = tmp_path / "clevr_10-metadata.npy"
    np.save(path, {"visibility": {"type": "categorical"}}, allow_pickle=True)
    with pytest.raises(ValueError, match=r"metadata\.npy: pickled .* any code .* open its \.hdf5"):
        open_dataset(path)
