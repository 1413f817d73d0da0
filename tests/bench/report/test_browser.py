"""The page in a browser: nothing fails, nothing is asked for, pictures answer, the player plays."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .conftest import Report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

# Contrast of each visible text of the page with what lies behind it, least first.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const all = "h1, h2, h3, p, li, dt, dd, th, td, a, summary, figcaption, code, button, label";
  for (const each of document.querySelectorAll(all)) {
    if (each.matches("tr:nth-child(n + 3) *")) continue; // rows are alike
    if (!each.checkVisibility({ visibilityProperty: true }) || each.matches(":disabled")) continue;
    if (![...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    let behind = each, ground = [0, 0, 0, 0];
    while (behind && ground[3] < 255) {
      ground = rgba(getComputedStyle(behind).backgroundColor);
      behind = behind.parentElement;
    }
    const [low, high] = [luminance(ground.slice(0, 3)),
      luminance(rgba(getComputedStyle(each).color).slice(0, 3))].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), each.tagName, each.textContent.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""


@dataclass
class Opened:
    """A page, and what it complained of and asked for since it was opened."""

    page: "sync_api.Page"
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def open_page(report: Report) -> Iterator[Open]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update"),
            ],
        )

        def open_it(
            width: int = 1280, scheme: str = "light", file: Path = report.file, **options
        ) -> Opened:
            viewport = {"width": width, "height": 900}
            context = browser.new_context(viewport=viewport, color_scheme=scheme, **options)
            opened = Opened(context.new_page())
            page = opened.page
            page.set_default_timeout(10_000)
            page.on("console", lambda message: opened.complaints.append(message.text))
            page.on("pageerror", lambda error: opened.complaints.append(str(error)))
            page.on("request", lambda request: opened.requests.append(request.url))
            page.goto(file.as_uri())
            return opened

        yield open_it
        browser.close()


@pytest.fixture(scope="module")
def wide(open_page: Open) -> Opened:
    return open_page(reduced_motion="reduce")


@pytest.fixture(scope="module")
def data(report: Report) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.html)
    return json.loads(found[1])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_fits_can_be_read_and_asks_for_nothing(
    open_page: Open, report: Report, width: int, scheme: str
) -> None:
    opened = open_page(width, scheme)
    page = opened.page
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for picture in page.locator("figure.picture svg").all():
        box = picture.bounding_box()
        assert box["width"] > 300 and box["height"] > 150
    contrast, *least = page.evaluate(CONTRASTS)[0]
    assert contrast >= 4.5, least
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(244, 245, 247)") == (scheme == "light")
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [report.file.as_uri()]
    page.context.close()


def test_every_picture_is_drawn_and_its_marks_show_their_rows(wide: Opened, data: dict) -> None:
    page = wide.page
    figures = page.locator("figure.picture")
    assert figures.count() == len(data["pictures"])
    for name, picture in data["pictures"].items():
        marks = page.locator(f"[id='{name}'] .mark")
        assert marks.count() >= len(picture["rows"])
        for i in {0, marks.count() // 2, marks.count() - 1}:
            mark = marks.nth(i)
            row = picture["rows"][int(mark.get_attribute("data-row"))]
            mark.focus()
            page.wait_for_selector("#tip:not([hidden])")
            assert _tip(page) == _pairs(picture["header"], row)
            box = page.locator("#tip").bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 1280
            assert box["y"] >= 0 and box["y"] + box["height"] <= 900
            mark.blur()
            assert page.locator("#tip").is_hidden()
    assert wide.complaints == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_records_of_the_repository_make_a_page_that_can_be_read(
    open_page: Open, committed_page: Path, width: int
) -> None:
    opened = open_page(width, file=committed_page)
    page = opened.page
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure.picture svg").count() > 0
    for picture in page.locator("figure.picture").all():
        box = picture.locator("svg").bounding_box()
        assert box["width"] > 300 and box["height"] > 150
        picture.locator(".mark").first.focus()
        page.wait_for_selector("#tip:not([hidden])")
        picture.locator(".mark").first.blur()
    assert opened.complaints == []
    local = [url for url in opened.requests if not url.startswith("data:")]
    assert local == [committed_page.as_uri()]
    page.context.close()


def test_marks_answer_the_mouse_the_keys_and_a_tap(open_page: Open, data: dict) -> None:
    page = open_page(400, has_touch=True).page
    name = "r2-step"
    picture = data["pictures"][name]
    first, second = (page.locator(f"[id='{name}'] .mark[data-row='{i}']") for i in (0, 1))
    first.focus()
    page.wait_for_selector("#tip:not([hidden])")
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.locator(".mark.shown")).to_have_attribute("data-row", "1")
    assert _tip(page) == _pairs(picture["header"], picture["rows"][1])
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    first.scroll_into_view_if_needed()
    box = first.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for point_at in (page.mouse.move, page.touchscreen.tap):
        page.mouse.move(0, 0)
        page.touchscreen.tap(1, 1)
        assert page.locator("#tip").is_hidden()
        point_at(*middle)
        page.wait_for_selector("#tip:not([hidden])")
        shown = page.locator(".mark.shown").get_attribute("data-row")
        assert _tip(page) == _pairs(picture["header"], picture["rows"][int(shown)])
    page.context.close()


def test_the_rows_of_a_picture_can_be_listed(wide: Opened, data: dict) -> None:
    page = wide.page
    figure = page.locator("[id='r2-step']")
    figure.locator("details.values > summary").click()
    lines = figure.locator("tbody tr")
    assert lines.count() == len(data["pictures"]["r2-step"]["rows"])
    assert lines.nth(2).locator("td").all_inner_texts() == data["pictures"]["r2-step"]["rows"][2]


def test_the_player_steps_and_shows_what_stands(wide: Opened, data: dict) -> None:
    page = wide.page
    modes = page.locator("#mode option").all_inner_texts()
    prompts = page.locator("#prompt option").all_inner_texts()
    assert len(prompts) * len(modes) == len(data["runs"]) == 9
    for run in data["runs"]:
        page.select_option("#prompt", run["prompt"])
        page.select_option("#mode", run["mode"])
        assert page.locator("#back").is_disabled() and page.locator("#first").is_disabled()
        for i, frame in enumerate(run["frames"]):
            assert page.locator("#slider").input_value() == str(i)
            assert page.locator("#what").inner_text() == frame["what"]
            assert page.locator("#forwards").inner_text() == str(frame["forwards"])
            assert page.locator("#tokens").inner_text() == str(frame["tokens"])
            kinds = page.evaluate(
                "[...document.querySelectorAll('#cells li')].map((li) => li.className)"
            )
            assert kinds == [cell["kind"] for cell in frame["cells"]]
            if i + 1 < len(run["frames"]):
                page.locator("#forward").click()
        assert page.locator("#forward").is_disabled()
        assert page.locator("#answer").inner_text() == run["answer"]
        rate = (frame["tokens"] - 1) / frame["forwards"]  # the prefill gave the first
        assert float(page.locator("#tpf").inner_text()) == pytest.approx(rate, abs=0.006)
    page.locator("#back").click()
    assert page.locator("#slider").input_value() == str(len(data["runs"][-1]["frames"]) - 2)
    assert wide.complaints == []


def test_the_player_plays_pauses_and_reaches_the_end(wide: Opened, data: dict) -> None:
    page, run = wide.page, data["runs"][0]
    page.select_option("#prompt", run["prompt"])
    page.select_option("#mode", run["mode"])
    page.wait_for_timeout(300)
    assert page.locator("#slider").input_value() == "0"  # it does not play by itself
    page.select_option("#speed", "4")
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Pause"
    sync_api.expect(page.locator("#slider")).to_have_value("1")
    page.locator("#play").click()
    at = page.locator("#slider").input_value()
    page.wait_for_timeout(400)
    assert page.locator("#slider").input_value() == at
    page.locator("#play").click()
    last = str(len(run["frames"]) - 1)
    sync_api.expect(page.locator("#slider")).to_have_value(last, timeout=20_000)
    assert page.locator("#play").inner_text() == "Play"
    assert page.locator("#end").is_visible()


def test_the_player_has_keys_and_its_cells_say_their_probability(wide: Opened, data: dict) -> None:
    page, run = wide.page, data["runs"][0]
    page.select_option("#prompt", run["prompt"])
    page.select_option("#mode", run["mode"])
    page.locator("#forward").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#slider").input_value() == "1"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#slider").input_value() == "0"
    page.locator("#first").evaluate("(button) => button.blur()")
    cells = page.locator("#cells li")
    cells.first.focus()
    page.keyboard.press(" ")
    assert page.locator("#play").inner_text() == "Pause"
    page.keyboard.press(" ")
    assert page.locator("#play").inner_text() == "Play"
    page.locator("#first").evaluate("(button) => button.click()")
    page.locator("#forward").click()
    frame = run["frames"][1]
    i = next(i for i, cell in enumerate(frame["cells"]) if cell["kind"] == "new")
    for reach in (cells.nth(i).focus, cells.nth(i).hover):
        page.mouse.move(0, 0)
        reach()
        page.wait_for_selector("#tip:not([hidden])")
        assert f"{frame['cells'][i]['confidence']:.4f}" in page.locator("#tip").inner_text()
    assert "probability" in cells.nth(i).get_attribute("aria-label")


def test_colours_can_be_chosen(wide: Opened) -> None:
    page, grounds = wide.page, []
    for _ in range(3):
        page.locator("#scheme").click()
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] == grounds[2] != grounds[1]  # light, dark, and as the system again


def _tip(page: "sync_api.Page") -> list[str]:
    return page.locator("#tip dt, #tip dd").all_inner_texts()


def _pairs(header: list[str], row: list[str]) -> list[str]:
    return [text for pair in zip(header, row, strict=True) if pair[1] != "" for text in pair]
