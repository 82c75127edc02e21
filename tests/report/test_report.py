"""Figures and the HTML report, on a decomposition made by hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from emorl.models.base import Decomposition, Stage
from emorl.report import (
    attention_figure,
    curves_figure,
    decomposition_figure,
    masks_figure,
    stages_figure,
    write_pictures,
    write_report,
)
from emorl.report.colours import (
    BACKGROUND,
    PALETTE,
    over_checker,
    segment_colours,
    slot_colours,
)
from emorl.report.curves import curve_data
from emorl.report.pictures import png
from emorl.runs.files import write_atomically

SHAPES = [  # offsets of four blocks, in blocks of 5 pixels
    [(0, 0), (0, 1), (0, 2), (0, 3)],
    [(0, 0), (0, 1), (1, 0), (1, 1)],
    [(0, 0), (1, 0), (2, 0), (2, 1)],
]
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]])
SIZE = 35


def draw_tetrominoes(batch: int) -> tuple[Tensor, Tensor]:
    """Three blocks-of-four per image on black: uint8 [B, 3, 35, 35] and labels [B, 1, 35, 35]."""
    images = torch.zeros(batch, 3, SIZE, SIZE, dtype=torch.uint8)
    masks = torch.zeros(batch, 1, SIZE, SIZE, dtype=torch.uint8)
    for index in range(batch):
        for label, shape in enumerate(SHAPES, start=1):
            top, left = 12 * (label - 1) - 2 * (label == 3), 3 + 4 * ((index + label) % 3)
            for y, x in shape:
                rows = slice(top + 5 * y, top + 5 * y + 5)
                columns = slice(left + 5 * x, left + 5 * x + 5)
                images[index, :, rows, columns] = COLOURS[(index + label) % 5, :, None, None]
                masks[index, 0, rows, columns] = label
    return images, masks


def soften(masks: Tensor, num_slots: int, sharpness: float) -> Tensor:
    """Smooth slot masks [B, K, 1, H, W] that agree with the labels as far as they are sharp."""
    batch, _, height, width = masks.shape
    order = torch.tensor([2, 0, 3, 1])[masks.long()[:, 0]]
    truth = torch.nn.functional.one_hot(order, num_slots).movedim(-1, 1).float()
    noise = torch.nn.functional.interpolate(
        torch.randn(batch, num_slots, 5, 5), (height, width), mode="bicubic"
    )
    return (sharpness * truth + noise).softmax(1)[:, :, None]


def fake_decomposition(images: Tensor, masks: Tensor, num_slots: int = 5) -> Decomposition:
    stages = []
    for step, name in enumerate(["layer 1", "layer 2", "layer 3", "refinement 1", "refinement 2"]):
        soft = soften(masks, num_slots, 1.0 + 2 * step)
        colour = (soft * images[:, None] / 255).sum((-1, -2)) / soft.sum((-1, -2))
        components = colour[..., None, None].expand(-1, -1, -1, *images.shape[2:])
        components = (components + 0.02 * torch.randn(components.shape)).clamp(0, 1)
        mixed = (soft * components).sum(1)
        slots = torch.randn(len(images), num_slots, 8)
        stages.append(Stage(name, Decomposition(mixed, soft, components, slots)))
    last = stages[-1].decomposition
    attention = torch.stack([soften(masks, num_slots, 1.0 + s)[:, :, 0] for s in range(3)], 1)
    return Decomposition(
        last.reconstruction, last.masks, last.components, last.slots, attention, tuple(stages)
    )


@pytest.fixture(scope="module")
def pictured() -> tuple[Tensor, Tensor, Decomposition]:
    torch.manual_seed(0)
    images, masks = draw_tetrominoes(3)
    return images, masks, fake_decomposition(images, masks)


def pixels_in(figure: Figure) -> np.ndarray:
    """What a figure looks like, uint8 [height, width, 3]."""
    return np.asarray(Image.open(BytesIO(png(figure))).convert("RGB"))


def test_pictures_are_written_whole(pictured, tmp_path) -> None:
    images, masks, decomposition = pictured
    paths = write_pictures(tmp_path / "new" / "folder", images, decomposition, masks)
    assert [p.name for p in paths] == [
        "decomposition.png",
        "masks.png",
        "attention.png",
        "stages.png",
    ]
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    for path in paths:
        assert np.asarray(Image.open(path)).std() > 10


def test_pictures_without_details_or_truth(pictured, tmp_path) -> None:
    images, _, whole = pictured
    plain = Decomposition(whole.reconstruction, whole.masks, whole.components, whole.slots)
    paths = write_pictures(tmp_path, images.float() / 255, plain)
    assert [path.name for path in paths] == ["decomposition.png", "masks.png"]


def test_input_panel_shows_every_pixel(pictured) -> None:
    images, masks, decomposition = pictured
    figure = pixels_in(decomposition_figure(images, decomposition, true_masks=masks))
    enlarged = images[0].permute(1, 2, 0).repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
    height, width, _ = enlarged.shape
    top = 32  # below the headers
    places = [
        x for x in range(200) if (figure[top : top + height, x : x + width] == enlarged).all()
    ]
    assert len(places) == 1


def test_rows_limit_the_figure(pictured) -> None:
    images, _, decomposition = pictured
    heights = [
        decomposition_figure(images, decomposition, rows=rows).get_figheight() for rows in (1, 2, 9)
    ]
    panel = heights[1] - heights[0]
    assert panel == pytest.approx(1.0)  # 35 pixels enlarged 4 times, and a gap of 10, at 150 dpi
    assert heights[2] == pytest.approx(heights[0] + 2 * panel)


def test_attention_of_another_size_than_the_image(pictured) -> None:
    images, _, decomposition = pictured
    small = replace(decomposition, attention=decomposition.attention[..., ::5, ::5])
    assert pixels_in(attention_figure(images, small)).std() > 10


def test_stages_figure_has_a_row_for_the_target_and_each_stage(pictured) -> None:
    images, masks, decomposition = pictured
    figure = stages_figure(images, decomposition, true_masks=masks, index=2)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert [t.split("\n")[0] for t in texts[-6:]] == [
        "target",
        "layer 1",
        "layer 2",
        "layer 3",
        "refinement 1",
        "refinement 2",
    ]
    assert texts[-1].split("\n")[2] == "FG-ARI 1.00"


def test_figures_use_no_global_state(pictured) -> None:
    images, _, decomposition = pictured
    command = "import emorl.report, sys; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
    assert masks_figure(images, decomposition) is not masks_figure(images, decomposition)


def test_figures_do_not_depend_on_the_users_own_settings(pictured) -> None:
    """As of a matplotlibrc, which may ask for LaTeX where there is none."""
    images, _, decomposition = pictured

    def drawn() -> list[bytes]:
        return [png(curves_figure(ROWS)), png(attention_figure(images, decomposition))]

    before = drawn()
    users = {"text.usetex": True, "axes.facecolor": "red", "savefig.transparent": True}
    with matplotlib.rc_context(users):
        assert drawn() == before
        assert matplotlib.rcParams["text.usetex"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda i, d: masks_figure(i[:2], d), r"got images \[2, 3, 35, 35\] and reconstruction \["),
        (lambda i, d: masks_figure(i, d, true_masks=i), r"expected true masks \[3, 1, 35, 35\] or"),
        (lambda i, d: stages_figure(i, d, index=3), "expected an index from 0 to 2, got 3"),
        (lambda i, d: stages_figure(i, replace(d, stages=())), "with stages, got none"),
        (lambda i, d: attention_figure(i, replace(d, attention=None)), "attention, got None"),
    ],
    ids=["images", "truth", "index", "no-stages", "no-attention"],
)
def test_figure_errors(pictured, draw, message) -> None:
    images, _, decomposition = pictured
    with pytest.raises(ValueError, match=message):
        draw(images, decomposition)


def test_slots_take_the_colour_of_their_true_segment() -> None:
    truth = segment_colours([0, 4, 9])
    colours = slot_colours(5, truth, {0: 9, 2: 0, 3: 4})
    assert colours[0] is truth[9]
    assert (colours[2] == BACKGROUND).all()
    assert colours[3] is truth[4]
    assert len({tuple(c) for c in colours.values()}) == 5


def test_palette_never_ends() -> None:
    colours = slot_colours(len(PALETTE) + 1, {}, {})
    assert len({tuple(c) for c in colours.values()}) == len(PALETTE)


def test_over_checker_is_the_component_where_the_mask_is_one() -> None:
    component, mask = np.full((6, 6, 3), 0.3), np.zeros((6, 6))
    mask[:3] = 1
    shown = over_checker(component, mask)
    assert (shown[:3] == 0.3).all()
    assert shown[3:].min() > 0.8


ROWS = [
    {
        "step": step,
        "loss": 1e4 if step == 1 else 100.0 - step,
        "nll": 50.0,
        "nll_0": 60.0,
        "nll_1": 50.0,
        "kl": 3.0,
        "kl_layer_1": 1.0,
        "kl_layer_2": None,
        "kl_refinement_1": 3.0 if step != 7 else float("nan"),
        "learning_rate": 1e-3,
        "images_per_second": 40.0,
        "refinement_steps": 1,
    }
    | ({"fg_ari": 0.5} if step % 10 == 0 else {})
    for step in range(1, 101)
]


def test_curves_figure_draws_what_was_logged() -> None:
    axes = {a.get_title(loc="left"): a for a in curves_figure(ROWS).axes}
    assert list(axes) == [
        "Loss",
        "NLL in nats, or squared error",
        "KL divergence, nats",
        "FG-ARI on held-out images",
        "Learning rate",
        "Training speed, images/s",
    ]
    legends = [
        [text.get_text() for text in axes[title].get_legend().get_texts()]
        for title in ("NLL in nats, or squared error", "KL divergence, nats")
    ]
    assert legends == [["before refinement", "refinement 1"], ["layer 1", "refinement 1"]]
    assert len(axes["FG-ARI on held-out images"].lines[0].get_xdata()) == 10
    assert axes["Loss"].get_ylim()[1] < 110  # the first step's 10000 does not set the axis
    assert len(axes["KL divergence, nats"].lines[-1].get_xdata()) == 99  # without the NaN


def test_running_mean_of_a_line_is_the_line() -> None:
    rows = [{"step": s, "loss": 2.0 * s} for s in range(1000)]
    raw, smooth = curves_figure(rows).axes[0].lines
    inside = slice(20, -20)
    np.testing.assert_allclose(smooth.get_ydata()[inside], raw.get_ydata()[inside], rtol=1e-9)


def test_curves_of_runs_are_numbers_for_a_page() -> None:
    other = [{"step": step, "loss": 2.0 * step, "kl_layer_2": 1.0} for step in range(5000)]
    panels = {panel["family"]: panel for panel in curve_data([ROWS, other])}
    assert list(panels) == ["loss", "nll", "kl", "fg_ari", "learning_rate", "images_per_second"]
    first, second = panels["loss"]["curves"]
    assert (first["run"], second["run"]) == (0, 1)
    assert (first["steps"][:2], first["values"][:2]) == ([1.0, 2.0], [1e4, 98.0])
    assert second["steps"] == list(range(0, 5000, 5))  # a thousand of them
    assert second["smooth"][500] == pytest.approx(second["values"][500], rel=1e-4)
    assert panels["loss"]["settled"] == 0.02 * 4999
    kinds = [(c["run"], c["legend"], c["colour"]) for c in panels["kl"]["curves"]]
    assert kinds == [(0, "layer 1", 0), (0, "refinement 1", 1), (1, "layer 2", 2)]
    assert panels["fg_ari"]["settled"] == 0
    assert panels["fg_ari"]["curves"][0]["smooth"] is None
    assert curve_data([[]]) == []


@pytest.mark.parametrize("value", [1e308, -1e308, 1e39])
def test_values_beyond_float32_are_not_drawn(value) -> None:
    rows = [{"step": step, "loss": value if step < 5 else 2.0} for step in range(200)]
    (panel,) = curve_data([rows])
    (curve,) = panel["curves"]
    assert curve["steps"][0] == 5
    assert {*curve["values"], *curve["smooth"]} == {2.0}
    assert {*curves_figure(rows).axes[0].lines[0].get_ydata()} == {2.0}


@pytest.mark.parametrize("rows", [[], [{"step": 1, "epoch": 3}], [{"step": 1, "loss": None}]])
def test_curves_figure_needs_values(rows) -> None:
    with pytest.raises(ValueError, match=f"expected rows with losses, got {len(rows)} rows"):
        curves_figure(rows)


EVALUATION = {
    "checkpoint": "run/checkpoints/step-00000100",
    "data": "tetrominoes <&>",
    "split": "test",
    "images": 320,
    "refinement_steps": None,
    "num_slots": 5,
    "batch_size": 24,
    "seed": 0,
    "a_later_setting": "x",
    "notes": ["fg_ari is not defined for 1 images, left out"],
    "metrics": {
        "fg_ari": {"mean": 0.98765, "std": 0.0123, "count": 319},
        "mse": {"mean": None, "std": None, "count": 0},
        "kl_layer_2": {"mean": 12.5, "std": 1.0, "count": 320},
        "kl_refinement_3": {"mean": 70.7, "std": 1.0, "count": 320},
        "something_new": {"mean": 123456.7, "std": 1.0, "count": 320},
    },
}


@pytest.fixture(scope="module")
def pictures(pictured, tmp_path_factory) -> Path:
    images, masks, decomposition = pictured
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "step-00000100", images, decomposition, masks)
    shutil.copytree(folder / "step-00000100", folder / "step-00000020")
    return folder


@pytest.fixture
def run_dir(pictures, tmp_path) -> Path:
    folder = tmp_path / "my-run"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "model: efficient_morl\nnetwork: {image_size: [35, 35], num_slots: 4}\n"
        "data: {train: tetrominoes}\ntrainer: {steps: 100, batch_size: 32}\n"
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "evaluation" / "test.json").write_text(json.dumps(EVALUATION))
    shutil.copytree(pictures, folder / "pictures")
    return folder


def test_report_tells_about_the_run(run_dir) -> None:
    path = write_report(run_dir)
    page = path.read_text()
    assert path == run_dir / "report.html"
    for text in (
        "<h1>my-run</h1>",
        "efficient_morl",
        "35 x 35",
        "100 of 100",
        "80 s, the steps alone",  # 100 steps of 32 images, 40 images/s
        "0.9877",
        "checkpoint: run/checkpoints/step-00000100, data: tetrominoes &lt;&amp;&gt;, split: test, "
        "images: 320, slots: 5, batch size: 24, seed: 0, a later setting: x</p>",
        "KL, layer 2",
        "KL, refinement step 3",
        "something_new",
        "123457",
        "not defined for 1 images",
        "After step 100.",
        "background are left out",
    ):
        assert text in page
    assert page.count("data:image/png;base64,") == 4  # the newest pictures
    assert "not complete" not in page
    assert sorted(p.name for p in run_dir.iterdir()) == [
        "config.yaml",
        "evaluation",
        "metrics.jsonl",
        "pictures",
        "report.html",
    ]


def test_report_asks_nothing_of_the_network(run_dir) -> None:
    page = write_report(run_dir).read_text()
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,30})", page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|@import|url\(", page)
    assert "default-src 'none'; img-src data:;" in page  # so that the browser sees to it


def test_report_names_what_is_missing(tmp_path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "torn.json").write_text('{"metrics": ')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1}\n{"step": 2, "lo')
    page = write_report(tmp_path).read_text()
    for sentence in (
        "config.yaml is not there",
        "metrics.jsonl: 1 of its lines cannot be read",
        "metrics.jsonl has no values that make a curve",
        "evaluation/torn.json cannot be read",
        "There is no evaluation.",
        "There are no pictures",
    ):
        assert sentence in page


@pytest.fixture
def other_dir(run_dir) -> Path:
    """A run that logged less, and was evaluated on the same data and on others."""
    folder = run_dir.parent / "<b>other"
    shutil.copytree(run_dir, folder)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 7.5}\n{"step": 2, "loss": 3.5}\n')
    less = {"metrics": {"fg_ari": {"mean": 0.5, "std": 0.25, "count": 10}}, "data": "more"}
    for name in ("test", "more"):
        (folder / "evaluation" / f"{name}.json").write_text(json.dumps(less))
    return folder


def rows_of(page: str) -> list[list[str]]:
    """The cells of all rows of all tables, without markup."""
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_two_runs_stand_side_by_side(run_dir, other_dir) -> None:
    path = write_report(run_dir, other_dir)
    assert path == run_dir / "comparison.html"
    assert not (run_dir / "report.html").exists()
    page = path.read_text()
    assert "<h1>my-run and &lt;b&gt;other</h1>" in page
    rows = rows_of(page)
    assert ["Steps", "100 of 100", "2 of 100"] in rows
    assert ["Training time", "80 s, the steps alone", ""] in rows
    scores = [row[1:-1] for row in rows if row[0] == "FG-ARI"]
    assert scores == [["0.9877 \u00b1 0.0123", "0.5 \u00b1 0.25"], ["0.5 \u00b1 0.25"]]
    assert ["MSE", "not defined", "-"] in [row[:-1] for row in rows]
    assert "Solid:\nmy-run; dashed: &lt;b&gt;other." in page
    assert page.count("data:image/png;base64,") == 8


def test_two_runs_of_one_name_are_told_apart_by_the_folders_above(run_dir, tmp_path) -> None:
    other = tmp_path / "again" / "my-run"
    shutil.copytree(run_dir, other)
    page = write_report(run_dir, other).read_text()
    assert f"<h1>{run_dir.parent.name}/my-run and again/my-run</h1>" in page


def test_a_trained_model_needs_a_place(tmp_path) -> None:
    name = "slot_attention/tetrominoes-laptop"
    with pytest.raises(ValueError, match=f"place: needed, since {name} is no run"):
        write_report(name)
    assert f"<h1>{name}</h1>" in write_report(name, place=tmp_path / "a").read_text()


def test_a_view_that_cannot_be_made_is_missing(run_dir) -> None:
    def fail(folder: Path) -> None:
        assert folder == run_dir
        raise ValueError("no <weights>")

    page = write_report(run_dir, view_of=fail).read_text()
    assert "There is no viewer: no &lt;weights&gt;." in page
    assert "<h2>Viewer</h2>" not in page


BOMB = "a: &a [1, 1]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmno")
)


@pytest.mark.parametrize(
    "config",
    ["model: [", "just text", "", f"{BOMB}model: *o", 'model: "\\U00110000"'],
    ids=["torn", "text", "empty", "many", "escape"],
)
def test_report_survives_a_strange_configuration(tmp_path, config) -> None:
    (tmp_path / "config.yaml").write_text(config)
    page = write_report(tmp_path).read_text()
    assert "config.yaml cannot be read" in page
    assert "metrics.jsonl has no rows yet" in page


def test_report_survives_strange_rows_and_evaluations(tmp_path) -> None:
    huge = "1" + "0" * 400
    rows = [
        '{"step": 1, "loss": 0.5, "nll_²": 1, "": 2, "images_per_second": 1e-320}',
        f'{{"step": {huge}, "loss": 1}}',
        f'{{"step": 2, "loss": {huge}}}',
        '{"step": NaN, "loss": 1}',
        '{"step": Infinity, "loss": 1}',
        '{"step": 3, "loss": 1e300, "images_per_second": NaN}',
        '{"step": 1e300, "loss": -1e300, "images_per_second": 2}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    (tmp_path / "config.yaml").write_text("trainer: {batch_size: 100000000000000000000000000000}")
    (tmp_path / "evaluation/folder.json").mkdir(parents=True)
    (tmp_path / "evaluation/deep.json").write_text("[" * 100_000)
    odd = {"metrics": {"": {"mean": [1]}}, "data": "half \ud800", "notes": ["\udcff"]}
    (tmp_path / "evaluation/odd.json").write_text(json.dumps(odd))
    page = write_report(tmp_path).read_text()
    assert "metrics.jsonl: 4 of its lines cannot be read" in page
    assert "evaluation/folder.json cannot be read" in page
    assert "evaluation/deep.json cannot be read" in page
    assert r"half \ud800" in page


def test_report_takes_the_later_of_two_rows_of_a_step(run_dir) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**ROWS[-1], "images_per_second": 80.0}) + "\n")
    assert "80 images/s" in write_report(run_dir).read_text()


def test_no_run_folder_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"expected a run with .*, or a model, got a folder without them"
    ):
        write_report(tmp_path)
    with pytest.raises(
        ValueError, match=r"nowhere: expected a run with .*, or a model, got no folder"
    ):
        write_report(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_write_atomically_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch) -> None:
    path = write_atomically(tmp_path / "file", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
