"""The page as a file: whole, alone, safe against what records say, and with the right findings."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import PEAK, READ

from dlm_core import PRESETS
from dlm_roofline.forward import DENOISE, Forward
from dlm_roofline.records import save
from dlm_roofline.step_cost import ATTENTION, PROJECTIONS, step_cost

from .conftest import HOSTILE, STAGES, Report, quality_record

run = pytest.importorskip("dlm_bench.report.run")
player = pytest.importorskip("dlm_bench.report.player")


class Parsed(HTMLParser):
    """Start tags with their attributes, and all text, each piece with the tag it stands in."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.html, self.open = file.read_text(encoding="utf-8"), list[str]()
        self.tags, self.pieces = list[tuple[str, dict[str, str]]](), list[tuple[str, str]]()
        self.feed(self.html)
        self.close()
        assert not self.open
        self.words = "".join(text for tag, text in self.pieces if tag not in ("script", "style"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces.append((self.open[-1] if self.open else "", data))

    def texts(self, *tags: str) -> list[str]:
        return [text for tag, text in self.pieces if tag in tags]


@pytest.fixture(scope="module")
def parsed(report: Report) -> Parsed:
    return Parsed(report.file)


def test_headings_state_what_the_records_show(report: Report, parsed: Parsed) -> None:
    from dlm_roofline.plots import charts_of

    floors = {}  # milliseconds, by hand
    for batch in (1, 4):
        costs = step_cost(PRESETS["8b"], Forward(DENOISE, batch, 32, 1024, "bfloat16"))
        floors[batch] = {x: 1e3 * max(c.bytes / READ, c.flops / PEAK) for x, c in costs.items()}
    whole = {batch: sum(stages.values()) for batch, stages in floors.items()}
    least, most = (floors[4][name] / STAGES[name] for name in (ATTENTION, PROJECTIONS))
    assert parsed.texts("h2", "h3") == [
        "Not on this page",
        f"A denoising step takes 20.0 ms at batch 1, {20 / whole[1]:#.3g} times its floor",
        f"A denoising step reaches {whole[4] / 40:.0%} of its roof at batch 4: from {least:.1%} in"
        f" attention to {most:.0%} in projections and MLP",
        f"attention takes 60% of a denoising step at batch 1, {12 / floors[1][ATTENTION]:.0f} times"
        " its floor",
        "At batch 1 a denoising step of 32 tokens takes 1.25 times as long as an AR decoding step"
        " of one",
        "At batch 1 a denoising step takes 2.50 times as long with 4,096 tokens of context as with"
        " 1,024",
        f"A denoising step takes 30.0 ms at batch 1, {30 / whole[1]:#.3g} times its floor",
        *(chart.title for chart in charts_of(report.records[1])[:2]),  # there is nothing to find
        "At batch 1 a denoising step of 32 tokens takes 1.88 times as long as an AR decoding step"
        " of one",
        "diffusion, threshold 0.9, block 32 gives 2.0 tokens a forward and 100.0% right answers, AR"
        " decoding 1.0 and 100.0%",
        "diffusion, threshold 0.5, block 32 gives 8.0 tokens a forward and 50.0% right answers, AR"
        " decoding 1.0 and 100.0%",
        "3 of 3 right in 12 forwards by diffusion at threshold 0.9; 1 of 3 right in 7 forwards by"
        " diffusion at threshold 0.5; 3 of 3 right in 14 forwards by linear self-speculation",
        "Making it again",
    ]
    lead = "Memory is read at 4.30 TB/s at best; products reach 790 TFLOP/s in bfloat16"
    assert parsed.words.count(lead) == 2


def test_it_loads_nothing_and_every_reference_has_its_target(parsed: Parsed) -> None:
    ids, used = Counter(found["id"] for _, found in parsed.tags if "id" in found), set()
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img", "image")
        for name, value in attributes.items():
            used |= set(re.findall(r"url\(#?([^)]+)\)", value or ""))
            if name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
                assert value.startswith("#"), (tag, name, value[:80])
                used.add(value[1:])
            elif name in ("aria-labelledby", "for"):
                used.add(value)
    assert max(ids.values()) == 1 and used <= set(ids) and len(used) > 50
    written = [each.strip() for each in parsed.texts("style", "script")]
    assert not re.search(r"url\(|@import|https?:|fetch", "".join(written))
    for name in ("style.css", "script.js"):  # included as they are
        assert Path(run.__file__).with_name(name).read_text(encoding="utf-8").strip() in written
    (policy,) = (found["content"] for _, found in parsed.tags if "http-equiv" in found)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def test_what_records_say_is_text_and_nothing_else(parsed: Parsed) -> None:
    assert len(parsed.texts("script")) == 1 and HOSTILE in parsed.words  # {{ }} and all
    assert "</script>" in parsed.words  # a model's name
    assert "<b>a GPU</b>: " in parsed.words and "dlm bench" in parsed.texts("code")


def test_every_row_of_a_chart_has_its_mark_and_its_line(report: Report, parsed: Parsed) -> None:
    from dlm_bench.quality.charts import charts_of as quality_charts
    from dlm_roofline.plots import charts_of

    charts = {f"record-{i}": charts_of(each) for i, each in enumerate(report.records, start=1)}
    charts["quality"] = quality_charts(report.quality)
    figures = {f"{key}-{chart.name}": chart for key in charts for chart in charts[key]}
    assert {found["id"] for tag, found in parsed.tags if tag == "figure"} == set(figures)
    marks = [found for _, found in parsed.tags if found.get("class") == "mark"]
    cells = set(parsed.texts("td"))
    for name, chart in figures.items():
        rows = {int(mark["data-row"]) for mark in marks if mark["id"].startswith(f"{name}-")}
        assert rows == set(range(len(chart.frame))), name
        for column, values in chart.frame.select_dtypes("float").items():
            assert {f"{value:.4g}" for value in values.dropna()} <= cells, (name, column)


def test_tables_and_what_was_left_out_are_on_it(report: Report, parsed: Parsed) -> None:
    from dlm_bench.quality.tables import tables as quality_tables
    from dlm_bench.tables import tables

    found = [each for record in report.records for each in tables(record)]
    for table in found + quality_tables(report.quality):
        assert table.title in parsed.texts("summary")
        for text in (*table.notes, *(cell for row in table.cells for cell in row)):
            assert text.replace("`", "") in parsed.words
    assert parsed.words.count("out of time") == len(report.records)
    assert parsed.words.count("The run was cut short") == 1  # the host's


def test_the_player_ends_where_decoding_does(report: Report) -> None:
    assert Counter(each.mode for each in report.runs) == dict.fromkeys(player.MODES, 3)
    for each in report.runs:
        last = each.frames[-1]
        assert each.right == (each.answer == player.PROMPTS[each.prompt])
        assert re.findall(r"[Ff]orward (\d+)", last.what)[-1] == str(each.forwards)
        written = "".join(cell.text for cell in last.cells).replace("␣", " ")
        assert last.before + written.partition("⟨end⟩")[0] == each.answer
        for before, frame in zip(each.frames, each.frames[1:], strict=False):
            new = [cell for cell in frame.cells if cell.kind == player.NEW]
            assert len(frame.cells) == 32 and all(0 < cell.confidence <= 1 for cell in new)
            if new:
                masks = [sum(x.kind == player.MASK for x in y.cells) for y in (before, frame)]
                assert masks[0] - masks[1] == len(new)
        assert not [cell for cell in last.cells if cell.kind == player.MASK]


# --- the command


def test_without_records_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dlm_roofline.records.RESULTS", tmp_path)
    monkeypatch.setattr(run, "COMMITTED", tmp_path / "quality.json")
    monkeypatch.setattr("dlm_core.SMALL_MODEL", tmp_path / "none")
    assert run.main([]) == 0
    *said, written = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and written.startswith("wrote out/report.html")
    words = Parsed(Path("out/report.html")).words
    assert all(line.removeprefix("missing: ").replace("`", "") in words for line in said)


@pytest.mark.parametrize("option", ["--records", "--quality"])
def test_a_record_that_cannot_be_read_is_named(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "report.html"
    assert run.main(["--out", str(out), option, "no/such.json"]) == 1
    assert capsys.readouterr().err == "dlm report: no/such.json: No such file or directory\n"
    assert not out.exists()


NEWER = {"date": "2026-02-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        pytest.param(None, "committed", id="none of one's own"),
        pytest.param(NEWER, "own", id="newer"),
        pytest.param({"date": "2025-02-01T00:00:00Z"}, "committed", id="older"),
        pytest.param(NEWER | {"complete": False}, "committed", id="cut short"),
        pytest.param(NEWER | {"scope": "quick"}, "committed", id="quick"),
        pytest.param(NEWER | {"schema": 1}, "committed", id="of another version"),
    ],
)
def test_the_newest_whole_quality_record_is_shown(
    own: dict | None, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    committed = replace(quality_record(), commit="committed")
    monkeypatch.setattr(run, "COMMITTED", save(committed, tmp_path / "committed.json"))
    (tmp_path / "quality").mkdir()
    if own is not None:
        save(quality_record(**own, commit="own"), tmp_path / "quality" / "quality.json")
    assert run.newest_quality(tmp_path).commit == shown
    assert ("left out: " in capsys.readouterr().err) == ("schema" in (own or {}))
