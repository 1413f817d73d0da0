"""Charts as SVG inside a page: ids of their own, colours for both schemes, marks to point at.

Greys turn with the page's scheme: each becomes a pair of `light-dark()`. What lies on a colour
that does not turn, such as a number in a cell of a heat map, keeps its own.
"""

import io
from xml.etree import ElementTree

import matplotlib
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from dlm_roofline.charts.chart import Chart, mark_id

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"

# What black and white turn to on a dark page; style.css has the same two.
DARK_INK, DARK_PAPER = (0xE8, 0xEA, 0xED), (0x17, 0x1A, 0x1F)


def inline_svg(chart: Chart, prefix: str) -> str:
    """The chart as an <svg> element for an HTML page.

    Its headline is left out, which the page itself has, and so is all that is not drawn.

    Args:
        prefix: goes before every id. The element of the mark of row i has the class `mark`, and i
            as `data-row`.
    """
    kept = _keep_what_lies_on_colours(chart.figure)
    for text in chart.figure.texts:
        if text.get_text() == chart.title:
            text.set_visible(False)
    root = ElementTree.fromstring(_svg_of(chart.figure))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    _turn_greys(root, kept)
    marks = {mark_id(chart.name, i): i for i in range(len(chart.rows))}
    _name_marks_of_lines(root, chart.name)
    _own_ids(root, prefix, marks)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "group")
    root.set("aria-label", f"{chart.title}. {chart.about}")
    width = float(root.get("viewBox").split()[2]) * 4 / 3  # points to CSS pixels
    # Narrower than this its words could not be read; the page scrolls it then.
    root.set("style", f"max-width: {width:.0f}px; min-width: {0.62 * width:.0f}px")
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _svg_of(figure: Figure) -> bytes:
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dlm"}):
        figure.savefig(
            out,
            format="svg",
            transparent=False,
            facecolor="none",
            bbox_inches="tight",
            pad_inches=0.1,
            metadata={"Date": None},
        )
    return out.getvalue()


# --- colours


def _keep_what_lies_on_colours(figure: Figure) -> set[str]:
    """Ids of texts whose colour has to stay, since what is under them stays; gives them ids."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    kept = set()
    for axes in figure.axes:
        under = [artist for artist in axes.get_children() if _stays(artist)]
        for text in axes.texts:
            if not text.get_visible() or not text.get_text():
                continue
            box = text.get_window_extent(renderer)
            middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            boxes = (axes.bbox, *(artist.get_window_extent(renderer) for artist in under))
            inside, *on = (each.contains(*middle) for each in boxes)
            if inside and any(on):
                if text.get_gid() is None:
                    text.set_gid(f"kept-{len(kept)}")
                kept.add(text.get_gid())
    return kept


def _stays(artist: Artist) -> bool:
    """Whether it is filled with what does not turn with the scheme."""
    if not artist.get_visible():
        return False
    if isinstance(artist, AxesImage | QuadMesh):
        return True
    if not isinstance(artist, Patch):
        return False
    red, green, blue, alpha = artist.get_facecolor()
    return alpha > 0.5 and not red == green == blue


def _turn_greys(element: ElementTree.Element, kept: set[str], keeps: bool = False) -> None:
    keeps = keeps or element.get("id") in kept
    style = element.get("style")
    if keeps and element.tag == f"{_SVG}text" and "fill:" not in (style or ""):
        element.set("style", f"{style}; fill: #000000")  # else it is the page's ink
    elif style and not keeps:
        element.set("style", "; ".join(map(_turned, style.split(";"))))
    for child in element:
        _turn_greys(child, kept, keeps)


def _turned(declaration: str) -> str:
    name, _, value = (part.strip() for part in declaration.partition(":"))
    if name not in ("fill", "stroke") or not value.startswith("#"):
        return f"{name}: {value}" if value else name
    red, green, blue = to_rgb(value)
    if not red == green == blue:
        return f"{name}: {value}"
    dark = (
        round(ink + (paper - ink) * red) for ink, paper in zip(DARK_INK, DARK_PAPER, strict=True)
    )
    return f"{name}: light-dark({value}, #{''.join(f'{channel:02x}' for channel in dark)})"


# --- ids


def _name_marks_of_lines(root: ElementTree.Element, name: str) -> None:
    """Give the marks of a line with the id "name-3+4" the ids "name-3" to "name-6"."""
    for line in list(root.iter(f"{_SVG}g")):
        start, plus, count = line.get("id", "").removeprefix(f"{name}-").partition("+")
        uses = list(line.iter(f"{_SVG}use"))
        if plus and len(uses) == int(count):
            for i, use in enumerate(uses, start=int(start)):
                use.set("id", mark_id(name, i))


def _own_ids(root: ElementTree.Element, prefix: str, marks: dict[str, int]) -> None:
    """Put `prefix` before every id and every reference to one, and drop the namespaces."""
    seen = set()
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        attributes = {}
        for name, value in element.attrib.items():
            if name == _LINK:
                name = "href"
            if name == "href" and value.startswith("#"):
                value = f"#{prefix}{value[1:]}"
            elif name == "id":
                # A row may have a second mark in another panel: "name-3.2".
                row = marks.get(value.partition(".")[0])
                if row is not None:
                    attributes |= {"class": "mark", "data-row": str(row)}
                value = prefix + value
                if value in seen:
                    continue  # images are named by their content, so the first will do
                seen.add(value)
            else:
                value = value.replace("url(#", f"url(#{prefix}")
            attributes[name] = value
        element.attrib.clear()
        element.attrib.update(attributes)
