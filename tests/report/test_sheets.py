from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emorl.cli import main
from emorl.data import Batch, open_dataset
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
        table = drawn[2].texts[0].get_text().splitlines()
        objects = int(batch.factors["visibility"][0].sum())
        assert len(table) == 1 + objects
        assert table[0].split() == ["x", "y", "shape", "scale", "orient", "color"]
        assert table[2].split()[3] == f"{batch.factors['shape'][0, 1]:g}"


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
