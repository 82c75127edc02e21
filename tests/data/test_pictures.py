"""Folders of pictures, written by Pillow, read back exactly; and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from emorl.data import check, open_dataset
from emorl.data.readers.images import ImageFolder, find_pictures, split_of
from emorl.data.readers.pictures import read_colours, read_header, require_bright

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (12, 16, 3), np.uint8)
LABELS = RNG.integers(0, 5, (12, 16), np.uint8)


def save(path: Path, pixels: NDArray[np.generic], mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def only(path: Path, **options) -> NDArray[np.uint8]:
    """The single picture of a folder, [H, W, 3]."""
    dataset = open_dataset(path, split="all", **options)
    assert len(dataset) == 1
    return dataset[0]["image"].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("ending", "mode", "options"),
    [
        ("png", None, {}),
        ("bmp", None, {}),
        ("webp", None, {"lossless": True}),
        ("PNG", None, {"interlace": 1}),
        ("png", "L", {}),
        ("bmp", "L", {}),
        ("png", "1", {}),
        ("png", "P", {}),
        ("jpg", None, {"quality": 90}),
        ("jpeg", "L", {}),
        ("jpg", "CMYK", {}),
        ("jpg", None, {"progressive": True}),
        ("webp", None, {"quality": 80}),
    ],
)
def test_a_picture_is_read_as_pillow_shows_it(ending, mode, options, tmp_path):
    path = save(tmp_path / f"a.{ending}", COLOURS, mode, **options)
    shown = np.array(Image.open(path).convert("RGB"))
    assert (only(tmp_path) == shown).all()
    if mode is None and (ending.lower() in ("png", "bmp") or "lossless" in options):
        assert (shown == COLOURS).all()


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_what_is_transparent_shows_black(ending, tmp_path):
    alpha = RNG.integers(0, 2, (12, 16, 1), np.uint8) * 255
    save(tmp_path / f"a.{ending}", np.concatenate([COLOURS, alpha], 2), lossless=True)
    assert (only(tmp_path) == np.where(alpha > 0, COLOURS, 0)).all()


def test_half_transparent_and_transparent_palettes(tmp_path):
    half = np.concatenate([COLOURS, np.full((12, 16, 1), 128, np.uint8)], 2)
    save(tmp_path / "a/a.png", half)
    assert np.abs(only(tmp_path / "a") - COLOURS * (128 / 255)).max() <= 1
    image = Image.fromarray(LABELS, "P")
    image.putpalette([255, 0, 0, 0, 255, 0] + [9] * 9)
    (tmp_path / "b").mkdir()
    image.save(tmp_path / "b/a.png", transparency=1)
    shown = only(tmp_path / "b")
    assert (shown[LABELS == 0] == (255, 0, 0)).all()
    assert (shown[LABELS == 1] == 0).all()
    assert (shown[LABELS > 1] == 9).all()


def test_grey_of_16_bits_goes_to_65535(tmp_path):
    grey = RNG.integers(0, 2**16, (12, 16), np.uint16)
    save(tmp_path / "a.png", grey)
    expected = np.rint(grey / 65535 * 255)  # no tie: 65535 / 255 is odd
    assert (only(tmp_path) == expected[..., None]).all()


def test_dark_grey_of_16_bits_is_asked_about(tmp_path):
    path = save(tmp_path / "a.png", COLOURS[..., 0].astype(np.uint16))
    with pytest.raises(
        ValueError, match=rf"^{path}: 16 bits, .* value_range \[0, 255\] \(a run's data.*\)$"
    ):
        open_dataset(tmp_path, split="all")
    assert (only(tmp_path, value_range=(0, 255)) == COLOURS[..., :1]).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_bytes_of_0_and_1_are_asked_about(mode, tmp_path):
    """Unless they are all 0, or bits, or another picture is bright."""
    bits = (COLOURS > 127).astype(np.uint8)
    pixels = {"L": bits[..., 0], "RGB": bits}
    pixels["RGBA"] = np.concatenate([bits, np.full((12, 16, 1), 255, np.uint8)], 2)
    path = save(tmp_path / "a.png", pixels[mode])
    with pytest.raises(
        ValueError, match=rf"^{path}: 8 bits, but .* value_range \[0, 1\] \(a run's "
    ):
        open_dataset(tmp_path, split="all")
    shown = bits[..., :1] if mode == "L" else bits
    assert (only(tmp_path, value_range=(0, 255)) == shown).all()
    assert (only(tmp_path, value_range=(0, 1)) == shown * 255).all()
    save(tmp_path / "b.png", COLOURS)
    assert (open_dataset(tmp_path, split="all")[0]["image"].permute(1, 2, 0).numpy() == shown).all()
    (tmp_path / "b.png").unlink()
    save(path, np.zeros((12, 16), np.uint8))
    assert (only(tmp_path) == 0).all()
    save(path, COLOURS[..., 0] > 127)
    assert (only(tmp_path) == (COLOURS[..., :1] > 127) * 255).all()


def test_a_told_range_is_held_against_the_numbers(tmp_path):
    path = save(tmp_path / "a.png", np.full((4, 4), 1, np.uint8))
    assert (only(tmp_path, value_range=(0, 255)) == 1).all()
    assert (only(tmp_path, value_range=(0, 1)) == 255).all()
    save(path, np.full((4, 4), 2, np.uint8))
    with pytest.raises(ValueError, match=rf"^{path}: expected values from 0 to 1 \(as value_range"):
        only(tmp_path, value_range=(0, 1))


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for ending in ("jpg", "png"):
        folder = tmp_path / ending
        path = save(folder / f"a.{ending}", COLOURS, exif=exif)
        stored = np.array(Image.open(path).convert("RGB"))
        assert read_header(path).shape == (16, 12)
        assert (only(folder) == np.rot90(stored, -1)).all()


def mixed(folder: Path) -> None:
    for name, shape in {"a": (30, 50), "b": (50, 30), "c": (20, 20)}.items():
        save(folder / f"{name}.png", RNG.integers(0, 256, (*shape, 3), np.uint8))


def test_pictures_of_mixed_sizes_keep_their_aspect(tmp_path):
    """The middle is cut out with the asked aspect, then resized: for rectangles too."""
    mixed(tmp_path)
    batch = open_dataset(tmp_path, split="all", size=(8, 12))[:]
    assert batch.image.shape == (3, 3, 8, 12)
    boxes = [(2, 0, 47, 30), (0, 15, 30, 35), (0, 3, 20, 16)]  # left, top, right, bottom
    for index, (name, box) in enumerate(zip("abc", boxes, strict=True)):
        image = Image.open(tmp_path / f"{name}.png").crop(box).resize((12, 8), Image.BICUBIC)
        assert (batch.image[index].permute(1, 2, 0).numpy() == np.array(image)).all()


def test_a_given_crop_comes_first(tmp_path):
    mixed(tmp_path)
    dataset = open_dataset(tmp_path, split="all", crop=(2, 12, 4, 20))
    assert dataset.image_size == (10, 16)
    stored = np.array(Image.open(tmp_path / "b.png"))
    assert (dataset[1]["image"].permute(1, 2, 0).numpy() == stored[2:12, 4:20]).all()
    with pytest.raises(ValueError, match=r"b\.png: crop .*: expected images of at least 12x40"):
        open_dataset(tmp_path, split="all", crop=(2, 12, 4, 40))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_a_fraction(orientation, tmp_path):
    """At twice the asked size or more; the same picture, up to what JPEG and resizing blur."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramps = np.broadcast_to(np.linspace(0, 255, 400), (200, 400))[..., None].repeat(3, 2)
    ramps = ramps.astype(np.uint8)
    path = save(tmp_path / "a.jpg", ramps, exif=exif, quality=95)
    save(tmp_path / "a_mask.png", np.rot90(ramps[..., 0] // 128, -int(orientation == 6)))
    size = (10, 20) if orientation == 1 else (20, 10)
    assert read_header(path).shape == ((200, 400) if orientation == 1 else (400, 200))
    assert read_colours(path, None, size).shape[:2] == tuple(5 * side // 2 for side in size)
    sample = open_dataset(tmp_path, split="all", size=size)[0]
    whole = read_colours(path, None)
    expected = np.array(Image.fromarray(whole).resize(size[::-1], Image.BICUBIC)).astype(int)
    assert np.abs(sample["image"].permute(1, 2, 0).numpy() - expected).max() <= 2
    assert (sample["mask"][0].numpy() == (expected[..., 0] > 127)).all()


def test_mixed_sizes_without_a_size_are_refused(tmp_path):
    mixed(tmp_path)
    with pytest.raises(ValueError, match=r"b\.png: expected 30x50 .* got 50x30; data\.size"):
        open_dataset(tmp_path, split="all")


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("mode", [None, "P"])
def test_label_maps_are_found_and_cut_like_their_pictures(beside, mode, tmp_path):
    folder = tmp_path / "photos"
    save(folder / "x/a.jpg", COLOURS)
    save(folder / "b.png", COLOURS)
    for stem in ("x/a", "b"):
        place = folder / f"{stem}_mask.png" if beside else tmp_path / f"photos_masks/{stem}.png"
        image = Image.fromarray(LABELS, mode)
        if mode == "P":
            image.putpalette(list(range(30)))
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place)
    batch = open_dataset(folder, split="all")[:]
    assert len(batch) == 2
    assert batch.mask is not None
    assert batch.mask.dtype == torch.uint8
    assert (batch.mask[:, 0].numpy() == LABELS).all()
    small = open_dataset(folder, split="all", size=6)[0]["mask"][0].numpy()
    nearest = Image.fromarray(LABELS[:, 2:14]).resize((6, 6), Image.NEAREST)
    assert (small == np.array(nearest)).all()


def test_more_than_255_objects_are_int32(tmp_path):
    many = RNG.integers(0, 1000, (12, 16), np.uint16)
    save(tmp_path / "a.png", COLOURS)
    save(tmp_path / "a_mask.png", many)
    for size in (None, 6):
        mask = open_dataset(tmp_path, split="all", size=size)[0]["mask"]
        assert mask.dtype == torch.int32
    assert (open_dataset(tmp_path, split="all")[0]["mask"][0].numpy() == many).all()


WRONG_MASKS = {
    "size": (LABELS[:5], r"a_mask\.png: expected a label map of 12x16 as its picture, got 5x16"),
    "colours": (COLOURS, r"a_mask\.png: expected a label map \(.*\), got RGB"),
}


@pytest.mark.parametrize("kind", WRONG_MASKS)
def test_wrong_label_maps_are_named(kind, tmp_path):
    pixels, message = WRONG_MASKS[kind]
    save(tmp_path / "a.png", COLOURS)
    save(tmp_path / "a_mask.png", pixels)
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path, split="all")[0]


def test_all_pictures_have_label_maps_or_none_has(tmp_path):
    for name in ("a.png", "a_mask.png", "b.png"):
        save(tmp_path / "in" / name, COLOURS[..., 0])
    with pytest.raises(ValueError, match=r"in/b\.png: no label map beside it \(b_mask\.png\)"):
        open_dataset(tmp_path / "in", split="all")
    (tmp_path / "in_masks").mkdir()
    with pytest.raises(ValueError, match=r"in_masks/a\.png: no such file"):
        open_dataset(tmp_path / "in", split="all")


def test_splits_follow_the_names_alone(tmp_path):
    """Other pictures move none; one in ten is for testing."""
    names = [f"{number:05}.png" for number in range(4000)]
    counts = {split: sum(split_of(n) == split for n in names) for split in ("train", "val", "test")}
    assert all(abs(counts[split] - 400) < 5 * 19 for split in ("val", "test"))  # binomial: 19
    few = names[:30]
    for name in few:
        save(tmp_path / name, COLOURS)
    listed = {}
    for split in ("train", "val", "test"):
        listed[split] = {Path(p).name for p in ImageFolder(tmp_path, split).pictures}
        assert listed[split] == {name for name in few if split_of(name) == split}
    save(tmp_path / "another.png", COLOURS)
    assert {Path(p).name for p in ImageFolder(tmp_path, "val").pictures} - {"another.png"} == (
        listed["val"]
    )
    with pytest.raises(ValueError, match="expected a split, train, val, test or all, got 'dev'"):
        open_dataset(tmp_path, split="dev")


def test_folders_that_are_called_so_are_the_splits(tmp_path):
    for number, split in enumerate(("train", "test")):
        save(tmp_path / split / "a.png", np.full((2, 2), 7 * number, np.uint8))
    assert open_dataset(tmp_path)[0]["image"].max() == 0
    assert open_dataset(tmp_path, split="test")[0]["image"].min() == 7
    with pytest.raises(ValueError, match="none of the 2 pictures belongs to split 'val'"):
        open_dataset(tmp_path, split="val")


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def huge_png(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + content


def png(pixels: NDArray[np.generic]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


DAMAGED = {
    "empty": (b"", "not a picture"),
    "text": (b"no picture", "not a picture"),
    "cut": (png(COLOURS)[:-40], "[Tt]runcated|incomplete|broken"),
    "cut header": (png(COLOURS)[:20], "."),
    "bomb": (huge_png(9_000), r"declares 9000x9000 pixels, but only \d+ bytes are stored"),
    "larger bomb": (huge_png(11_000), "declares 11000x11000 pixels, more than Pillow's limit"),
    "largest bomb": (huge_png(2**31 - 1), "."),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_one_line_that_names_the_file(kind, tmp_path):
    content, message = DAMAGED[kind]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: .*({message})") as caught:
        open_dataset(tmp_path, split="all")[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a_mask.png"])
def test_a_wrong_checksum_of_a_png_is_found(name, tmp_path):
    """Also where Pillow has all rows before it comes to the checksum."""
    for file in ("a.png", "a_mask.png"):
        path = save(tmp_path / file, LABELS)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[content.index(b"IEND") - 5] ^= 1  # the last byte of the checksum of the pixels
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: .*(checksum|broken)"):
        open_dataset(tmp_path, split="all")[0]


def error_of(folder: Path) -> str | None:
    """What reading a folder's only picture complains about."""
    try:
        only(folder)
    except ValueError as error:
        return str(error)
    return None


def test_random_damage_is_an_error_or_a_picture(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(COLOURS).save(stream, "JPEG")
    for ending, whole in {"png": png(COLOURS), "jpg": stream.getvalue()}.items():
        for trial in range(25):
            rng = np.random.default_rng(trial)
            content = np.frombuffer(whole, np.uint8).copy()
            content[rng.integers(0, len(content), 3)] = rng.integers(0, 256, 3)
            path = tmp_path / ending / f"a.{ending}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.tobytes())
            error = error_of(path.parent)
            assert error is None or (error.startswith(f"{path}: ") and "\n" not in error)


def test_pictures_are_found_in_subfolders_by_name_without_their_label_maps(tmp_path):
    names = ("b.png", "a.JPG", "sub/c.webp", "d_mask.png")
    for name in (*names, "b_mask.png", "sub/c_mask.PNG", "notes.txt", "d.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_pictures(tmp_path) == sorted(names)
    with pytest.raises(ValueError, match="expected a folder of pictures, got no folder"):
        find_pictures(tmp_path / "no")


def test_a_chunk_that_declares_too_much_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """Also where only the brightest number is looked for."""
    path = save(tmp_path / "a.png", COLOURS)
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") - 4
    length = int.from_bytes(content[start : start + 4])
    content[start : start + 4] = (length | 1 << 30).to_bytes(4)
    header = read_header(path)
    path.write_bytes(content)
    asked: list[object] = []
    load_end = lambda file: asked.append(file)  # noqa: E731  a method, unlike `append`
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_end", load_end)
    with pytest.raises(ValueError, match=r"a\.png: "):
        require_bright({path: header})
    assert not asked


def test_what_is_no_picture_file_is_left_alone(tmp_path):
    """Pipes would wait for ever; hidden files are other programs'; links may go in circles."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    save(tmp_path / ".thumbnails/a.png", COLOURS)
    save(tmp_path / "._a.png", COLOURS)
    with pytest.raises(ValueError, match=r"a folder without pictures \(\.png, "):
        open_dataset(tmp_path)
    save(tmp_path / "a.png", COLOURS)
    assert len(open_dataset(tmp_path, split="all")) == 1


def test_other_uses(tmp_path):
    """Pickled for spawned workers, limited, described."""
    mixed(tmp_path)
    dataset = open_dataset(tmp_path, split="all", size=8, limit=2)
    assert len(dataset) == 2
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.read_images([1, 0]), dataset[:].image.flip(0))
    for name in "abc":
        save(tmp_path / f"{name}.png", COLOURS)
    assert "12x16 pixels" in check(tmp_path)


def test_what_a_split_leaves_out_is_told(tmp_path):
    for number in range(30):
        save(tmp_path / f"{number}.png", COLOURS)
    train = open_dataset(tmp_path)
    assert train.part == f"train: {len(train)} of 30 pictures"
    assert open_dataset(tmp_path, split="all").part is None


def test_before_resizing_pictures_keep_what_is_resized(tmp_path):
    """The region with the aspect of the size, pixel by pixel, if it is the same in all pictures."""
    pictures = RNG.integers(2, 256, (3, 20, 30, 3), np.uint8)
    for number, pixels in enumerate(pictures):
        save(tmp_path / f"a/{number}.png", pixels)
        save(tmp_path / f"a_masks/{number}.png", pixels[..., 0])
    assert open_dataset(tmp_path / "a", split="all").before_resizing() is None
    for crop, rows, columns in ((None, (0, 20), (5, 25)), ((2, 12, 0, 30), (2, 12), (10, 20))):
        resized = open_dataset(tmp_path / "a", split="all", crop=crop, size=8, limit=2)
        whole = resized.before_resizing()
        region = pictures[:, slice(*rows), slice(*columns)]
        assert (len(resized), len(whole), whole.image_size) == (2, 2, region.shape[1:3])
        batch = whole.__getitems__([1, 0])
        assert (batch.image.permute(0, 2, 3, 1).numpy() == region[[1, 0]]).all()
        assert (batch.mask[:, 0].numpy() == region[[1, 0], ..., 0]).all()
    save(tmp_path / "a/1.png", pictures[1, :16, :20])
    save(tmp_path / "a_masks/1.png", pictures[1, :16, :20, 0])
    with pytest.raises(
        ValueError, match=r"expected pictures of one size .* got several: .*\.png and .*/1\.png "
    ):
        open_dataset(tmp_path / "a", split="all", size=8).before_resizing()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_label_is_the_number_that_is_stored(bits, tmp_path):
    """Pillow multiplies numbers of few bits, so that they show from black to white."""
    rows = np.arange(8, dtype=np.uint8)[None].repeat(8, axis=0) % min(2**bits, 7)
    packed = np.unpackbits(rows[..., None], axis=2)[..., 8 - bits :].reshape(8, -1)
    lines = b"".join(b"\0" + np.packbits(line).tobytes() for line in packed)
    header = struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    (tmp_path / "p_masks").mkdir()
    path = tmp_path / "p_masks/a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    (tmp_path / "p").mkdir()
    save(tmp_path / "p/a.png", np.full((8, 8, 3), 9, np.uint8))
    assert (open_dataset(tmp_path / "p", split="all")[0]["mask"][0].numpy() == rows).all()


def test_a_label_map_is_turned_as_it_says(tmp_path):
    labels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "p").mkdir()
    for name, stored in (("a.jpg", np.zeros((6, 8, 3), np.uint8)), ("a_mask.png", labels)):
        save(tmp_path / "p" / name, stored + np.uint8(2 * name.endswith("jpg")), exif=turned)
    mask = open_dataset(tmp_path / "p", split="all")[0]["mask"][0].numpy()
    assert (mask == np.rot90(labels, -1)).all()


def test_label_maps_that_lost_numbers_are_refused(tmp_path):
    (tmp_path / "p").mkdir()
    save(tmp_path / "p/a.png", np.full((8, 8, 3), 9, np.uint8))
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "p/a_mask.png", format="JPEG")
    with pytest.raises(ValueError, match=r"a_mask\.png: expected a label map as PNG, .* got JPEG$"):
        open_dataset(tmp_path / "p", split="all")[0]


@pytest.mark.parametrize("beside", [True, False])
def test_a_label_map_is_of_one_picture(beside, tmp_path):
    for folder in ("p", "p_masks")[: 2 - beside]:
        (tmp_path / folder).mkdir()
    for name in ("a.png", "a.jpg"):
        save(tmp_path / "p" / name, np.full((8, 8, 3), 9, np.uint8))
    place = tmp_path / ("p/a_mask.png" if beside else "p_masks/a.png")
    save(place, np.ones((8, 8), np.uint8))
    for split in ("train", "all"):
        with pytest.raises(ValueError, match=r"p/a\.png: expected a picture .* that of a\.jpg; re"):
            open_dataset(tmp_path / "p", split=split)


def test_label_maps_beside_what_a_link_leads_to_are_found(tmp_path):
    for folder in ("p", "p_masks", "here"):
        (tmp_path / folder).mkdir()
    save(tmp_path / "p/a.png", np.full((8, 8, 3), 9, np.uint8))
    save(tmp_path / "p_masks/a.png", np.full((8, 8), 3, np.uint8))
    (tmp_path / "here/link").symlink_to(tmp_path / "p")
    assert open_dataset(tmp_path / "here/link", split="all")[0]["mask"].unique().tolist() == [3]
    (tmp_path / "here/link_masks").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match="link_masks: expected a folder of label maps, got no fol"):
        open_dataset(tmp_path / "here/link", split="all")


def test_a_later_picture_of_another_size_is_refused_before_resizing(tmp_path, monkeypatch):
    """Whatever the first ones tell."""
    monkeypatch.setattr("emorl.data.readers.images.LOOKED_AT", 2)
    for number, side in enumerate((8, 8, 16)):
        save(tmp_path / f"a/{number}.png", np.full((side, side, 3), 99, np.uint8))
        save(tmp_path / f"a_masks/{number}.png", np.full((side, side), 1, np.uint8))
    whole = open_dataset(tmp_path / "a", split="all", size=4).before_resizing()
    assert whole.image_size == (8, 8)
    assert len(whole.__getitems__([0, 1])) == 2
    with pytest.raises(ValueError, match=r"2\.png: expected 8x8 pixels as the first .*, got 16x16"):
        whole.__getitems__([2])
