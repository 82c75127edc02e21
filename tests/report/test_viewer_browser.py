"""The report in Chromium: every control by mouse and by keyboard, the pixels on the canvases."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, sync_playwright
from viewed_model import Blobs, BlobsConfig, Greys, picture_of, pixels_at, recomposed

from emorl.report.html import write_report
from emorl.report.viewer import View, make_view

HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 1'>{{ 7 * 7 }}"
RUN = "<img src=x onerror='hacked = 1'>"
EVERY = [0, 1, 2]  # slots
LAST = 2  # stage


@dataclass
class Opened:
    """The report of two runs in a browser, and what the browser said.

    Attributes:
        page: the browser's.
        views: what the two viewers show.
        said: messages of the console and errors.
        asked: addresses that the page asked for.
    """

    page: Page
    views: list[View]
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def viewer(self, number: int = 0) -> Locator:
        """A viewer that has drawn everything."""
        self.page.wait_for_selector(f'#viewer-{number}[aria-busy="false"]')
        return self.page.locator(f"#viewer-{number}")

    def find(self, selector: str, number: int = 0) -> Locator:
        return self.viewer(number).locator(selector)

    def pixels(self, number: int) -> dict[str, np.ndarray]:
        """What the canvases of a viewer show, [H, W, 3] by class, or by number for a slot's."""
        script = """viewer => [...viewer.querySelectorAll("canvas")].map((canvas) => {
            const { width, height } = canvas;
            const copy = new OffscreenCanvas(width, height);
            const context = copy.getContext("2d", { willReadFrequently: true });
            context.drawImage(canvas, 0, 0);
            const { data } = context.getImageData(0, 0, width, height);
            return [canvas.className, [height, width, 4], [...data]];
        })"""
        shown: dict[str, np.ndarray] = {}
        for name, shape, data in self.viewer(number).evaluate(script):
            rgba = np.array(data).reshape(shape)
            assert (rgba[..., 3] == 255).all()
            shown[name or str(len(shown) - 2)] = rgba[..., :3]  # after two of the image
        return shown

    def requires(
        self,
        image: int = 0,
        *,
        stage: int = LAST,
        slots: list[int] = EVERY,
        moved: tuple[int, int] = (0, 0),
        value: int | None = None,
        number: int = 0,
    ) -> None:
        """All canvases show this, and no other; `moved` is a slot and a dimension's place."""
        view = self.views[number]
        shown, (slot, place) = view.images[image], moved
        values = np.array(view.dimensions[place].values)
        if value is None:
            value = int(np.abs(values - shown.own[slot][place]).argmin())
        strip = shown.traversals[slot][place]
        expected = {
            "input": pixels_at(shown.picture),
            "recomposed": recomposed(view, shown, stage, slots),
            **{str(k): recomposed(view, shown, stage, [k]) for k in EVERY},
            "traversed": picture_of(strip, value, view.width),
        }
        pixels = self.pixels(number)
        assert pixels.keys() == expected.keys()
        for name, picture in expected.items():
            np.testing.assert_array_equal(pixels[name], picture, name)
        assert self.find(".stage-name", number).text_content() == view.stages[stage]
        assert self.find(".scores", number).text_content() == shown.stages[stage].scores
        text = self.find(".value-text", number).text_content() or ""
        own = shown.own[slot][place]
        assert text.startswith(f"{values[value]:z.2f} (the slot's own: {own:z.2f}")


def browser_path() -> str:
    """Where Chromium is; skips without one, or fails where $EMORL_REQUIRE_BROWSER is set."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None and os.environ.get("EMORL_REQUIRE_BROWSER"):
        pytest.fail("EMORL_REQUIRE_BROWSER is set, and there is no chromium")
    return path or pytest.skip("no chromium")


def make_runs(folder: Path, views: list[View]) -> Path:
    """The report of two runs, one with a hostile name, of which the second is not finished."""
    runs = [folder / RUN, folder / "other"]
    for run, steps in zip(runs, (400, 200), strict=True):
        run.mkdir()
        rows = [{"step": s, "loss": 9 + s % 7 + 9e4 / s, "nll": s % 3} for s in range(1, steps + 1)]
        rows[0]["gradient_norm"], rows[-1]["gradient_norm"] = 3e38, 1e-9  # far beyond the plot
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    by_run = {runs[0]: views[0], runs[1]: views[1]}
    return write_report(runs[0], runs[1], view_of=by_run.__getitem__)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    path = browser_path()
    first = make_view(Blobs(), Greys(length=3), HOSTILE)
    second = make_view(Blobs(BlobsConfig(layers=2)), Greys(length=2), "step-00000002")
    views = [replace(first, stages=["layer 1", HOSTILE, "result"]), second]
    report = make_runs(tmp_path_factory.mktemp("runs"), views)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        opened = Opened(browser.new_page(viewport={"width": 1200, "height": 900}), views)
        opened.page.on("console", lambda message: opened.said.append(message.text))
        opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.page.on("request", lambda request: opened.asked.append(request.url[:40]))
        opened.page.goto(report.as_uri())
        yield opened
        browser.close()


@pytest.fixture
def fresh(opened: Opened) -> Opened:
    """The page as if it was just opened."""
    opened.page.reload()
    opened.viewer(1)
    return opened


def press(control: Locator, *keys: str) -> None:
    """Press keys on a control that has the keyboard."""
    control.focus()
    for key in keys:
        control.page.keyboard.press(key)


def click_at(control: Locator, share: float) -> None:
    """Click a slider at a share of its width."""
    control.scroll_into_view_if_needed()
    box = control.bounding_box()
    assert box is not None
    control.page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)


def drag(control: Locator, first: float, last: float) -> None:
    """Drag from one share of a control's width to another."""
    control.scroll_into_view_if_needed()
    box = control.bounding_box()
    assert box is not None
    mouse, middle = control.page.mouse, box["y"] + box["height"] / 2
    mouse.move(box["x"] + first * box["width"], middle)
    mouse.down()
    mouse.move(box["x"] + last * box["width"], middle, steps=3)
    mouse.up()


def test_it_opens_with_everything_shown(fresh: Opened) -> None:
    fresh.requires()
    fresh.requires(stage=1, number=1)


def test_images_are_chosen_in_both_viewers(fresh: Opened) -> None:
    """A list's own window is not the page's: `select_option` stands for the mouse in it."""
    fresh.find(".image").select_option("2")
    fresh.requires(1)
    fresh.requires(1, stage=1, number=1)  # the same images
    press(fresh.find(".image"), "ArrowDown")
    fresh.requires(2)
    fresh.requires(1, stage=1, number=1)  # which has no third


def test_slots_are_switched(fresh: Opened) -> None:
    boxes = fresh.find(".slot input")
    boxes.nth(1).click()
    fresh.requires(slots=[0, 2])
    press(boxes.nth(0), "Space")
    fresh.requires(slots=[2])
    fresh.find(".slot canvas").nth(1).click()  # the label's picture
    fresh.requires(slots=[1, 2])
    fresh.find(".all-off").click()
    fresh.requires(slots=[])
    press(fresh.find(".all-on"), "Enter")
    fresh.requires()
    press(fresh.find(".all-off"), "Space")
    fresh.requires(slots=[])
    fresh.find(".all-on").click()
    fresh.requires()
    fresh.requires(stage=1, number=1)  # the other run's own


def test_stages_are_stepped_through(fresh: Opened) -> None:
    press(fresh.find(".stage"), "ArrowLeft")
    fresh.requires(stage=1)
    press(fresh.find(".stage"), "Home")
    fresh.requires(stage=0)
    click_at(fresh.find(".stage"), 0.5)
    fresh.requires(stage=1)
    assert fresh.find(".stage").get_attribute("aria-valuetext") == HOSTILE


def test_slots_are_moved_along_dimensions(fresh: Opened) -> None:
    press(fresh.find(".value"), "Home")
    fresh.requires(value=0)
    press(fresh.find(".value"), "ArrowRight", "ArrowRight")
    fresh.requires(value=2)
    click_at(fresh.find(".value"), 0.99)
    fresh.requires(value=6)
    drag(fresh.find(".value"), 0.96, 0.5)
    fresh.requires(value=3)
    press(fresh.find(".dimension"), "ArrowDown")
    fresh.requires(moved=(0, 1))
    press(fresh.find(".moved-slot"), "ArrowDown")
    fresh.requires(moved=(1, 1))
    fresh.find(".dimension").select_option(index=4)
    fresh.find(".moved-slot").select_option("2")
    fresh.requires(moved=(2, 4))
    press(fresh.find(".value"), "End")
    fresh.find(".image").select_option("2")
    fresh.requires(1, moved=(2, 4))  # at the slot's own value again


def test_the_latest_choice_is_shown(fresh: Opened) -> None:
    """Also where the pictures of an earlier one come later than its own."""
    script = """address => {
        const { prototype } = HTMLImageElement;
        const decode = prototype.decode;
        let arrived;
        window.late = new Promise((resolve) => { arrived = resolve; });
        prototype.decode = async function () {
            await decode.call(this);
            if (this.src !== address) return;
            await new Promise((resolve) => setTimeout(resolve, 200));
            setTimeout(arrived, 20);
        };
    }"""
    fresh.page.evaluate(script, fresh.views[0].images[0].stages[0].appearances)
    press(fresh.find(".stage"), "Home", "ArrowRight")
    fresh.page.evaluate("window.late")
    fresh.requires(stage=1)


def zoomed(opened: Opened) -> str:
    return opened.page.locator("#zoom output").text_content() or ""


def test_curves_are_zoomed(fresh: Opened) -> None:
    plot, sliders = fresh.page.locator(".plot svg").first, fresh.page.locator("#zoom input")
    assert zoomed(fresh) == "steps 0 to 400"
    whole = plot.inner_html()
    press(sliders.nth(0), *["ArrowRight"] * 5)
    assert zoomed(fresh) == "steps 20 to 400"
    assert plot.inner_html() != whole
    click_at(sliders.nth(1), 0.5)
    low, high = (int(word) for word in zoomed(fresh).split() if word.isdecimal())
    assert low == 20
    assert high == pytest.approx(200, abs=8)
    press(sliders.nth(1), "Home")
    assert zoomed(fresh) == "steps 0 to 2"  # the least that is shown
    press(fresh.page.locator("#zoom button"), "Enter")
    assert plot.inner_html() == whole
    inner = [(48 + 304 * share) / 360 for share in (0.25, 0.75)]  # of its width; see curves.js
    drag(plot, *inner)
    low, high = (int(word) for word in zoomed(fresh).split() if word.isdecimal())
    assert low == pytest.approx(100, abs=3)
    assert high == pytest.approx(300, abs=3)
    fresh.page.locator("#zoom button").click()
    assert plot.inner_html() == whole


def test_curves_are_drawn_where_the_values_are(fresh: Opened) -> None:
    """The plot of the loss has two curves of each run: what was logged, and its mean."""
    lines = fresh.page.locator(".plot svg").first.locator("polyline")
    assert [line.get_attribute("class") for line in lines.all()] == [
        "raw",
        "solid",
        "raw",
        "dashed",
    ]
    points = (lines.nth(0).get_attribute("points") or "").split()
    x, y = np.array([point.split(",") for point in points], dtype=float).T
    steps = np.arange(1, 401)
    loss = 9 + steps % 7 + 9e4 / steps
    assert x == pytest.approx(48 + 304 * steps / 400, abs=0.06)
    shown = loss[steps >= 8]  # 2 %
    margin = 0.05 * np.ptp(shown)
    low, high = shown.min() - margin, shown.max() + margin
    expected = 6 + 174 * (high - loss) / (high - low)
    assert y == pytest.approx(expected, abs=0.06, rel=2e-5)  # five digits


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_is_readable(fresh: Opened, scheme: str, width: int) -> None:
    """Nothing is wider than a phone, and ink and paper are far apart."""
    fresh.page.set_viewport_size({"width": width, "height": 800})
    fresh.page.emulate_media(color_scheme=scheme)
    assert fresh.page.evaluate("document.documentElement.scrollWidth") <= width
    script = "name => getComputedStyle(document.body)[name].match(/[0-9]+/g).map(Number)"
    ink, paper = (sum(fresh.page.evaluate(script, name)) for name in ("color", "backgroundColor"))
    assert (paper < 150 and ink > 600) if scheme == "dark" else (paper > 700 and ink < 150)


def test_a_phone_breaks_no_heading_of_numbers(fresh: Opened, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: efficient_morl")
    (tmp_path / "evaluation").mkdir()
    metrics = {"fg_ari": {"mean": 0.5, "std": 0.25, "count": 320}}
    (tmp_path / "evaluation" / "test.json").write_text(json.dumps({"metrics": metrics}))
    browser = fresh.page.context.browser
    assert browser is not None
    page = browser.new_page(viewport={"width": 360, "height": 800})
    page.goto(write_report(tmp_path).as_uri())
    script = """all => all.map((heading) => {
        const text = document.createRange();
        text.selectNodeContents(heading);
        return text.getClientRects().length;
    })"""
    lines = page.locator("th").evaluate_all(script)
    page.close()
    assert lines == [1] * 5


def test_every_control_has_a_name_and_the_keyboard(fresh: Opened) -> None:
    script = """() => [...document.querySelectorAll("select, input, button, summary")].map(
        (c) => [c.tabIndex, (c.labels?.[0] ?? c).textContent.trim()])"""
    controls = fresh.page.evaluate(script)
    assert len(controls) == 2 * (4 + 3 + 3) + 3  # of each viewer, and of the curves
    assert all(index == 0 and name for index, name in controls)


def test_hostile_names_stay_text(fresh: Opened) -> None:
    assert fresh.page.evaluate("typeof hacked") == "undefined"
    assert fresh.page.locator("h1").text_content() == f"{RUN} and other"
    assert HOSTILE in (fresh.viewer().text_content() or "")
    assert fresh.page.locator("img").count() == 0


def test_the_browser_has_nothing_to_complain_of(fresh: Opened) -> None:
    """After all that the tests before have done; and it asked for nothing but the file."""
    assert fresh.said == []
    assert {address.partition(":")[0] for address in fresh.asked} <= {"file", "data"}
