"""The two pictures of a quality record, as PNG and SVG."""

from pathlib import Path

from .acceptance_chart import acceptance_chart
from .frontier_chart import frontier_chart
from .records import QualityRecord


def draw(record: QualityRecord, stem: Path) -> list[Path]:
    """Write `<stem>-frontier` and `<stem>-acceptance`; returns what was written.

    A record without results has no pictures, one without linear self-speculation only the first.
    """
    if not record.results:
        return []
    pictures = {"frontier": frontier_chart(record), "acceptance": acceptance_chart(record)}
    written = []
    for name, figure in pictures.items():
        for kind in ("png", "svg") if figure is not None else ():
            written.append(stem.with_name(f"{stem.name}-{name}.{kind}"))
            figure.savefig(written[-1], dpi=130)
    return written
