"""Recording: what a run of `generate`, `infill` or `edit` showed, as a `Trace` that replays without a model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from .constraints import completion_text
from .denoising_step import DenoisingStep, GuideLogits
from .filled_text import text_of_run
from .tokenization import decode_text
from .visualization.trace import Candidate, Reveal, Trace, TraceSample, TraceStep

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 8  # tokens in front of one that show how it is written there: whether with a space, ...


@dataclass
class _Step:
    revealed: list[tuple[int, int, float | None, list[tuple[int, float]]]]  # place, id, confidence, alternatives
    remasked: list[int]
    seconds: float


@dataclass
class _Window:
    """The steps of one canvas; places count over its generated positions."""

    steps: list[_Step] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # after the last step
    masked: list[bool] = field(default_factory=list)


Run = list[_Window]  # the canvases of one text


class TraceRecorder:
    """Goes into `generate(recorder=...)`, `infill` or `edit`, and then holds the trace: one sample for each text.

    A recorder makes its run do one text at a time, whatever `batch_size`; the texts are the same.

    Args:
        tokenizer: of the model.
        alternatives (`int`): so many of the likeliest tokens are kept for each position at the moment it is revealed,
            with their probabilities (untempered, untruncated). Under constraints there are none to be had.
        timed (`bool`): keep the time of each step; then no two traces are equal.

    Raises:
        ValueError: `alternatives` is negative.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", alternatives: int = 0, timed: bool = False) -> None:
        if not isinstance(alternatives, int) or isinstance(alternatives, bool) or alternatives < 0:
            raise ValueError(f"`alternatives` must be a whole number of at least 0, not {alternatives!r}.")
        self.tokenizer, self.alternatives, self.timed = tokenizer, alternatives, timed
        self.samples: list[TraceSample] = []
        self.start()

    def trace(self, **settings: str | int | float | bool | None) -> Trace:
        """What was recorded; `settings` are kept with it.

        Raises:
            ValueError: nothing was recorded.
        """
        if not self.samples:
            raise ValueError("The `recorder` has recorded nothing: pass it to `generate`, `infill` or `edit` first.")
        return Trace(tuple(self.samples), settings)

    def start(self) -> None:
        """Forgets an unfinished text, and begins another one."""
        self._windows: list[_Window] = []
        self._candidates: dict[int, list[tuple[int, float]]] = {}
        self._began = time.perf_counter()

    def take(self) -> Run:
        """The steps of the text that is done; another one begins."""
        run = self._windows
        self.start()
        return run

    def watch(self, guidance: GuideLogits | None) -> GuideLogits | None:
        """`guidance`, or what stands for it where there is none, with an eye on the probabilities it leaves."""
        if not self.alternatives:
            return guidance

        def watched(canvas: Tensor, position: Tensor, logits: Tensor) -> Tensor:
            guided = guidance(canvas, position, logits) if guidance is not None else logits
            shares, tokens = guided.float().softmax(-1).topk(min(self.alternatives, guided.shape[-1]), -1)
            for place, row, ids in zip(position.tolist(), shares.tolist(), tokens.tolist(), strict=True):
                self._candidates[place] = [(token, share) for token, share in zip(ids, row, strict=True) if share > 0]
            return guided

        return watched

    def see(self, step: DenoisingStep, positions: Sequence[int]) -> None:
        """Takes a step of a canvas whose `positions` are generated."""
        if step.index == 0:
            self._windows.append(_Window(masked=[True] * len(positions), ids=[-1] * len(positions)))
        window = self._windows[-1]
        ids, masked = step.canvas[0].tolist(), step.is_masked[0].tolist()
        confidence: list[float] = step.confidence[0].tolist()
        written = _Step([], [], time.perf_counter() - self._began)
        for place, position in enumerate(positions):
            if masked[position]:
                if not window.masked[place]:
                    written.remasked.append(place)
            elif window.masked[place] or window.ids[place] != ids[position]:
                sure = confidence[position] if confidence[position] == confidence[position] else None
                others = self._candidates.get(position, [])
                written.revealed.append((place, ids[position], sure, others))
            window.masked[place], window.ids[place] = masked[position], ids[position]
        self._candidates = {}
        window.steps.append(written)

    def finish_continuation(
        self, prefix: str, prefix_ids: Sequence[int], token_ids: Sequence[int], text: str, **facts: int
    ) -> None:
        """Keeps the text that went on after a prefix: `token_ids` are what was generated, up to its end."""
        before, decode = list(prefix_ids), partial(decode_text, self.tokenizer)

        def as_written(number: int) -> str:
            return completion_text(decode, prefix, before, list(token_ids[:number]))

        pieces: list[str | None] = [*split_text(text[len(prefix) :], len(token_ids), as_written)]
        run = self.take()
        total = sum(len(window.ids) for window in run)
        pieces += [None] * (total - len(pieces))
        layout = (prefix, total) if prefix else (total,)
        self._keep(run, layout, pieces, [*before, *token_ids], len(before), text, facts)

    def finish_filling(
        self, run: Run, ids: Sequence[int], pieces: Sequence[str | slice], text: str, **facts: int
    ) -> None:
        """Keeps a text whose blanks, slices of its row `ids`, were filled in `run`."""
        layout: list[str | int] = []
        words: list[str | None] = []
        so_far = ""
        for piece in pieces:
            if isinstance(piece, str):
                layout.append(piece)
                so_far += piece
                continue
            length = piece.stop - piece.start

            def as_written(count: int, start: int = piece.start, before: str = so_far) -> str:
                return text_of_run(self.tokenizer, ids, slice(start, start + count), before)

            fill = as_written(length)
            words += split_text(fill, length, as_written)
            layout.append(length)
            so_far += fill
        starts = [place for piece in pieces if isinstance(piece, slice) for place in range(piece.start, piece.stop)]
        self._keep(run, tuple(layout), words, list(ids), starts, text, facts)

    def _keep(
        self,
        run: Run,
        layout: Sequence[str | int],
        pieces: list[str | None],
        ids: list[int],
        starts: int | list[int],
        text: str,
        facts: dict[str, int],
    ) -> None:
        """Writes ids as text: those that stay by `pieces`, others as they would stand behind what stays."""
        end_ids = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id}
        final = [token for window in run for token in window.ids]
        known: dict[tuple[int, int], str] = {}

        def word(place: int, token: int) -> str | None:
            if token == final[place]:
                return pieces[place]
            if token in end_ids:
                return None
            if (place, token) not in known:
                stop = starts + place if isinstance(starts, int) else starts[place]
                context = ids[max(stop - _CONTEXT, 0) : stop]
                before, whole = (decode_text(self.tokenizer, x) for x in (context, [*context, token]))
                fits = whole.startswith(before)
                known[place, token] = whole[len(before) :] if fits else decode_text(self.tokenizer, [token])
            return known[place, token]

        steps: list[TraceStep] = []
        windows: list[tuple[int, int]] = []
        offset = 0
        for window in run:
            windows.append((len(steps), offset + len(window.ids)))
            for step in window.steps:
                reveals = [
                    Reveal(
                        offset + place,
                        word(offset + place, token),
                        None if sure is None else min(max(sure, 0.0), 1.0),
                        tuple(Candidate(word(offset + place, x) or "", share) for x, share in others),
                    )
                    for place, token, sure, others in step.revealed
                ]
                remasks = tuple(offset + place for place in step.remasked)
                steps.append(TraceStep(tuple(reveals), remasks, step.seconds if self.timed else None))
            offset += len(window.ids)
        several = tuple(windows) if len(windows) > 1 else ()
        self.samples.append(TraceSample(tuple(layout), tuple(steps), text, windows=several, **facts))


def split_text(text: str, number: int, as_written: Callable[[int], str]) -> list[str]:
    """What each of `number` tokens adds to `text`; joined they are `text`.

    A character of several tokens belongs to the last of them, the others add nothing.

    Args:
        as_written (`Callable`): the text of the first n tokens; what it has in common with `text` is certain.

    >>> split_text("on ice", 3, lambda n: ["", "on", "on i", "on ice"][n])
    ['on', ' i', 'ce']
    """
    ends = [0]
    for count in range(1, number):
        ends.append(max(_num_common(as_written(count), text), ends[-1]))
    ends.append(len(text))
    return [text[start:end] for start, end in pairwise(ends)] if number else []


def _num_common(first: str, second: str) -> int:
    """Characters that two texts have in common at their beginnings."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))
