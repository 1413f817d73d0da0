"""Where labels of a crowded panel go: beside their marks, and on nothing else."""

import math
from collections.abc import Callable, Iterable, Iterator

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from .style import FONT_SIZE

Box = tuple[float, float, float, float]  # left, right, bottom, top in typographic points
Offset = tuple[float, float]


class Places:
    """Free places of a panel, in typographic points from the figure's corner."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._scale = 72 / axes.figure.dpi
        self._inside = self._box(axes.get_window_extent())
        self._marks: list[Box] = []
        self._lines: list[Box] = []

    def _box(self, extent) -> Box:
        return tuple(each * self._scale for each in (extent.x0, extent.x1, extent.y0, extent.y1))

    def at(self, x: float, y: float) -> tuple[float, float]:
        across, up = self._axes.transData.transform((x, y))
        return across * self._scale, up * self._scale

    def take_mark(self, x: float, y: float) -> None:
        across, up = self.at(x, y)
        self._marks.append((across - 5, across + 5, up - 5, up + 5))

    def take_line(self, xs: list[float], ys: list[float]) -> None:
        """Labels lie on lines only where there is no other place."""
        spots = [self.at(x, y) for x, y in zip(xs, ys, strict=True)]
        for (x0, y0), (x1, y1) in zip(spots, spots[1:], strict=False):
            pieces = max(1, round(math.hypot(x1 - x0, y1 - y0) / 5))
            for i in range(pieces + 1):
                x, y = x0 + (x1 - x0) * i / pieces, y0 + (y1 - y0) * i / pieces
                self._lines.append((x - 1, x + 1, y - 1, y + 1))

    def find(
        self,
        text: str,
        x: float,
        y: float,
        offsets: Callable[[float], Iterable[Offset]],
        *,
        weight: str = "normal",
    ) -> Offset | None:
        """The first of the offsets from a spot in data coordinates where the text's middle lies
        free of marks and other text, and its leader too; free of lines as well, if there is such a
        place. It is taken from then on.

        offsets: of half the text's width. weight: of its font.
        """
        across, up = self.at(x, y)
        font = FontProperties(weight=weight, size=FONT_SIZE)
        lines = [TextPath((0, 0), line, prop=font) for line in text.split("\n")]
        half = max(line.get_extents().width for line in lines) / 2 + 3
        height = 8 * len(lines)
        for avoid, clear in (
            (self._marks + self._lines, True),
            (self._marks, True),
            (self._marks, False),
        ):
            for dx, dy in offsets(half):
                box = (
                    *(across + dx - half, across + dx + half),
                    *(up + dy - height, up + dy + height),
                )
                if not _within(box, self._inside) or any(_overlap(box, each) for each in avoid):
                    continue
                if clear and self._is_crossed(across, up, dx, dy):
                    continue
                self._marks.append(box)
                return dx, dy
        return None

    def _is_crossed(self, across: float, up: float, dx: float, dy: float) -> bool:
        """Whether a line by the offset runs over a mark other than the one that it begins at."""
        far = math.hypot(dx, dy)
        for step in range(9, int(far), 3):
            x, y = across + dx * step / far, up + dy * step / far
            spot = (x - 1, x + 1, y - 1, y + 1)
            if any(_overlap(spot, each) for each in self._marks):
                return True
        return False


_ANGLES = [math.radians(degrees) for degrees in (0, 180, -35, 215, 35, 145, -90, 90, -65, 245)]


def around(half: float) -> Iterator[Offset]:
    """Round a mark, near it first."""
    for gap in (6, 13, 21, 31, 43, 57, 73, 91):
        for angle in _ANGLES:
            yield math.cos(angle) * (gap + half), math.sin(angle) * (gap + 8)


def along(half: float) -> Iterator[Offset]:
    """Either side of an upright line, from its foot up."""
    for up in range(12, 240, 12):
        yield half + 3, up
        yield -half - 3, up


def _within(box: Box, other: Box) -> bool:
    return other[0] <= box[0] and box[1] <= other[1] and other[2] <= box[2] and box[3] <= other[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
