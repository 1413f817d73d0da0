"""Axes as several pictures have them."""

from matplotlib.axes import Axes

from .style import FONT_SIZE


def dress(axes: Axes, title: str, *, pad: float = 6) -> None:
    """A title, light lines across, text that is large enough, and no frame."""
    axes.set_title(title, loc="left", fontsize=FONT_SIZE, fontweight="bold", pad=pad)
    axes.grid(True, axis="y", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=FONT_SIZE)
    axes.xaxis.label.set_size(FONT_SIZE)
    axes.yaxis.label.set_size(FONT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)


def label_logarithm(axes: Axes) -> None:
    """Plain numbers up a logarithmic axis, at 2 and 5 too where it has few powers of ten."""
    low, high = axes.get_ylim()
    between = "25" if high / low < 1000 else ""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter(
        lambda value, _: f"{value:,g}" if f"{value:.0e}"[0] in between else ""
    )
