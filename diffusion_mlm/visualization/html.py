"""Pages that play traces: one file each, which needs no network and runs nothing that a text may hold."""

import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from .colours import RAMP
from .trace import Frame, Trace, TraceSample


def trace_page(trace: Trace, title: str = "Text out of masks") -> str:
    """A page that plays the texts of a trace, one of them at a time: steps, colours, probabilities, alternatives."""
    return _page({"mode": "steps", **trace.to_dict()}, title, [sample.text for sample in trace.samples])


def comparison_page(panes: Sequence[tuple[str, TraceSample]], title: str, note: str = "", speed: str = "1") -> str:
    """A page that plays several texts beside one another, by the times at which their steps were done.

    Args:
        panes: title and sample of each; all steps must have `seconds`.
        note (`str`): a line below the title.
        speed (`str`): at first: "0.1", "0.25", "1" (as measured) or "4".

    Raises:
        ValueError: a step has no time.
    """
    for name, sample in panes:
        if not sample.steps or any(step.seconds is None for step in sample.steps):
            raise ValueError(f"`panes` holds {name!r}, whose steps have no times: record with `timed=True`.")
    written = [{"title": name, "sample": Trace((sample,)).to_dict()["samples"][0]} for name, sample in panes]
    return _page({"mode": "time", "panes": written, "note": note, "speed": speed}, title, [s.text for _, s in panes])


def frame_html(frame: Frame) -> str:
    """One frame as escaped HTML without any script: spans of the classes mask, fresh, settled, given and end."""
    parts = []
    for cell in frame:
        if cell.state == "mask":
            parts.append(' <span class="mask" aria-label="mask">&nbsp;&nbsp;&nbsp;</span>')
        elif cell.state != "end":
            word = cell.text.lstrip(" \n\t")
            gap = cell.text[: len(cell.text) - len(word)]
            parts.append(f'{gap}<span class="{cell.state}">{html.escape(word)}</span>')
    return "".join(parts)


def _page(data: dict[str, Any], title: str, texts: list[str]) -> str:
    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    # In a script element nothing but "</script" and "<!--" is markup, so without "<" all of it is data.
    written = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    shown = "".join(f"<p>{html.escape(text)}</p>" for text in texts)
    parts = {"TITLE": html.escape(title), "TEXTS": shown, "DATA": written, "RAMP": json.dumps(RAMP)}
    pieces = page.split("@@")  # what is put in is not searched again
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))
