"""The page as a file: whole, alone, safe against what records say, and complete."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dlm_bench import tables as bench_tables
from dlm_bench.report import player, run
from dlm_roofline.model_check import model_check, summary
from dlm_roofline.plots import charts_of, profiles_of
from dlm_roofline.records import Record, save

from .conftest import HOSTILE, Report

VOID = {"meta", "input", "br", "image"}


class Parsed(HTMLParser):
    """All start tags with their attributes, the text, and what each script holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        (self.scripts if inside == "script" else self.text).append(data)

    def all(self, name: str) -> list[str]:
        return [found[name] for _, found in self.tags if name in found]


@pytest.fixture(scope="module")
def parsed(report: Report) -> Parsed:
    found = Parsed(report.html)
    assert not found.open
    return found


@pytest.fixture(scope="module")
def data(parsed: Parsed) -> dict:
    return json.loads(parsed.scripts[0])


def test_it_is_one_file_that_loads_nothing(report: Report, parsed: Parsed) -> None:
    assert len(report.html.encode()) < 6e6
    for tag, attributes in parsed.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:80])
            assert not re.search(r"url\((?!#)", value or ""), (tag, name, value[:80])
    assert not {tag for tag, _ in parsed.tags} & {"link", "iframe", "object", "embed", "base"}
    style = report.html.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "http:" not in report.html and "https:" not in style + parsed.scripts[1]
    assert "fetch(" not in parsed.scripts[1] and "innerHTML" not in parsed.scripts[1]
    policies = [found["content"] for tag, found in parsed.tags if found.get("http-equiv")]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    ]


def test_ids_are_unique_and_every_reference_has_its_target(parsed: Parsed) -> None:
    counts = Counter(parsed.all("id"))
    assert [name for name, n in counts.items() if n > 1] == []
    used = {value[1:] for value in parsed.all("href") if value.startswith("#")}
    for _, attributes in parsed.tags:
        for value in attributes.values():
            used |= set(re.findall(r"url\(#([^)]+)\)", value or ""))
    used |= {name for value in parsed.all("aria-labelledby") for name in value.split()}
    assert used - set(counts) == set()
    assert len(used) > 100


def test_what_records_say_is_text_and_nothing_else(report: Report, parsed: Parsed) -> None:
    assert len(parsed.scripts) == 2
    assert "<script>alert" not in report.html
    assert HOSTILE in "".join(parsed.text)
    assert "<b>a GPU</b>" in "".join(parsed.text)
    assert not [name for _, found in parsed.tags for name in found if name.startswith("on")]


def test_every_chart_is_there_and_every_row_has_its_mark(
    report: Report, parsed: Parsed, data: dict
) -> None:
    figures = {found["id"] for tag, found in parsed.tags if tag == "figure"}
    assert figures == set(data["pictures"])
    for i, record in enumerate(report.records, start=1):
        for chart in charts_of(record, profiles_of(record)):
            found = data["pictures"][f"r{i}-{chart.name}"]
            assert found == {"header": chart.header, "rows": chart.rows}
    assert {"quality-frontier", "quality-acceptance", "r2-roofline", "r2-step"} <= figures
    for figure in figures:
        name = figure.partition("-")[2]
        marks = {
            int(found["data-row"]): found["id"]
            for _, found in parsed.tags
            if found.get("class") == "mark" and found["id"].startswith(f"{figure}-{name}-")
        }
        assert sorted(marks) == list(range(len(data["pictures"][figure]["rows"]))), figure
        for row, mark in marks.items():
            assert mark.removeprefix(f"{figure}-{name}-").partition(".")[0] == str(row)


def test_tables_and_what_was_left_out_are_on_it(report: Report, parsed: Parsed) -> None:
    text = "".join(parsed.text)
    for record in report.records:
        for table in bench_tables.tables(record):
            assert table.title in text
            assert all(cell in text for row in table.rows for cell in row)
        assert summary(model_check(record)) in text
    assert text.count("Predicted and measured: ") == len(report.records)
    assert "out of time" in text
    assert "dlm bench" in text and "0123456789" in text


def test_greys_turn_with_the_scheme_and_colours_do_not(parsed: Parsed) -> None:
    styles = " ".join(found["style"] for tag, found in parsed.tags if "style" in found)
    assert "stroke: light-dark(#000000, #e8eaed)" in styles
    assert "fill: #0072b2" in styles  # the projections' colour
    assert not re.search(r"stroke: #(000000|ffffff)", styles)


def test_numbers_on_colours_keep_their_ink() -> None:
    from matplotlib.figure import Figure

    from dlm_bench.report.figures import inline_svg
    from dlm_roofline.charts.chart import Chart

    figure = Figure()
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    axes.bar([0, 1], [1, 1], color=["#0072B2", "#cccccc"])
    axes.text(0, 0.5, "on a colour", ha="center")
    axes.text(1, 0.5, "on a grey", ha="center")
    axes.set(ylim=(0, 2))
    axes.text(0, 1.5, "on paper", ha="center", color="#444444")
    svg = inline_svg(Chart("made", "Title", "About.", figure, [], []), "p-")
    found = dict(re.findall(r'<text style="([^"]*)"[^>]*>(on [^<]*)</text>', svg))
    fills = {text: style.partition("fill: ")[2] for style, text in found.items()}
    assert fills["on a colour"] == "#000000"
    assert "fill" not in next(style for style, text in found.items() if text == "on a grey")
    assert fills["on paper"].startswith("light-dark(#444444, #")


def test_the_player_ends_where_decoding_does(data: dict) -> None:
    assert {each["mode"] for each in data["runs"]} == {
        "diffusion, threshold 0.9",
        "diffusion, threshold 0.5",
        "linear self-speculation",
    }
    assert len(data["runs"]) == 3 * len(player.PROMPTS)
    for each in data["runs"]:
        frames = each["frames"]
        assert [frame["forwards"] for frame in frames] == sorted(
            frame["forwards"] for frame in frames
        )
        assert frames[0]["forwards"] == 0 and frames[-1]["tokens"] > 1
        assert each["right"] == (each["answer"] == player.PROMPTS[each["prompt"]])
        masks = [cell for cell in frames[-1]["cells"] if cell["kind"] == player.MASK]
        assert not masks
        for frame in frames:
            assert len(frame["cells"]) == 32
            new = [cell for cell in frame["cells"] if cell["kind"] in (player.NEW, player.OWN)]
            assert all(cell["at"] == frame["forwards"] for cell in new)
            assert all(0 < cell["confidence"] <= 1 for cell in new)
    # Self-speculation gives what autoregressive decoding gives, and the small model is right here.
    assert all(each["right"] for each in data["runs"] if each["mode"].startswith("linear"))


def test_inks_can_be_read_on_every_shade(data: dict) -> None:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    shades = [luminance(shade) for shade, _ in data["scale"]]
    assert shades == sorted(shades)  # so that it can be read in grey
    for shade, ink in data["scale"]:
        low, high = sorted((luminance(shade), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5


# --- the command


def test_the_records_of_the_repository_make_a_page(
    committed: list[tuple[Path, Record]], committed_page: Path
) -> None:
    parsed = Parsed(committed_page.read_text(encoding="utf-8"))
    assert not parsed.open
    assert [name for name, n in Counter(parsed.all("id")).items() if n > 1] == []
    text, data = "".join(parsed.text), json.loads(parsed.scripts[0])
    for i, (path, record) in enumerate(committed, start=1):
        assert record.device.name in text
        assert f"dlm roofline bench/results/{path.name}" in text
        for table in bench_tables.tables(record):
            assert table.title in text
        for chart in charts_of(record, profiles_of(record)):
            found = data["pictures"][f"r{i}-{chart.name}"]
            assert found == {"header": chart.header, "rows": chart.rows}
    assert len(data["runs"]) == 3 * len(player.PROMPTS)


def test_without_records_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "none")
    monkeypatch.setattr(run, "QUALITY", tmp_path / "none" / "quality.json")
    monkeypatch.setattr(player, "runs", lambda: [])
    out = tmp_path / "folder" / "report.html"
    assert run.main(["--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("missing: ") == 3 and str(out) in said
    text = "".join(Parsed(out.read_text(encoding="utf-8")).text)
    assert str(tmp_path) not in text
    assert "Not on this page" in text and "No whole record of a GPU" in text


def test_a_record_that_cannot_be_read_is_named_with_its_field(
    gpu: Record, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = save(gpu, tmp_path)
    values = json.loads(path.read_text())
    values["rows"][3]["timing"]["median"] = float("nan")
    path.write_text(json.dumps(values))
    out = tmp_path / "report.html"
    assert run.main(["--records", str(path), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert str(path) in said and "rows[3].timing.median" in said
    assert not out.exists()
    assert run.main(["--records", str(tmp_path / "nowhere.json"), "--out", str(out)]) == 1
    assert "nowhere.json" in capsys.readouterr().err
