"""The page in a browser: nothing fails, nothing is asked for, pictures answer, the player plays."""

import shutil
from collections.abc import Iterator

import pytest

from .conftest import Report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def page(report: Report) -> Iterator["sync_api.Page"]:
    """Opened once for all tests, after which it must not have complained or asked for anything."""
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_context(has_touch=True).new_page()
        page.set_default_timeout(10_000)
        said, asked = list[str](), list[str]()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.file.as_uri())
        yield page
        browser.close()
    assert said == [] and asked == [report.file.as_uri()]


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(page: "sync_api.Page", width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for picture in page.locator("figure svg").all():
        assert picture.bounding_box()["width"] > 340
        # Words of pictures are as large as they are scaled: 9.5 points at a scale of 1.
        assert picture.evaluate("(svg) => svg.getScreenCTM().a") > 0.85


def test_marks_show_their_rows_to_keys_mouse_and_touch(page: "sync_api.Page") -> None:
    page.set_viewport_size({"width": 400, "height": 900})
    tip, figures = page.locator("#tip"), page.locator("figure").all()
    assert len(figures) == 8
    for figure in figures:
        mark = figure.locator(".mark[tabindex='0']")
        mark.focus()
        page.keyboard.press("End")
        page.keyboard.press("Home")
        assert tip.locator("span").all_inner_texts() == row_of(figure, mark)
        page.keyboard.press("ArrowRight")
        shown = figure.locator(".mark.shown")
        assert shown.evaluate("(mark) => mark === document.activeElement")
        assert tip.locator("span").all_inner_texts() == row_of(figure, shown)
        box = tip.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400
        page.keyboard.press("Escape")
        assert tip.is_hidden()
        box = mark.bounding_box()
        at = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        for point in (page.mouse.move, page.touchscreen.tap):
            point(*at)
            assert tip.locator("span").all_inner_texts() == row_of(figure, shown)
            page.touchscreen.tap(1, 1)
            assert tip.is_hidden()


def row_of(figure: "sync_api.Locator", mark: "sync_api.Locator") -> list[str]:
    """Names and values of the row that a mark stands for, but for what all rows have alike."""
    lines = [each.split("\t") for each in figure.locator("table").inner_text().splitlines()]
    (names, *rows), i = lines, int(mark.get_attribute("data-row"))
    columns = zip(names, *rows, strict=True)
    shown = [(name, cells[i]) for name, *cells in columns if len(set(cells)) > 1]
    return [text for pair in shown if pair[1] != "-" for text in pair]


def test_the_player_steps_through_every_frame(page: "sync_api.Page", report: Report) -> None:
    back, forward, slider = (page.locator(f"#{name}") for name in ("back", "forward", "slider"))
    for i, run in enumerate(report.runs):
        page.select_option("#run", index=i)
        assert back.is_disabled()
        for n, frame in enumerate(run.frames):
            assert slider.input_value() == str(n)
            assert page.locator(".what:visible").all_inner_texts() == [frame.what]
            kinds = "[...document.querySelectorAll('.frame li')].filter((x) => x.checkVisibility())"
            kinds = page.evaluate(f"{kinds}.map((li) => li.className)")
            assert kinds == [cell.kind for cell in frame.cells]
            if n + 1 < len(run.frames):
                forward.click()
        assert forward.is_disabled()
        assert run.answer in page.locator(".frame:visible").inner_text()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert slider.input_value() == str(len(run.frames) - 2)


def test_the_player_plays_to_the_end_and_pauses(page: "sync_api.Page", report: Report) -> None:
    play, slider = page.locator("#play"), page.locator("#slider")
    page.clock.install()
    page.select_option("#run", index=0)
    play.press("Space")
    page.clock.run_for(1000)
    assert (play.inner_text(), slider.input_value()) == ("Pause", "1")
    play.press("Space")
    page.clock.run_for(5000)
    assert (play.inner_text(), slider.input_value()) == ("Play", "1")
    play.press("Space")
    page.clock.run_for(60_000)
    assert (play.inner_text(), slider.input_value()) == (
        "Play",
        str(len(report.runs[0].frames) - 1),
    )
