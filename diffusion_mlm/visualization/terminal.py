"""The live view: text condensing out of masks in a terminal, or plain lines where there is none."""

import unicodedata
from itertools import groupby
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

MASK_GLYPH, ASCII_MASK_GLYPH = "░░░", "___"
_STYLES = {"mask": "dim", "fresh": "bold underline", "settled": ""}


def printable(text: str) -> str:
    """`text` without what a terminal would obey: control characters, escape sequences included, become U+FFFD."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


class TerminalStreamer(BaseStreamer):
    """Shows each draft of a canvas in place; tokens revealed since the last draft are bold and underlined.

    It speaks the protocol of transformers' `TextDiffusionStreamer` (`put`, `put_draft`, `end`), so that either can be
    given to `generate(streamer=...)`. Where the output is no terminal, each draft is one line.

    Args:
        tokenizer: of the model.
        console (`rich.console.Console`, *optional*): standard error by default, so that standard output stays clean.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, console: Console | None = None) -> None:
        self.tokenizer = tokenizer
        self.console = console or Console(stderr=True)
        self._live: Live | None = None
        self._forget()

    def _forget(self) -> None:
        self._prompt = torch.zeros(0, dtype=torch.int64)
        self._before: Tensor | None = None
        self._index = 0

    def put(self, value: Tensor) -> None:
        """Takes the ids of the prompt, before any draft; the finished ids, after them, are the caller's to print."""
        if self._index == 0:
            self._prompt = value.reshape(-1).cpu()

    def put_draft(self, value: Tensor, **kwargs: Any) -> None:
        """Shows a draft of what follows the prompt, ids of shape `(L,)` or `(1, L)`."""
        ids = torch.cat([self._prompt, value.reshape(-1).cpu()])
        text = self._render(ids)
        self._index += 1
        if not self.console.is_terminal:
            text.plain = text.plain.replace("\n", " ")
            self.console.print(Text(f"{self._index:>4}  ") + text, soft_wrap=True)
        else:
            if self._live is None:
                self._live = Live(
                    console=self.console,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
            self._live.update(text, refresh=True)
        self._before = ids

    def end(self) -> None:
        """Takes the view down and forgets the canvas; also to be called when generation fails."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._forget()

    def _render(self, ids: Tensor) -> Text:
        """The canvas up to the first end token, masks as glyphs."""
        end_ids = torch.tensor(
            [x for x in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id) if x is not None]
        )
        before = self._before if self._before is not None else torch.full_like(ids, self.tokenizer.mask_token_id)
        states = torch.where(ids == self.tokenizer.mask_token_id, 0, torch.where(ids != before, 1, 2))
        states[: len(self._prompt)] = 2  # whatever stands in a prompt is text
        length = next((place for place, token in enumerate(ids.tolist()) if token in end_ids), len(ids))

        text, place, glyph = Text(), 0, ASCII_MASK_GLYPH if self.console.options.ascii_only else MASK_GLYPH
        for is_mask, run in groupby(states[:length].tolist(), key=lambda state: state == 0):
            if place:
                text.append(" ")
            run_states, start, shown = list(run), place, ""
            if is_mask:
                text.append(" ".join([glyph] * len(run_states)), style=_STYLES["mask"])
                place += len(run_states)
                continue
            for state, group in groupby(run_states):
                place += len(list(group))
                # Decoded from the start of the run, so that parts of one word are not torn apart.
                whole = printable(self.tokenizer.decode(ids[start:place].tolist()).lstrip(" "))
                text.append(whole[len(shown) :], style=_STYLES["fresh" if state == 1 else "settled"])
                shown = whole
        return text
