"""Writing for visitors: each request gives a stream of HTML, all text in it escaped, and at last a trace."""

import html
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from ..cli.generation_settings import CHOICES
from ..denoising_step import DenoisingStep
from ..editing import edit
from ..generation import generate
from ..infilling import infill
from ..tokenization import decode_text, encode_text, special_token_ids
from ..tracing import TraceRecorder
from ..visualization.html import frame_html
from ..visualization.trace import Cell, Frame, Trace
from .limits import Limits, mask_words, words_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALTERNATIVES = 4


@dataclass(frozen=True)
class Settings:
    """What a visitor can set, as it comes from the browser."""

    steps: Any = 0
    order: Any = "entropy"
    sampling: Any = "nucleus"
    temperature: Any = 1.0

    def checked(self, limits: Limits) -> dict[str, Any]:
        """Settings of `DiffusionGenerationConfig`; 0 steps are one for each token.

        Raises:
            ValueError: in words for the visitor.
        """
        steps = limits.whole(self.steps, "The number of steps", 0, limits.steps)
        return {
            "steps": steps or None,
            "order": limits.choice(self.order, "The order", CHOICES["order"]),
            "sampling": limits.choice(self.sampling, "The sampling", CHOICES["sampling"]),
            "temperature": limits.number(self.temperature, "The temperature", 0, 3),
        }


@dataclass(frozen=True)
class Shown:
    """What the browser shows: HTML, and the trace once all is done."""

    html: str
    trace: Trace | None = None


class _LeftError(Exception):
    """The visitor has gone, or pressed stop."""


class LiveRecorder(TraceRecorder):
    """A recorder that hands every step on as a frame."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", show: Callable[[Frame], None]) -> None:
        super().__init__(tokenizer, alternatives=ALTERNATIVES)
        self._show = show

    def see(self, step: DenoisingStep, positions: Sequence[int]) -> None:
        super().see(step, positions)
        self._show(draft_frame(self.tokenizer, step, positions))


def draft_frame(tokenizer: "PreTrainedTokenizerBase", step: DenoisingStep, positions: Sequence[int]) -> Frame:
    """The canvas as it stands, special tokens left out; unlike in a trace, given text is as the tokens spell it."""
    ids, masked = step.canvas[0].tolist(), step.is_masked[0].tolist()
    fresh, generated, special = step.revealed[0].tolist(), set(positions), set(special_token_ids(tokenizer))
    cells: Frame = []
    run: list[int] = []
    shown = ""
    for place, token in enumerate(ids):
        if masked[place]:
            cells.append(Cell("mask", "", place))
            run, shown = [], ""
        elif token not in special:
            run.append(token)
            whole = decode_text(tokenizer, run)
            word = whole[len(shown) :] if whole.startswith(shown) else decode_text(tokenizer, [token])
            word = f" {word}" if len(run) == 1 and cells and not word.startswith(" ") else word
            state = "given" if place not in generated else "fresh" if fresh[place] else "settled"
            cells.append(Cell(state, word, place))  # type: ignore[arg-type]  # one of the states
            shown = whole
    return cells


class Writer:
    """A model and what visitors ask of it, one request at a time."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", limits: Limits) -> None:
        self.model, self.tokenizer, self.limits = model, tokenizer, limits
        self._turn = threading.Lock()

    def write(self, prefix: Any, new_tokens: Any, samples: Any, seed: Any, settings: Settings) -> Iterator[Shown]:
        """Continues a prefix, in one text or several."""

        def make(recorder: TraceRecorder, own: int) -> None:
            generate(self.model, self.tokenizer, text, seed=own, recorder=recorder, **asked)

        try:
            text = self.limits.text(prefix, "The beginning", empty=True)
            asked = settings.checked(self.limits)
            length = self.limits.whole(new_tokens, "The number of new tokens", 0, self.limits.new_tokens)
            asked["max_new_tokens"] = length or None
            asked["num_return_sequences"] = self.limits.whole(samples, "The number of texts", 1, self.limits.samples)
            yield from self._run(make, self.limits.seed(seed), asked)
        except ValueError as error:
            yield Shown(_error(error))

    def fill_in(self, text: Any, chosen: Any, seed: Any, settings: Settings) -> Iterator[Shown]:
        """Fills blanks, and the words that were chosen."""

        def make(recorder: TraceRecorder, own: int) -> None:
            infill(self.model, self.tokenizer, template, seed=own, recorder=recorder, draws=8, **asked)

        try:
            template = self.template(text, chosen)
            asked = settings.checked(self.limits)
            yield from self._run(make, self.limits.seed(seed), asked)
        except ValueError as error:
            yield Shown(_error(error))

    def edit(self, text: Any, strength: Any, protect: Any, seed: Any, settings: Settings) -> Iterator[Shown]:
        """Writes a share of a text anew."""

        def make(recorder: TraceRecorder, own: int) -> None:
            edit(self.model, self.tokenizer, old, strength=share, protect=kept, seed=own, recorder=recorder, **asked)

        try:
            old = self.limits.text(text, "The text")
            share = self.limits.number(strength, "The strength", 0.01, 1)
            kept = [word for word in self.limits.text(protect, "What stays", empty=True).split(",") if word.strip()]
            kept = [word.strip() for word in kept]
            asked = settings.checked(self.limits)
            yield from self._run(make, self.limits.seed(seed), asked)
        except ValueError as error:
            yield Shown(_error(error))

    def compare(self, prefix: Any, new_tokens: Any, seed: Any, both: Sequence[Settings]) -> Iterator[list[Shown]]:
        """The same beginning and seed under two settings, one after the other."""
        try:
            own = self.limits.seed(seed)
        except ValueError as error:
            yield [Shown(_error(error))] * len(both)
            return
        own = _new_seed() if own is None else own
        shown = [Shown("") for _ in both]
        for place, settings in enumerate(both):
            for shown[place] in self.write(prefix, new_tokens, 1, own, settings):
                yield list(shown)

    def template(self, text: Any, chosen: Any) -> str:
        """The text with the chosen words, numbered as in `words_of`, as blanks of as many tokens as they have.

        Raises:
            ValueError: in words for the visitor.
        """
        checked = self.limits.text(text, "The text")
        words = words_of(checked)
        if not isinstance(chosen, list):
            raise ValueError("The chosen words must be a list.")
        numbers = [self.limits.whole(number, "A chosen word", 0, len(words) - 1) for number in chosen]
        lengths = [max(len(encode_text(self.tokenizer, " " + checked[start:end])), 1) for start, end in words]
        return self.limits.template(mask_words(checked, numbers, lengths))

    def _run(
        self, make: Callable[[TraceRecorder, int], None], seed: int | None, asked: dict[str, Any]
    ) -> Iterator[Shown]:
        """Runs in a thread of its own, whose steps are shown as they come; ends it where nobody looks any more."""
        own = _new_seed() if seed is None else seed
        frames: SimpleQueue[Frame | BaseException | None] = SimpleQueue()
        gone = threading.Event()

        def show(frame: Frame) -> None:
            if gone.is_set():
                raise _LeftError
            frames.put(frame)

        recorder = LiveRecorder(self.tokenizer, show)

        def work() -> None:
            try:
                with self._turn, torch.no_grad():
                    make(recorder, own)
                frames.put(None)
            except BaseException as error:
                frames.put(error)

        thread = threading.Thread(target=work, daemon=True)
        start, step = time.perf_counter(), 0
        thread.start()
        try:
            while (found := frames.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                step += 1
                done = "".join(_finished(sample.last_frame()) for sample in list(recorder.samples))
                masks = sum(cell.state == "mask" for cell in found)
                yield Shown(f"{done}{_box(found)}{_note(f'step {step}, {masks} masked')}")
        finally:
            gone.set()
        seconds = time.perf_counter() - start
        forwards = sum(sample.num_forwards for sample in recorder.samples)
        note = f"{forwards} forwards in {seconds:.1f} s, seed {own}"
        settings = {name: value for name, value in asked.items() if value is not None}
        done = "".join(_finished(sample.last_frame()) for sample in recorder.samples)
        yield Shown(done + _note(note), recorder.trace(**settings | {"seed": own}))


def _new_seed() -> int:
    return random.SystemRandom().randrange(2**31)


def _box(frame: Frame) -> str:
    return f'<div class="canvas">{frame_html(frame)}</div>'


def _finished(frame: Frame) -> str:
    return f'<div class="canvas done">{frame_html(frame)}</div>'


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _error(error: ValueError) -> str:
    return f'<p class="problem" role="alert">{html.escape(" ".join(str(error).split())[:600])}</p>'
