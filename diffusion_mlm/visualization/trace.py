"""A trace: all that a run of generation showed, step by step, in a small JSON file that is read without a model.

A text is given pieces and positions in turn. A step reveals positions, with the text of the token as it stands there
and the model's confidence in it, and masks others again. The last frame, joined, is the text of the run, byte for
byte, which is checked when a trace is made and when it is read.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FORMAT, VERSION = "diffusion-mlm trace", 1
_LARGEST_FILE = 256 * 2**20  # bytes: far above any trace, far below the memory of a laptop

State = Literal["given", "mask", "fresh", "settled", "end"]


@dataclass(frozen=True)
class Candidate:
    """A token that might have stood there, and its probability."""

    text: str
    probability: float


@dataclass(frozen=True)
class Reveal:
    """A position that a step unmasked.

    Attributes:
        position (`int`): 0-based, counted over all generated positions of the text, from the left.
        text (`str`, *optional*): what the token adds to the text there; None for the end of the text and what follows.
        confidence (`float`, *optional*): probability that the model, untempered and untruncated, gave the token.
        alternatives (`tuple[Candidate, ...]`): the likeliest tokens at that moment, if they were recorded.
    """

    position: int
    text: str | None
    confidence: float | None = None
    alternatives: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class TraceStep:
    """What one step did; `seconds` since the start, if they were recorded."""

    reveals: tuple[Reveal, ...]
    remasks: tuple[int, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Cell:
    """One place of a frame: a given piece of text or a generated position.

    Attributes:
        state (`str`): `given`, `mask`, `fresh` (revealed by this step), `settled`, or `end`.
        text (`str`): what stands there, "" for a mask or an end.
        position (`int`, *optional*): of a generated position.
        step (`int`, *optional*): 1-based, the step that revealed it.
        confidence, alternatives: see `Reveal`.
        num_remasks (`int`): how often the position has been masked again so far.
    """

    state: State
    text: str
    position: int | None = None
    step: int | None = None
    confidence: float | None = None
    alternatives: tuple[Candidate, ...] = ()
    num_remasks: int = 0


Frame = list[Cell]


@dataclass(frozen=True)
class TraceSample:
    """How one text came to be.

    Attributes:
        layout (`tuple[str | int, ...]`): given pieces of text, and between them numbers of generated positions.
        steps (`tuple[TraceStep, ...]`): in order.
        text (`str`): the finished text.
        seed, num_forwards (`int`): of the run.
        windows (`tuple[tuple[int, int], ...]`): (index of a step, positions on the canvas from then on), for texts
            that are longer than the model reads; empty if all positions are there from the beginning.
    """

    layout: tuple[str | int, ...]
    steps: tuple[TraceStep, ...]
    text: str
    seed: int = 0
    num_forwards: int = 0
    windows: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        shown: set[int] = set()
        number, seconds = self.num_positions, -math.inf
        for index, step in enumerate(self.steps):
            visible = self.num_visible(index)
            for reveal in step.reveals:
                if not 0 <= reveal.position < min(visible, number):
                    raise ValueError(
                        f"step {index + 1} reveals position {reveal.position}, but there are {min(visible, number)}"
                    )
            for position in step.remasks:
                if position not in shown:
                    raise ValueError(f"step {index + 1} masks position {position}, which is not revealed")
            shown = (shown - set(step.remasks)) | {reveal.position for reveal in step.reveals}
            if step.seconds is not None:
                if step.seconds < seconds:
                    raise ValueError(f"step {index + 1} ends before the step in front of it")
                seconds = step.seconds
        if len(shown) < number:
            raise ValueError(f"{number - len(shown)} positions are never revealed")
        if frame_text(self.last_frame()) != self.text:
            raise ValueError("its steps do not lead to its text")

    @property
    def num_positions(self) -> int:
        """Generated positions."""
        return sum(piece for piece in self.layout if isinstance(piece, int))

    def num_visible(self, index: int) -> int:
        """Positions on the canvas in step `index`, 0-based, the later windows not among them."""
        number = self.num_positions if not self.windows else 0
        for first, positions in self.windows:
            if first <= index:
                number = positions
        return number

    def last_frame(self) -> Frame:
        """The canvas after the last step."""
        *_, last = self._frames(only_last=True)
        return last

    def frames(self) -> Iterator[Frame]:
        """The canvas before the first step, then after each step."""
        return self._frames(only_last=False)

    def _frames(self, only_last: bool) -> Iterator[Frame]:
        reveals: dict[int, tuple[int, Reveal]] = {}  # of each position: the step, 1-based, and what it revealed
        remasks: dict[int, int] = {}
        yield self._frame(reveals, remasks, 0, self.num_visible(0))
        for index, step in enumerate(self.steps):
            for position in step.remasks:
                reveals.pop(position, None)
                remasks[position] = remasks.get(position, 0) + 1
            for reveal in step.reveals:
                reveals[reveal.position] = index + 1, reveal
            if not only_last or index + 1 == len(self.steps):
                yield self._frame(reveals, remasks, index + 1, self.num_visible(index))

    def _frame(self, reveals: dict[int, tuple[int, Reveal]], remasks: dict[int, int], now: int, visible: int) -> Frame:
        cells: Frame = []
        position = 0
        for piece in self.layout:
            if isinstance(piece, str):
                cells.append(Cell("given", piece))
                continue
            for place in range(position, min(position + piece, visible)):
                again = remasks.get(place, 0)
                if place not in reveals:
                    cells.append(Cell("mask", "", place, num_remasks=again))
                    continue
                step, found = reveals[place]
                state: State = "end" if found.text is None else "fresh" if step == now else "settled"
                cells.append(Cell(state, found.text or "", place, step, found.confidence, found.alternatives, again))
            position += piece
        return cells


@dataclass(frozen=True)
class Trace:
    """The texts of one run, and the settings they were made with (names and plain values)."""

    samples: tuple[TraceSample, ...]
    settings: dict[str, str | int | float | bool | None] = field(default_factory=dict)

    def to_json(self) -> str:
        """Compact strict JSON in ASCII; `from_json` gives an equal trace, numbers rounded to five digits."""
        return json.dumps(self.to_dict(), allow_nan=False, separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        """What `to_json` writes; each sample has a table of its words, which steps name by number."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "settings": self.settings,
            "samples": [_sample_to_dict(sample) for sample in self.samples],
        }

    @classmethod
    def from_json(cls, text: str, name: str = "trace") -> "Trace":
        """Reads a trace; nothing in it is trusted.

        Args:
            text (`str`): JSON.
            name (`str`): of the file, for messages.

        Raises:
            ValueError: it is no trace, one of a later version, or damaged.
        """

        def refuse(constant: str) -> None:
            raise ValueError(f"{constant} is no JSON")

        try:
            data = json.loads(text, parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"`trace` is {name!r}, which is no valid JSON: {error}.") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(
                f"`trace` is {name!r}, which holds no trace; make one by `diffusion-mlm generate --trace FILE`."
            )
        version = data.get("version")
        if version != VERSION or isinstance(version, bool):
            raise ValueError(
                f"`trace` is {name!r}, of version {version!r}, but this program reads version {VERSION}: install the "
                f"diffusion-mlm that made it."
            )
        try:
            samples = tuple(_sample_from_dict(item) for item in _list(data, "samples"))
            if not samples:
                raise ValueError("it holds no sample")
            settings = data.get("settings", {})
            plain = (str, int, float, bool, type(None))
            if not isinstance(settings, dict) or not all(isinstance(value, plain) for value in settings.values()):
                raise ValueError("`settings` must be names and plain values")
            for word in settings.items():
                _text(str(word))
            return cls(samples, settings)
        except ValueError as error:
            raise ValueError(f"`trace` is {name!r}, which is damaged: {error}.") from None

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json() + "\n", encoding="ascii")

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Reads a file; see `from_json`.

        Raises:
            ValueError: there is no such file, or it holds no trace.
        """
        file = Path(path)
        if not file.is_file():
            raise ValueError(f"`trace` is {str(path)!r}, and there is no such file.")
        if file.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"`trace` is {str(path)!r}, a file of over {_LARGEST_FILE // 2**20} MiB: that is none.")
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"`trace` is {str(path)!r}, which is no UTF-8 text (byte {error.start}).") from None
        return cls.from_json(text, str(path))


def frame_text(frame: Sequence[Cell]) -> str:
    """The text of a frame, without its masks."""
    return "".join(cell.text for cell in frame)


def _sample_to_dict(sample: TraceSample) -> dict[str, Any]:
    words: dict[str, int] = {}

    def number(word: str | None) -> int | None:
        return None if word is None else words.setdefault(word, len(words))

    steps = []
    for step in sample.steps:
        reveals: list[list[Any]] = []
        for reveal in step.reveals:
            item: list[Any] = [reveal.position, number(reveal.text), _rounded(reveal.confidence)]
            if reveal.alternatives:
                item.append([x for c in reveal.alternatives for x in (number(c.text), _rounded(c.probability))])
            reveals.append(item)
        written: dict[str, Any] = {"reveal": reveals}
        if step.remasks:
            written["remask"] = list(step.remasks)
        if step.seconds is not None:
            written["seconds"] = _rounded(step.seconds)
        steps.append(written)
    found = {
        "layout": list(sample.layout),
        "text": sample.text,
        "seed": sample.seed,
        "num_forwards": sample.num_forwards,
        "words": list(words),
        "steps": steps,
    }
    return {**found, "windows": [list(window) for window in sample.windows]} if sample.windows else found


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.5g}")


def _sample_from_dict(data: Any) -> TraceSample:
    if not isinstance(data, dict):
        raise ValueError("a sample is no object")
    words = [_text(word) for word in _list(data, "words")]

    def word(number: Any) -> str:
        return words[_whole(number, "a word", len(words) - 1)]

    steps = []
    for item in _list(data, "steps"):
        if not isinstance(item, dict):
            raise ValueError("a step is no object")
        reveals = []
        for reveal in _list(item, "reveal"):
            if not isinstance(reveal, list) or len(reveal) not in (3, 4):
                raise ValueError("a reveal is no list of position, word and confidence")
            position, number, confidence = reveal[:3]
            flat = reveal[3] if len(reveal) == 4 else []
            if not isinstance(flat, list) or len(flat) % 2:
                raise ValueError("alternatives are no pairs of word and probability")
            others = [Candidate(word(a), _share(p)) for a, p in zip(flat[::2], flat[1::2], strict=True)]
            reveals.append(
                Reveal(
                    _whole(position, "a position"),
                    None if number is None else word(number),
                    None if confidence is None else _share(confidence),
                    tuple(others),
                )
            )
        remasks = tuple(_whole(position, "a position") for position in _list(item, "remask", optional=True))
        seconds = item.get("seconds")
        steps.append(TraceStep(tuple(reveals), remasks, None if seconds is None else _number(seconds, "seconds")))
    layout = tuple(
        _text(piece) if isinstance(piece, str) else _whole(piece, "a number of positions", 10**6)
        for piece in _list(data, "layout")
    )
    windows = []
    for window in _list(data, "windows", optional=True):
        if not isinstance(window, list) or len(window) != 2:
            raise ValueError("a window is no pair of step and positions")
        windows.append((_whole(window[0], "a step"), _whole(window[1], "a number of positions")))
    return TraceSample(
        layout,
        tuple(steps),
        _text(data.get("text")),
        _whole(data.get("seed"), "the seed"),
        _whole(data.get("num_forwards"), "the number of forwards"),
        tuple(windows),
    )


def _list(data: dict[str, Any], name: str, optional: bool = False) -> list[Any]:
    value = data.get(name, [] if optional else None)
    if not isinstance(value, list):
        raise ValueError(f"`{name}` is no list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{value!r} holds half a character") from None
    return value


def _whole(value: Any, what: str, most: int = 2**63) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{what} is {str(value)[:60]}")
    return value


def _number(value: Any, what: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e9:
        raise ValueError(f"{what} is {str(value)[:60]}")
    return float(value)


def _share(value: Any) -> float:
    if _number(value, "a probability") > 1:
        raise ValueError(f"a probability is {value}")
    return float(value)
