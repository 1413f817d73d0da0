"""The page: sections of HTML, and the one file that they are put into."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from matplotlib import colormaps
from matplotlib.colors import to_hex

from dlm_core.block_trace import ink_on
from dlm_roofline.charts.chart import Chart
from dlm_roofline.model_check import model_check, outlier_lines
from dlm_roofline.plots import charts_of, profiles_of
from dlm_roofline.records import RESULTS, Record

from .. import tables as bench_tables
from ..quality import charts as quality_charts
from ..quality import tables as quality_tables
from ..quality.records import QualityRecord
from ..tables import Table
from .figures import inline_svg

TITLE = "Diffusion language models, measured stage by stage"
LEAD = (
    "A diffusion language model fills a block of masked tokens in a few parallel forwards. This"
    " page shows, for each device that was measured, what every stage of a forward takes beside"
    " the least time that the device's own measured ceilings allow, what faster decoding costs in"
    " answers, and one block being filled. Whatever is a prediction is called one."
)
MODEL = "model"  # the chart of predictions beside measurements
SHADES = 64
_LONG = 60  # characters from which a cell's text wraps
_NUMBER = re.compile(r"[-+<±]?[\d.,]+([eE][-+]?\d+)?\s?(%|x|points)?( \[.*\])?")


@dataclass
class Contents:
    """What goes into a page beside its sections.

    pictures: header and rows of each, by the id of its figure; for what shows on hover.
    """

    pictures: dict[str, dict[str, list]] = field(default_factory=dict)
    sections: list[tuple[str, str, str]] = field(default_factory=list)  # id, name, HTML

    def add(self, key: str, name: str, html: str) -> None:
        self.sections.append((key, name, html))


def page(
    records: Sequence[tuple[Path, Record]],
    quality: tuple[Path, QualityRecord] | None,
    runs: Sequence[dict],
    missing: Sequence[str],
) -> str:
    """The whole report as HTML, a function of its arguments alone.

    Args:
        records: with the paths they are from.
        quality: the record of answers beside speed.
        runs: what `player.runs` gives.
        missing: what could not be shown and why, in sentences.
    """
    contents = Contents()
    for i, (path, record) in enumerate(records, start=1):
        name = f"{record.device.label}, {record.backend}"
        contents.add(f"record-{i}", name, _record(contents, f"r{i}", path, record))
    if quality is not None:
        contents.add("quality", "Quality against speed", _quality(contents, *quality))
    if runs:
        contents.add("player", "A block being denoised", _player())
    contents.add("again", "Making it again", _again())
    links = "".join(
        f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name, _ in contents.sections
    )
    body = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-title">'
        f'<h2 id="{key}-title">{escape(name)}</h2>{html}</section>'
        for key, name, html in contents.sections
    )
    data = {"pictures": contents.pictures, "runs": list(runs), "scale": _scale()}
    return Template(_part("page.html")).substitute(
        title=escape(TITLE),
        style=_part("style.css"),
        script=_part("script.js"),
        lead=_lead(records, missing),
        contents=f"<ul>{links}</ul>",
        body=body,
        # No end tag can stand in it.
        data=json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    )


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8").strip()


def _scale() -> list[tuple[str, str]]:
    """Colours of confidences from 0 to 1, and the ink that can be read on each."""
    shades = [to_hex(colormaps["viridis"](i / (SHADES - 1))) for i in range(SHADES)]
    return [(shade, ink_on(shade)) for shade in shades]


def _lead(records: Sequence[tuple[Path, Record]], missing: Sequence[str]) -> str:
    devices = [
        f"<strong>{escape(record.device.label)}</strong> ({escape(record.date[:10])})"
        for _, record in records
    ]
    html = f"<p>{escape(LEAD)}</p>"
    if devices:
        html += f"<p>Measured on {_listed(devices)}.</p>"
    if missing:
        items = "".join(f"<li>{_prose(each)}</li>" for each in missing)
        html += f'<div class="card missing"><h3>Not on this page</h3><ul>{items}</ul></div>'
    return html


def _prose(text: str) -> str:
    """Escaped, with what stands in backticks as code."""
    parts = enumerate(escape(text).split("`"))
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in parts)


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


# --- a record


def _record(contents: Contents, key: str, path: Path, record: Record) -> str:
    charts = charts_of(record, profiles_of(record))
    ceilings, *others = bench_tables.tables(record)
    model = [chart for chart in charts if chart.name == MODEL]
    facts = {
        "backend": record.backend,
        **record.device.details,
        **record.versions,
        "commit": _commit(record),
        "date": _time(record),
    }
    parts = [_warning(record), f'<div class="card">{_facts(facts)}</div>']
    parts.append(f'<div class="card">{_table(ceilings)}</div>')
    again = f"dlm roofline {_named(path)}"
    parts += [
        _figure(contents, key, chart, record, again) for chart in charts if chart.name != MODEL
    ]
    if model:
        parts.append("<h3>Model against measurement</h3>")
        parts += [_figure(contents, key, chart, record, again) for chart in model]
        parts.append(f'<div class="card">{_errors(record)}</div>')
        others = [each for each in others if each != bench_tables.errors(record)]
    parts.append(_folded(others, "Tables", bench_tables.READING))
    return "".join(parts)


def _errors(record: Record) -> str:
    """How far predictions are; what is far off opens on demand."""
    table = bench_tables.errors(record)
    html = _table(replace(table, notes=table.notes[:1]))
    if lines := outlier_lines(model_check(record)):
        items = "".join(f"<li>{_prose(line)}</li>" for line in lines)
        html += (
            f"<details><summary>Outliers, and why: {len(lines)}</summary><ul>{items}</ul></details>"
        )
    return html


def _named(path: Path) -> str:
    """A path as one types it in the repository; of other folders the name alone."""
    root = RESULTS.parents[1]
    if path.is_relative_to(root):
        return str(path.relative_to(root))
    return path.name if path.is_absolute() else str(path)


def _warning(record: Record | QualityRecord) -> str:
    words = []
    if not record.complete:
        words.append("The run was cut short: rows are missing.")
    if record.scope == "quick":
        words.append("A quick run: a few rows only.")
    return f'<p class="card missing">{" ".join(words)}</p>' if words else ""


def _commit(record: Record | QualityRecord) -> str:
    return record.commit[:10] + (" with local changes" if record.dirty else "")


def _time(record: Record) -> str:
    return record.date.replace("T", " ").replace("Z", " UTC")


def _facts(facts: dict[str, str]) -> str:
    items = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _figure(
    contents: Contents, key: str, chart: Chart, record: Record | QualityRecord, again: str
) -> str:
    """A picture, what it asks, and how to have it again."""
    figure = f"{key}-{chart.name}"
    contents.pictures[figure] = {"header": chart.header, "rows": chart.rows}
    return (
        f'<figure class="card picture" id="{figure}"><h3>{escape(chart.title)}</h3>'
        f"<p>{_prose(chart.about)}</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(chart.title)}">'
        f"{inline_svg(chart, f'{figure}-')}</div>"
        "<figcaption>Point at a mark, tap it, or step through them with Tab and the arrow keys:"
        f" its figures show. Measured by <code>{escape(record.command)}</code> at commit"
        f" {escape(_commit(record))} on {escape(record.date[:10])}; drawn again by"
        f" <code>{escape(again)}</code>."
        f'<details class="values"><summary>All {len(chart.rows)} rows of the picture</summary>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Rows of the picture"></div>'
        "</details></figcaption></figure>"
    )


# --- tables


def _table(table: Table, *, caption: bool = True) -> str:
    columns = list(zip(*table.rows, strict=True)) or [() for _ in table.header]
    numbers = [_is_numbers(cells) for cells in columns]

    def cell(tag: str, text: str, number: bool) -> str:
        kind = "number" if number else "long" if len(text) > _LONG else ""
        return f"<{tag}{f' class={kind}' * bool(kind)}>{escape(text)}</{tag}>"

    def line(tag: str, texts: Iterable[str]) -> str:
        cells = (cell(tag, *each) for each in zip(texts, numbers, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    title = f"<caption>{escape(table.title)}</caption>" * caption
    body = "".join(line("td", row) for row in table.rows)
    notes = "".join(f'<p class="quiet notes">{_prose(note)}</p>' for note in table.notes)
    head = f"{title}<thead>{line('th', table.header)}</thead>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table>{head}<tbody>{body}</tbody></table></div>{notes}"
    )


def _is_numbers(cells: Sequence[str]) -> bool:
    filled = [text for text in cells if text not in ("", "-", "refused")]
    return all(_NUMBER.fullmatch(text) for text in filled)


def _folded(tables: Sequence[Table], title: str, reading: str) -> str:
    """Tables that open on demand, all but short ones of what was left out."""
    if not tables:
        return ""
    items = "".join(
        f"<details{' open' * (len(tables) == 1)}><summary>{escape(table.title)}</summary>"
        f"<div>{_table(table, caption=False)}</div></details>"
        for table in tables
    )
    return (
        f'<div class="card tables"><h3>{escape(title)}</h3><p class="quiet">{_prose(reading)}</p>'
        f"{items}</div>"
    )


# --- quality


def _quality(contents: Contents, path: Path, record: QualityRecord) -> str:
    parts = [
        _warning(record),
        "<p>Speed that costs answers is no gain. Each setting of the small model that comes with"
        " dlm-kernels, on held-out examples that have one right answer.</p>",
        f'<p class="quiet">{escape(quality_tables.heading(record))}</p>',
    ]
    again = f"dlm quality --draw {_named(path)}"
    charts = quality_charts.charts_of(record)
    parts += [_figure(contents, "quality", chart, record, again) for chart in charts]
    tables = quality_tables.tables(record)
    parts.append(_folded(tables, "Tables", quality_tables.READING))
    return "".join(parts)


# --- the player, and how to make it again


def _player() -> str:
    stops = ", ".join(shade for shade, _ in _scale()[::9])
    return f"""
<p>The small model, run when this page was made. Each cell is a position of the block; its colour
is the probability with which its token was chosen, which shows as a number on hover, tap or focus.
Space plays and pauses, the arrow keys step.</p>
<div class="card" id="player-box">
<div class="choices">
<label>Prompt <select id="prompt"></select></label>
<label>Mode <select id="mode"></select></label>
</div>
<div class="controls" role="group" aria-label="Playing">
<button type="button" id="first" aria-label="To the start">|◀</button>
<button type="button" id="back" aria-label="Step back">◀</button>
<button type="button" id="play">Play</button>
<button type="button" id="forward" aria-label="Step forward">▶</button>
<input type="range" id="slider" min="0" max="1" value="0" step="1" aria-label="Frame">
<label>Speed <select id="speed"><option value="0.5">½ ×</option>
<option value="1" selected>1 ×</option><option value="2">2 ×</option>
<option value="4">4 ×</option></select></label>
</div>
<dl class="status">
<div><dt id="block-name">block</dt><dd id="block"></dd></div>
<div><dt>forwards, prefill not counted</dt><dd id="forwards"></dd></div>
<div><dt>tokens of the answer</dt><dd id="tokens"></dd></div>
<div><dt>tokens per forward, the prefill's token not counted</dt><dd id="tpf"></dd></div>
</dl>
<p id="what" aria-live="polite"></p>
<p class="text"><b>ahead of the block</b><span id="before"></span></p>
<ol id="cells" aria-label="Positions of the block"></ol>
<p class="text" id="end" hidden><b>the answer</b><span id="answer"></span> <b id="verdict"></b></p>
<ul class="legend">
<li>probability 0 <i class="ramp" style="background: linear-gradient(90deg, {stops})"></i> 1</li>
<li data-kinds="mask"><i class="mask"></i>undecided</li>
<li data-kinds="seed"><i class="seed"></i>seed</li>
<li data-kinds="new right"><i class="new"></i>decided just now</li>
<li data-kinds="draft"><i class="draft"></i>draft</li>
<li data-kinds="own"><i class="own"></i>verifier's own token, the draft below it</li>
<li data-kinds="dropped"><i class="dropped"></i>draft given up</li>
</ul>
<p class="quiet notes">Watch it in a terminal: <code>dlm generate --prompt "multiply: 347 * 6"
--threshold 0.9</code>; draw it: <code>--trace trace.png</code>.</p>
</div>
<noscript><p>The player and the figures on hover need JavaScript; all else works without.</p>
</noscript>"""


def _again() -> str:
    rows = [
        ("make bench", "measures this machine: a record in out/"),
        ("make roofline", "draws the pictures of records again, as PNG, SVG and CSV"),
        ("make quality", "measures answers beside speed, into out/quality/"),
        ("make report", "writes this page from the records in bench/results/"),
        (
            'make report ARGS="--records out/RECORD.json"',
            "writes it from records of your own",
        ),
    ]
    items = "".join(
        f"<div><dt><code>{escape(command)}</code></dt><dd>{escape(what)}</dd></div>"
        for command, what in rows
    )
    return f'<div class="card"><dl class="commands">{items}</dl></div>'
