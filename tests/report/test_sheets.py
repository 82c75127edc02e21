from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from numpy.typing import NDArray

from emorl.cli import main
from emorl.data import Batch, open_dataset
from emorl.report.colours import BACKGROUND, PALETTE
from emorl.report.pictures import picture
from emorl.report.sheets import contact_sheet


@pytest.mark.parametrize(("known", "panels"), [("all", 3), ("masks", 2), ("images", 1)])
def test_a_sheet_has_what_is_known(known: str, panels: int) -> None:
    batch = open_dataset("multi_dsprites").__getitems__(range(3))
    batch = Batch(
        batch.image,
        None if known == "images" else batch.mask,
        batch.factors if known == "all" else {},
        torch.arange(3),
    )
    figure = contact_sheet(batch, "three scenes")
    assert len(figure.axes) == 2 * 2 * panels  # two rows of two images, the last place empty
    drawn = [axes for axes in figure.axes if axes.images or axes.texts]
    assert len(drawn) == 3 * panels
    assert picture(figure, "png").startswith(b"\x89PNG")
    if known == "all":
        header, *table = _rows(drawn[2])
        assert len(table) == int(batch.factors["visibility"][0].sum())
        assert header.split() == [*batch.factors]
        assert table[1].split()[2] == f"{batch.factors['shape'][0, 1]:g}"


def test_an_entitys_line_has_the_colour_of_its_segment() -> None:
    batch = open_dataset("multi_dsprites").__getitems__([1])
    segments, table = contact_sheet(batch, "a scene").axes[1:]
    pixels = np.asarray(segments.images[0].get_array())
    image = batch.image[0].numpy().mean(0) / 255
    squares = [text for text in table.texts if text.get_text() == "\N{BLACK SQUARE}"]
    for entity, square in enumerate(squares):
        where = batch.mask[0, 0].numpy() == entity
        painted = (pixels[where] - 0.15 * image[where][:, None]) / 0.85
        np.testing.assert_allclose(
            painted.T, _rgb(square)[:, None].repeat(where.sum(), 1), atol=1e-5
        )
    assert len(squares) == int(batch.factors["visibility"].sum())


def test_a_sheet_of_many_entities_and_of_factors_that_some_of_them_lack() -> None:
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    factors = {"angle": torch.rand(1, 20), "light": torch.rand(1, 1)}
    (axes,) = contact_sheet(Batch(image, None, factors), "a scene").axes[1:]
    header, *table, more = _rows(axes)
    assert header.split() == ["angle", "light"]
    assert [len(line.split()) for line in table] == [2, *[1] * 10]
    assert more.strip() == "and 9 more"


def test_an_entitys_factors_are_drawn_as_far_as_there_is_room() -> None:
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    factors = {
        "long$^$": torch.zeros(1, 3, 900),
        "visibility": torch.ones(1, 3, 2),
        "none": torch.zeros(1, 0),
    }
    figure = contact_sheet(Batch(image, None, factors), "a $^$")
    header, *table = _rows(figure.axes[1])
    assert header.split() == [*factors]
    assert [line.split() for line in table] == [[*"0000", "...", "1", "1"]] * 3
    assert picture(figure, "png").startswith(b"\x89PNG")


def test_the_largest_labels_are_drawn_in_the_colours_of_their_numbers() -> None:
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.int32)
    mask[..., 1], mask[..., 2], mask[..., 3] = 1, 2**31 - 2, 5
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    axes = contact_sheet(Batch(image, mask), "a scene").axes[1]
    (painted,) = np.asarray(axes.images[0].get_array())[:1, :4] / 0.85
    of_palette = PALETTE[[0, (2**31 - 3) % len(PALETTE), 4]]
    np.testing.assert_allclose(painted, [BACKGROUND, *of_palette], atol=1e-6)


def test_a_sheet_of_no_images_is_refused() -> None:
    batch = Batch(torch.zeros(0, 3, 16, 16, dtype=torch.uint8), None)
    with pytest.raises(ValueError, match="expected an image or more, got none"):
        contact_sheet(batch, "nothing")


def _rows(axes: Axes) -> list[str]:
    """The lines of a table, without the numbers and squares before them."""
    return [text.get_text() for text in axes.texts if text.get_text().startswith("    ")]


def _rgb(text: Text) -> NDArray[np.float64]:
    return np.array(to_rgb(text.get_color()))


def test_a_generator_is_stored_in_another_size_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, sheet = tmp_path / "small.h5", tmp_path / "small.png"
    options = f"--out {stored} --images 3 --size 16 --split test"
    assert main(f"data generate clevr6 {options}".split()) == 0
    assert main(f"data check {stored} --sheet {sheet}".split()) == 0
    assert "16x16 pixels" in capsys.readouterr().out
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert main(f"data check {stored} --sheet {tmp_path}".split()) == 2
