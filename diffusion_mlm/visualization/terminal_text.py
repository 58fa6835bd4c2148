"""Text in a terminal: masks, fresh and settled words, told apart without colour; nothing that a terminal obeys."""

import time
import unicodedata
from collections.abc import Callable, Iterable

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from .trace import Frame, TraceSample

MASK_GLYPH, ASCII_MASK_GLYPH = "░░░", "___"
STYLES = {"mask": "dim", "fresh": "bold underline", "settled": "", "given": "italic", "end": ""}


def printable(text: str) -> str:
    """`text` without what a terminal would obey: control characters, escape sequences included, become U+FFFD."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def mask_glyph(console: Console) -> str:
    """What stands for a mask, in characters that the console can show."""
    return ASCII_MASK_GLYPH if console.options.ascii_only else MASK_GLYPH


class LiveText:
    """A text that changes in place, with a line about it below; where the output is no terminal, a line for each.

    Args:
        console (`rich.console.Console`): where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None

    def show(self, number: int, text: Text, status: str = "") -> None:
        """Shows the text after `number` steps; `status` only on a terminal."""
        if not self.console.is_terminal:
            text = text.copy()
            text.plain = text.plain.replace("\n", " ")
            self.console.print(Text(f"{number:>4}  ") + text, soft_wrap=True)
            return
        if self._live is None:
            self._live = Live(
                console=self.console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        shown = Group(text, Text(""), Text(status, style="dim")) if status else text
        self._live.update(shown, refresh=True)

    def close(self) -> None:
        """Takes the view down."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def frame_as_text(frame: Frame, glyph: str = MASK_GLYPH) -> Text:
    """A frame with styles, masks as glyphs."""
    text = Text()
    for cell in frame:
        if cell.state == "mask":
            text.append("" if not text or text.plain[-1].isspace() else " ")
            text.append(glyph, style=STYLES["mask"])
        elif cell.text:
            behind_mask = text.plain.endswith(glyph)
            word = printable(cell.text)
            bare = word.lstrip(" \n\t")
            text.append(word[: len(word) - len(bare)] or (" " if behind_mask else ""))
            text.append(bare, style=STYLES[cell.state])
    return text


def progress_line(frame: Frame, step: int, num_steps: int, ascii_only: bool = False) -> str:
    """How far a text has come, in words and as a bar."""
    masks = sum(cell.state == "mask" for cell in frame)
    positions = sum(cell.state != "given" for cell in frame)
    full, empty = ("#", ".") if ascii_only else ("━", "╌")
    done = round(24 * (1 - masks / max(positions, 1)))
    return f"{full * done}{empty * (24 - done)}  step {step} of {num_steps}, {masks} of {positions} masked"


def replay(
    sample: TraceSample, console: Console, seconds: float = 8.0, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Shows every frame of a sample, over so many seconds if the console is a terminal; the view is taken down."""
    view, glyph = LiveText(console), mask_glyph(console)
    ascii_only, num_steps = bool(console.options.ascii_only), len(sample.steps)
    frames: Iterable[Frame] = sample.frames()
    try:
        for step, frame in enumerate(frames):
            view.show(step, frame_as_text(frame, glyph), progress_line(frame, step, num_steps, ascii_only))
            if console.is_terminal and seconds > 0:
                sleep(seconds / (num_steps + 1))
    finally:
        view.close()
