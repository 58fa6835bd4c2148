"""The picture of a sweep: quality against forwards, and the frontier of what no other setting beats."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours of Okabe and Ito 2008, which colour-blind readers tell apart.
_INK, _PALE_INK, _RULE, _GREY, _BLUE, _ORANGE = "#1a1a1a", "#606060", "#dcdcdc", "#9a9a9a", "#0072B2", "#D55E00"
_MOST_NAMES = 12  # of the frontier that fit beside the picture


@dataclass(frozen=True)
class FrontierPoint:
    """What is drawn of a setting."""

    name: str
    forwards: float
    quality: float
    collapsed: bool
    on_frontier: bool


def require_matplotlib(argument: str) -> None:
    """Raises ValueError that names the extra, if there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            f"`{argument}` needs matplotlib: run `pip install 'diffusion-mlm[viz]'`, or pass `{argument} false`."
        ) from None


def draw_frontier(points: Sequence[FrontierPoint], title: str, note: str) -> "Figure":
    """Points over forwards per text, on a logarithmic axis; those of the frontier are joined, numbered and named."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), dpi=130, facecolor="white", layout="constrained")
    panel, legend = figure.subplots(1, 2, width_ratios=(3, 2))
    legend.set_axis_off()
    best = sorted((point for point in points if point.on_frontier), key=lambda point: point.forwards)
    others = [point for point in points if not point.on_frontier and not point.collapsed]
    collapsed = [point for point in points if point.collapsed]
    for some, style in (
        (others, {"color": _GREY, "marker": "o", "s": 22, "label": "other settings"}),
        (collapsed, {"color": _ORANGE, "marker": "x", "s": 32, "label": "collapsed"}),
    ):
        if some:
            panel.scatter(
                [point.forwards for point in some], [point.quality for point in some], linewidths=1.2, **style
            )
    if best:
        x, y = [point.forwards for point in best], [point.quality for point in best]
        panel.step(x, y, where="post", color=_BLUE, linewidth=1.2, alpha=0.6)
        panel.scatter(x, y, color=_BLUE, marker="D", s=30, zorder=3, label="frontier")
    for number, point in enumerate(best[-_MOST_NAMES:], start=1):
        panel.annotate(
            str(number),
            (point.forwards, point.quality),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=_INK,
        )
        top = 1.06 - 0.088 * number
        what = {"fontsize": 8, "va": "top", "parse_math": False}
        legend.text(0.0, top, f"{number}   {point.quality:.3f} at {point.forwards:.1f} forwards", color=_INK, **what)
        legend.text(0.05, top - 0.034, textwrap.shorten(point.name, 75, placeholder=" ..."), color=_PALE_INK, **what)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_ylim(-0.03, 1.06)
    panel.axhline(1.0, color=_PALE_INK, linewidth=1, linestyle=(0, (4, 3)))
    panel.grid(color=_RULE, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_xlabel("forwards per text", color=_PALE_INK)
    panel.set_ylabel("quality; 1: as real text", color=_PALE_INK)
    panel.legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=_PALE_INK)
    return figure
