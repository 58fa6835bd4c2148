"""What the picture scripts share: one look, one way to save, one way to fail."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_mlm.cli import report_error
from diffusion_mlm.visualization.colours import BLUE, GREEN, INK, ORANGE, PALE_INK, PURPLE, RULE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)  # of Okabe and Ito 2008; lines differ in their dashes too
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1)), "-")
FORMATS = (".png", ".pdf", ".svg")


def require_output(output: str) -> None:
    """Raises ValueError unless this is the name of a picture."""
    if Path(output).suffix not in FORMATS:
        raise ValueError(f"`--output` must end in {', '.join(FORMATS)}, unlike {output!r}.")


def new_figure(title: str, note: str, width: float, height: float) -> "Figure":
    """An empty page of so many inches with a title and a line of explanation below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, facecolor="white", layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=PALE_INK)
    return figure


def tidy(panel: Any, title: str, x: str, y: str, grid: str = "both") -> None:
    """A panel in the look of the others."""
    panel.set_title(title, loc="left", fontsize=10, color=INK)
    panel.set_xlabel(x, fontsize=9, color=PALE_INK)
    panel.set_ylabel(y, fontsize=9, color=PALE_INK)
    panel.tick_params(labelsize=8, colors=PALE_INK)
    if grid:
        panel.grid(axis=grid, color=RULE, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["bottom", "left"]].set_color(PALE_INK)


def save(figure: "Figure", output: str) -> None:
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    print(output)


def run_script(main: Callable[[list[str]], int]) -> None:
    """Runs a script; a mistake is one sentence and an exit status."""
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ArithmeticError, KeyboardInterrupt) as error:
        sys.exit(report_error(error))
