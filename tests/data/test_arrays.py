"""NumPy's files, written by NumPy, read back exactly; and what is refused."""

from __future__ import annotations

import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from emorl.cli import main
from emorl.data import check, convert, open_dataset

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 6, 8, 3), np.uint8)
LABELS = RNG.integers(0, 3, (4, 6, 8), np.uint8)
ENTITIES = (LABELS[:, None] == np.arange(3)[:, None, None]) * np.uint8(255)


def require_images(batch, images=IMAGES) -> None:
    assert (batch.image.permute(0, 2, 3, 1).numpy() == images).all()


@pytest.mark.parametrize("stored", [IMAGES, IMAGES.transpose(0, 3, 1, 2), IMAGES / 255])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("masks", [LABELS, LABELS[..., None], ENTITIES, ENTITIES[..., None] / 255])
def test_archives_are_read_exactly(stored, save, masks, tmp_path):
    factors = {"x": RNG.random((4, 3)), "color": RNG.random((4, 3, 3)), "name": np.array("text")}
    save(tmp_path / "a.npz", image=stored, mask=masks, **factors)
    dataset = open_dataset(tmp_path / "a.npz")
    batch = pickle.loads(pickle.dumps(dataset)).__getitems__([2, 0])
    require_images(batch, IMAGES[[2, 0]])
    assert (batch.mask[:, 0].numpy() == LABELS[[2, 0]]).all()
    assert batch.factors.keys() == {"x", "color"}
    assert torch.equal(batch.factors["x"], torch.tensor(factors["x"][[2, 0]]).float())


def test_a_published_archive_is_read(fixtures_dir):
    dataset = open_dataset(fixtures_dir / "data" / "tetrominoes_mini_train10.npz")
    other = open_dataset(fixtures_dir / "data" / "tetrominoes_mini.tfrecords")
    assert torch.equal(dataset[:].image, other[:].image)
    assert torch.equal(dataset[:].mask, other[:].mask)


def test_arrays_are_read_with_their_masks(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    assert open_dataset(tmp_path / "a.npy")[:].mask is None
    np.save(tmp_path / "a_masks.npy", LABELS.astype(np.int64) * 200)
    batch = open_dataset(tmp_path / "a.npy")[:]
    require_images(batch)
    assert batch.mask.dtype == torch.int32
    assert (batch.mask[:, 0].numpy() == LABELS.astype(np.int32) * 200).all()
    np.save(tmp_path / "grey.npy", IMAGES[..., 0])
    require_images(open_dataset(tmp_path / "grey.npy")[:], IMAGES[..., :1])


def test_factors_survive_conversion_or_are_named(tmp_path):
    factors = {"x": RNG.random((4, 3, 1)), "y": RNG.random((4, 3)), "z": RNG.random((4, 3, 2))}
    np.savez(tmp_path / "a.npz", image=IMAGES, mask=LABELS, **factors)
    source = open_dataset(tmp_path / "a.npz")
    stored = open_dataset(convert(source, tmp_path / "a.h5"))
    for name, shape in {"x": (4, 3), "y": (4, 3), "z": (4, 3, 2)}.items():
        assert source[:].factors[name].shape == shape
        assert torch.equal(stored[:].factors[name], source[:].factors[name])
    np.savez(tmp_path / "b.npz", image=IMAGES, x=RNG.random((4, 3)), scene=RNG.random(4))
    with pytest.raises(ValueError, match="same number of entities, got x 3, scene 1"):
        convert(open_dataset(tmp_path / "b.npz"), tmp_path / "b.h5")
    assert not [*tmp_path.glob("b.h5*")]


def test_one_image_without_its_axis_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES[0])
    with pytest.raises(ValueError, match=r"got \[.*, 3\]: one image is \[1, H, W, 3\]"):
        open_dataset(tmp_path / "a.npy")


def test_labels_beyond_the_factors_and_unequal_ones_are_problems(tmp_path):
    np.savez(tmp_path / "a.npz", image=IMAGES, mask=LABELS, x=RNG.random((4, int(LABELS.max()))))
    report = check(tmp_path / "a.npz")
    assert "labels beyond the entities of the factors" in report
    assert "the background first" in report
    np.savez(tmp_path / "b.npz", image=IMAGES, x=RNG.random((4, 3)), camera=RNG.random((4, 2)))
    assert "factors of different numbers of entities: 4 of 4 images" in check(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", image=IMAGES, x=RNG.random((4, 3)), scene=RNG.random(4))
    assert check(tmp_path / "c.npz").endswith("problems: none")


def test_a_truncated_archive_is_called_so(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, image=IMAGES)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"^{path}: a truncated archive, or a damaged one: "):
        open_dataset(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_infinite_masks_stop_with_their_index(value, tmp_path):
    masks = (LABELS[..., None] == np.arange(LABELS.max() + 1)).astype(np.float64)
    masks[1, 0, 0, 0] = value
    np.savez(tmp_path / "a.npz", image=IMAGES, mask=masks)
    with pytest.raises(ValueError, match=r"a\.npz: image 1: expected masks of finite numbers"):
        open_dataset(tmp_path / "a.npz")[:]


def test_values_follow_the_policy(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, IMAGES.astype(np.float32))
    with pytest.raises(ValueError, match=rf"^{path}: image 0: .* value_range \[0, 255\]"):
        open_dataset(path)
    require_images(open_dataset(path, value_range=(0, 255))[:])
    np.save(path, IMAGES // 255)
    with pytest.raises(ValueError, match="say what they mean by value_range"):
        open_dataset(path)


def declared(path: Path, *, archived: bool) -> None:
    """An array that declares far more than it stores."""
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (900000, 900, 900, 3), }"
    header = text.ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 9
    if archived:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("image.npy", content)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (b"\x02", r"declares a header of \d+ bytes, but only \d+ are stored"),
        (b"\x81", "expected version 1, 2 or 3 of NumPy's format, got 129"),
    ],
)
def test_a_damaged_header_takes_no_memory(version, message, tmp_path):
    """In version 2 the length has twice as many bytes, of which half are the header's own then."""
    path = tmp_path / "a.npy"
    np.save(path, IMAGES)
    path.write_bytes(b"\x93NUMPY" + version + path.read_bytes()[7:])
    with pytest.raises(ValueError, match=rf"^{path}: (a\.npy:? )?{message}"):
        open_dataset(path)


def test_damage_is_one_line_that_names_the_file(tmp_path):
    for name, archived in (("a.npy", False), ("a.npz", True)):
        path = tmp_path / name
        declared(path, archived=archived)
        with pytest.raises(ValueError, match=rf"^{path}: .*declares \d+ bytes, but only"):
            open_dataset(path)
        save = np.savez if archived else np.save
        save(path, **{"image" if archived else "arr": IMAGES})
        whole = path.read_bytes()
        path.write_bytes(whole[:-30])
        with pytest.raises(ValueError, match=f"^{path}: ") as caught:
            open_dataset(path)
        assert "\n" not in str(caught.value)
    np.savez(path, image=IMAGES, mask=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickled Python objects"):
        open_dataset(path)
    np.savez(path, pictures=IMAGES)
    with pytest.raises(ValueError, match="expected an array image or images or imgs, got pictures"):
        open_dataset(path)
    np.savez(path, image=IMAGES, mask=LABELS[:, :3])
    with pytest.raises(ValueError, match=r"expected mask \[4, E, 6, 8\]"):
        open_dataset(path)


def test_masks_are_files_of_the_data_beside_it_or_what_a_link_leads_to(tmp_path):
    images, masks = tmp_path / "a.npy", tmp_path / "a_masks.npy"
    np.save(images, IMAGES)
    assert [*open_dataset(images).files()] == [images]
    np.save(masks, np.ones(IMAGES.shape[:3], np.uint8))
    assert [*open_dataset(images).files()] == [images, masks]
    (tmp_path / "link.npy").symlink_to(images)
    linked = open_dataset(tmp_path / "link.npy")
    assert linked[0]["mask"].unique().tolist() == [1]
    assert [*linked.files()] == [tmp_path / "link.npy", masks]
    before = masks.read_bytes()
    assert main(["data", "check", str(images), "--sheet", str(masks)]) == 2
    assert masks.read_bytes() == before
    masks.unlink()
    masks.symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"a_masks\.npy: .*No such file"):
        open_dataset(images)


def test_masks_that_are_a_device_are_not_read(tmp_path):
    """Nor if they are a pipe, which would never end."""
    np.save(tmp_path / "a.npy", IMAGES)
    (tmp_path / "a_masks.npy").symlink_to("/dev/null")
    with pytest.raises(ValueError, match=r"a_masks\.npy: expected a file, got a device or a pipe"):
        open_dataset(tmp_path / "a.npy")


def test_parts_of_a_conversion_with_other_masks_are_stale(tmp_path, monkeypatch):
    images, masks = tmp_path / "a.npy", tmp_path / "a_masks.npy"
    np.save(images, IMAGES)
    np.save(masks, np.ones(IMAGES.shape[:3], np.uint8))

    def stop(*_):
        raise OSError("full")

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["emorl.data.convert"], "join", stop)
        with pytest.raises(OSError, match="full"):
            convert(open_dataset(images), tmp_path / "a.h5")
    changed = np.ones(IMAGES.shape[:3], np.uint8)
    changed[-1] = 2
    np.save(masks, changed)
    with pytest.raises(ValueError, match="or its source has changed; remove it"):
        convert(open_dataset(images), tmp_path / "a.h5")
