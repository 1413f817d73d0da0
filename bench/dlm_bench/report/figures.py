"""Charts as SVG inside a page: ids of their own, and marks that know their row."""

import io
import re

import matplotlib
from markupsafe import Markup, escape

from dlm_roofline.charts.chart import Chart, mark_id


def inline_svg(chart: Chart, prefix: str) -> Markup:
    """The chart as an <svg> element for an HTML page, on no ground of its own.

    Args:
        prefix: goes before every id, and before every reference to one. A mark of row i has the
            class `mark`, and i as `data-row`; so has a second one in another panel ("step-3.2").
    """
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dlm"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        chart.figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    _, opening, inside = re.split(r"(<svg [^>]*>)", out.getvalue(), maxsplit=1)
    mark = re.compile(rf'(id="{mark_id(chart.name, "")}(\d+)[^"]*")')

    def owned(tag: re.Match) -> str:  # text holds no tag: its "<" and ">" are escaped
        marked = mark.sub(r'\1 class="mark" data-row="\2"', tag[0])
        return re.sub(r' id="|href="#|url\(#', rf"\g<0>{prefix}", marked)

    box = re.search(r'viewBox="[^"]*"', opening)[0]
    width = float(box.split()[2]) * 4 / 3  # of points, in CSS pixels
    label = escape(f"{chart.title}. {chart.about}")
    shape = f'{box} role="group" aria-label="{label}" style="max-width: {width:.0f}px"'
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return Markup(f"<svg {links} {shape}>{re.sub(r'<[^>]+>', owned, inside)}")
