"""Pictures made of pictures."""

from __future__ import annotations

import sys
import tracemalloc
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageSequence

from emorl.report.colours import PALETTE
from emorl.report.tiles import (
    captioned,
    gif,
    label_png,
    overlay,
    png,
    there_and_back,
    thumbnail,
    tiled,
    write_mp4,
)

LABELS = np.array([[0, 0, 1], [2, 2, 1]])
FRAMES = [np.full((6, 9, 3), value, dtype=np.uint8) for value in (0, 100, 200)]


def test_the_pixels_of_a_label_picture_are_the_labels():
    picture = Image.open(BytesIO(label_png(LABELS)))
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture), LABELS)
    assert picture.convert("RGB").getpixel((2, 0)) == tuple(np.rint(255 * PALETTE[1]).astype(int))
    for wrong in (LABELS + 254, LABELS - 1):
        with pytest.raises(ValueError, match="labels from 0 to 255, got"):
            label_png(wrong)


def test_an_overlay_mixes_colours_with_grey_and_draws_outlines():
    labels = np.zeros((4, 4), dtype=np.int64)
    labels[:, 2:] = 1
    image = np.full((4, 4, 3), (200, 100, 0), dtype=np.uint8)
    painted = overlay(image, labels)
    for corner, colour in ((0, PALETTE[0]), (3, PALETTE[1])):
        assert painted[corner, corner] == pytest.approx(165.75 * colour + 35, abs=0.7)
    assert (painted[:, 2] < 64).all()


def test_outlines_are_seen_in_thumbnails_of_large_pictures_too():
    labels = np.zeros((1000, 800), dtype=np.uint8)
    labels[500:] = 1
    small = thumbnail(overlay(np.full((1000, 800, 3), 128, dtype=np.uint8), labels), 160)
    middle = small[:, 80].astype(int).sum(axis=1)
    assert middle.argmin() == 80
    assert middle[80] < middle[[70, 90]].min() - 100


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1)])
def test_a_line_is_seen_in_its_thumbnail(shape):
    small = thumbnail(np.zeros((*shape, 3), dtype=np.uint8), 160)
    assert small.shape == (160, 160, 3)
    assert (small == 0).all(2).sum() == 160


@pytest.mark.parametrize("rows", [[], [[]]])
def test_a_sheet_without_pictures_is_refused(rows):
    with pytest.raises(ValueError, match="expected a picture or more"):
        tiled(rows)


def test_an_overlay_takes_little_more_memory_than_its_picture():
    image = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    labels = image[..., 0] // 32
    tracemalloc.start()
    painted = overlay(image, labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * image.nbytes
    whole = np.concatenate([overlay(image[i : i + 63], labels[i : i + 63]) for i in (0, 63)])
    inner = np.r_[0:63, 67:126]  # without the outlines where the two parts meet
    assert np.array_equal(painted[inner], whole[inner])


def test_tiles_stand_where_they_belong():
    red, blue = (np.tile(np.uint8(c), (40, 30, 1)) for c in ([255, 0, 0], [0, 0, 255]))
    sheet = tiled([[red, blue], [blue, red]])
    assert sheet.shape == (2 * 120 + 2 * 2, 2 * 90 + 2 * 2, 3)  # enlarged to 64 pixels or more
    assert [*sheet[5, 5]] == [*sheet[240, 180]] == [255, 0, 0]
    assert [*sheet[5, 100]] == [*sheet[240, 5]] == [0, 0, 255]
    assert [*sheet[121, 5]] == [255, 255, 255]
    named = tiled([[red, blue], [blue, red]], ["one", "two"], ["a", "b"])
    assert named.shape[0] == sheet.shape[0] + 14
    assert np.array_equal(named[14:, -sheet.shape[1] :], sheet)
    assert np.array_equal(np.asarray(Image.open(BytesIO(png(sheet)))), sheet)


@pytest.mark.parametrize(
    "name",
    ["a.png", "", "a\nb\tc.png", "\u732b\u00e9.png", "\udcff.png", "sub/" + 999 * "long-" + ".png"],
)
def test_a_caption_is_one_line_below_its_pictures(name):
    picture = np.zeros((64, 80, 3), dtype=np.uint8)
    sheet = captioned([picture, picture], name)
    assert sheet.shape == (66 + 14, 2 * 82, 3)
    assert np.array_equal(sheet[:66], tiled([[picture, picture]]))
    text = (sheet[66:] < 255).any(axis=2)
    assert text.any() == bool(name)
    assert not text[:, -2:].any()


def test_a_long_caption_lacks_its_middle():
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    short, long = (captioned([picture], "left" + n * "-" + "right.png")[66:] for n in (0, 99))
    assert np.array_equal(short[:, :15], long[:, :15]), "both begin alike"
    assert not np.array_equal(short, long)
    other = captioned([picture], "left" + 99 * "-" + "right.jpg")[66:]
    assert not np.array_equal(long, other), "the end is shown"


@pytest.mark.parametrize("size", [(10, 20), (200, 400)])
def test_a_thumbnail_keeps_its_shape(size):
    small = thumbnail(np.zeros((*size, 3), dtype=np.uint8), 40)
    assert small.shape == (40, 40, 3)
    assert (small[10:30] == 0).all()
    assert (small[:10] == 255).all()


def test_a_gif_goes_there_and_back():
    assert [frame[0, 0, 0] for frame in there_and_back(FRAMES)] == [0, 100, 200, 100]
    film = Image.open(BytesIO(gif(FRAMES)))
    values = [frame.convert("RGB").getpixel((0, 0))[0] for frame in ImageSequence.Iterator(film)]
    assert values == [0, 100, 200, 100]
    assert film.info["loop"] == 0


def test_a_film_gets_even_frames(monkeypatch, tmp_path):
    sent, asked = [], {}

    def write_frames(path, size, **options):
        asked.update(options, path=path, size=size)
        while True:
            sent.append((yield))

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", SimpleNamespace(write_frames=write_frames))
    write_mp4(tmp_path / "a.mp4", [frame[:5] for frame in FRAMES])
    assert asked["size"] == (10, 6)
    assert [frame[0, 0, 0] for frame in sent] == [0, 100, 200, 100]
    assert all(frame.shape == (6, 10, 3) for frame in sent)
    assert (sent[0][5] == 255).all()
    assert (sent[0][:, 9] == 255).all()
