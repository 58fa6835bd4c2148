"""The live view: text condensing out of masks in a terminal, or plain lines where there is none."""

from itertools import groupby
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from .terminal_text import STYLES, LiveText, mask_glyph
from .terminal_text import printable as printable


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
        self._view = LiveText(self.console)
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
        masks = int((value == self.tokenizer.mask_token_id).sum())
        self._view.show(self._index, text, f"{masks} of {value.numel()} masked")
        self._before = ids

    def end(self) -> None:
        """Takes the view down and forgets the canvas; also to be called when generation fails."""
        self._view.close()
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

        text, place, glyph = Text(), 0, mask_glyph(self.console)
        for is_mask, run in groupby(states[:length].tolist(), key=lambda state: state == 0):
            if place:
                text.append(" ")
            run_states, start, shown = list(run), place, ""
            if is_mask:
                text.append(" ".join([glyph] * len(run_states)), style=STYLES["mask"])
                place += len(run_states)
                continue
            for state, group in groupby(run_states):
                place += len(list(group))
                # Decoded from the start of the run, so that parts of one word are not torn apart.
                whole = printable(self.tokenizer.decode(ids[start:place].tolist()).lstrip(" "))
                text.append(whole[len(shown) :], style=STYLES["fresh" if state == 1 else "settled"])
                shown = whole
        return text
