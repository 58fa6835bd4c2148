"""Traces: frames by hand, files that come back as they were, and damaged ones that are refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_mlm.visualization.trace import Candidate, Reveal, Trace, TraceSample, TraceStep, frame_text

ALTERNATIVES = (Candidate(" fox", 0.75), Candidate(" owl", 0.125))
SAMPLE = TraceSample(
    layout=("One", 2, "!"),
    steps=(
        TraceStep((Reveal(1, " fox", 0.75, ALTERNATIVES),), seconds=0.5),
        TraceStep((Reveal(0, " red", 0.25),), remasks=(1,), seconds=1.0),
        TraceStep((Reveal(1, None, 0.5),), seconds=1.5),
    ),
    text="One red!",
    seed=7,
    num_forwards=3,
)


def states(sample: TraceSample) -> list[list[tuple[str, str]]]:
    return [[(cell.state, cell.text) for cell in frame] for frame in sample.frames()]


def test_frames_are_what_stood_on_the_canvas() -> None:
    one, end = ("given", "One"), ("given", "!")
    assert states(SAMPLE) == [
        [one, ("mask", ""), ("mask", ""), end],
        [one, ("mask", ""), ("fresh", " fox"), end],
        [one, ("fresh", " red"), ("mask", ""), end],
        [one, ("settled", " red"), ("end", ""), end],
    ]
    _, first, second, _ = SAMPLE.frames()
    assert (first[2].step, first[2].confidence, first[2].alternatives, first[2].num_remasks) == (
        1, 0.75, ALTERNATIVES, 0
    )  # fmt: skip
    assert (second[2].step, second[2].num_remasks, second[2].position) == (None, 1, 1)


def test_positions_of_later_windows_appear_with_them() -> None:
    steps = tuple(TraceStep((Reveal(place, f" {place}"),)) for place in range(3))
    sample = TraceSample((3,), steps, " 0 1 2", windows=((0, 2), (2, 3)))
    assert [len(frame) for frame in sample.frames()] == [2, 2, 2, 3]


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    trace = Trace((SAMPLE, SAMPLE), {"steps": 3, "sampling": "greedy", "top_p": 0.9, "defer_end": True, "seed": None})
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace
    assert (tmp_path / "trace.json").read_bytes().isascii()


@settings(deadline=None, derandomize=True, database=None, max_examples=25)
@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), min_size=1, max_size=6),
    shares=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    order=st.permutations(range(6)),
)
def test_any_text_comes_back_exactly(words: list[str], shares: list[float], order: list[int]) -> None:
    places = [place for place in order if place < len(words)]
    steps = tuple(TraceStep((Reveal(place, words[place], shares[place]),)) for place in places)
    sample = TraceSample((len(words),), steps, "".join(words))
    (found,) = Trace.from_json(Trace((sample,)).to_json()).samples
    *_, last = found.frames()
    assert found.text == frame_text(last) == "".join(words)
    for before, after in zip(sample.steps, found.steps, strict=True):
        (old,), (new,) = before.reveals, after.reveals
        assert (new.position, new.text) == (old.position, old.text)
        assert new.confidence == pytest.approx(old.confidence, rel=1e-4)


def changed(**changes: Any) -> str:
    data = Trace((SAMPLE,)).to_dict()
    for path, value in changes.items():
        *parents, name = [int(part) if part.isdecimal() else part for part in path.split("__")]
        place: Any = data
        for part in parents:
            place = place[part]
        place[name] = value
    return json.dumps(data)


STEP = "samples__0__steps__0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ('{"format": NaN}', "no valid JSON"),
        ("[]", "holds no trace"),
        ('{"format": "other"}', "holds no trace"),
        (changed(version=2), "version 2, but this program reads version 1: install"),
        (changed(version=True), "version True"),
        (changed(samples=[]), "it holds no sample"),
        (changed(samples=3), "`samples` is no list"),
        (changed(samples=[3]), "a sample is no object"),
        (changed(settings={"a": [1]}), "`settings`"),
        (changed(samples__0__text="One blue!"), "its steps do not lead to its text"),
        (changed(samples__0__text=None), "None is no text"),
        (changed(samples__0__seed=-1), "the seed is -1"),
        (changed(samples__0__num_forwards=1.5), "the number of forwards is 1.5"),
        (changed(samples__0__words=["\ud800", "a", "b"]), "half a character"),
        (changed(samples__0__layout=["One", 10**9]), "a number of positions is 1000000000"),
        (changed(samples__0__layout=["One", 3, "!"]), "1 positions are never revealed"),
        (changed(samples__0__windows=[[0, 1]]), "step 1 reveals position 1, but there are 1"),
        (changed(samples__0__windows=[[0]]), "a window"),
        (changed(samples__0__steps=[]), "never revealed"),
        (changed(samples__0__steps=["a"]), "a step is no object"),
        (changed(**{f"{STEP}__reveal": [[9, 0, 0.5]]}), "step 1 reveals position 9, but there are 2"),
        (changed(**{f"{STEP}__reveal": [[0, 9, 0.5]]}), "a word is 9"),
        (changed(**{f"{STEP}__reveal": [[0, 0, 1.5]]}), "a probability is 1.5"),
        (changed(**{f"{STEP}__reveal": [[0, 0, "x"]]}), "a probability is x"),
        (changed(**{f"{STEP}__reveal": [[True, 0, 0.5]]}), "a position is True"),
        (changed(**{f"{STEP}__reveal": [[0, 0]]}), "a reveal is no list"),
        (changed(**{f"{STEP}__reveal": [[0, 0, 0.5, [1]]]}), "no pairs"),
        (changed(**{f"{STEP}__remask": [0]}), "step 1 masks position 0, which is not revealed"),
        (changed(**{f"{STEP}__seconds": 9}), "step 2 ends before"),
    ],
)
def test_a_damaged_trace_is_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Trace.from_json(text, "t.json")
    message = str(caught.value)
    assert message.startswith("`trace` is 't.json'") and words in message and "\n" not in message
    assert message.endswith(".") and len(message) < 400


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        Trace.load(tmp_path / "missing.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        Trace.load(tmp_path / "bytes.json")
