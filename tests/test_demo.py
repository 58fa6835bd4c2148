"""The demo: what it shows is what the package writes, nothing of a visitor comes alive, and limits hold."""

import html
import re
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

from diffusion_mlm import edit, generate, infill
from diffusion_mlm.cli import main
from diffusion_mlm.demo.limits import Limits, mask_words, words_of
from diffusion_mlm.demo.writer import Settings, Shown, Writer

HOSTILE = "<script>alert(1)</script> ${alert(1)} {{7*7}} \x00\x1b[2J\u202e <img src=x onerror=alert(1)> &lt;"


@pytest.fixture
def writer(shared_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast) -> Writer:
    return Writer(shared_roberta, story_tokenizer, Limits(characters=200, new_tokens=12, steps=9, samples=3))


def text_of(shown: str) -> str:
    """What a browser would show of the last canvas."""
    (*_, canvas) = re.findall(r'<div class="canvas[^"]*">(.*?)</div>', shown, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", "", canvas))


def tags_of(shown: str) -> set[str]:
    tags: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)

    Reader().feed(shown)
    return tags


def test_steps_are_shown_and_the_end_is_what_generate_writes(writer: Writer) -> None:
    settings = Settings(steps=4, order="random", sampling="topk", temperature=0.9)
    *steps, last = writer.write("One day", 6, 2, 5, settings)
    asked: dict[str, Any] = {"steps": 4, "order": "random", "sampling": "topk", "temperature": 0.9}
    out = generate(
        writer.model, writer.tokenizer, "One day", seed=5, max_new_tokens=6, num_return_sequences=2, **asked
    )
    assert last.trace is not None and [sample.text for sample in last.trace.samples] == out.texts
    assert text_of(last.html) == out.texts[-1]
    assert [shown.html.split("note")[1].count("masked") for shown in steps] == [1] * 8
    assert all(shown.trace is None for shown in steps)
    assert "8 forwards" in last.html and "seed 5" in last.html


def test_filling_and_editing_are_those_of_the_package(writer: Writer) -> None:
    text, settings = "One day a fox went home", Settings()
    template = writer.template(text, [1, 3])
    assert template == "One <mask:1> a <mask:1> went home"
    *_, last = writer.fill_in(text, [1, 3], 5, settings)
    (filled,) = infill(writer.model, writer.tokenizer, template, seed=5, order="entropy", draws=8)
    assert last.trace is not None and last.trace.samples[0].text == filled.text == text_of(last.html)
    *_, last = writer.edit(text, 0.5, "fox, ", 5, settings)
    (edited,) = edit(writer.model, writer.tokenizer, text, strength=0.5, protect=["fox"], seed=5, order="entropy")
    assert last.trace is not None and last.trace.samples[0].text == edited.text


def test_two_settings_are_compared_with_one_seed(writer: Writer) -> None:
    both = [Settings(), Settings(order="left_to_right")]
    *_, (first, second) = writer.compare("One day", 4, None, both)
    assert first.trace is not None and second.trace is not None
    assert first.trace.samples[0].seed == second.trace.samples[0].seed
    assert [step.reveals[0].position for step in second.trace.samples[0].steps] == [0, 1, 2, 3]


def test_hostile_text_stays_text(writer: Writer) -> None:
    requests = [
        writer.write(HOSTILE, 2, 1, 0, Settings()),
        writer.fill_in(HOSTILE + " <mask>", [0, 2], 0, Settings()),
        writer.edit(HOSTILE, 0.5, "script", 0, Settings()),
        writer.edit(HOSTILE, 0.5, HOSTILE, 0, Settings()),
        writer.write("a", 2, 1, 0, Settings(order=HOSTILE)),
    ]
    for request in requests:
        for shown in request:
            assert tags_of(shown.html) <= {"div", "span", "p"}
    short = HOSTILE[:25] + HOSTILE[-25:]
    *_, last = writer.write(short, 2, 1, 0, Settings())
    assert last.trace is not None and last.trace.samples[0].text.startswith(short)
    assert text_of(last.html).startswith(short)


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("write", ("a" * 201, 2, 1, 0, Settings()), "201 characters, more than 200"),
        ("write", ("\ud800", 2, 1, 0, Settings()), "half a character"),
        ("write", (None, 2, 1, 0, Settings()), "must be text"),
        ("write", ("a", 13, 1, 0, Settings()), "from 0 to 12, not 13"),
        ("write", ("a", float("nan"), 1, 0, Settings()), "not nan"),
        ("write", ("a", 1e300, 1, 0, Settings()), "from 0 to 12"),
        ("write", ("a", 2, 4, 0, Settings()), "number of texts"),
        ("write", ("a", 2, 1, -1, Settings()), "seed"),
        ("write", ("a", 2, 1, "x", Settings()), "seed"),
        ("write", ("a", 2, 1, 0, Settings(steps=10)), "number of steps"),
        ("write", ("a", 2, 1, 0, Settings(order="up")), "The order must be one of"),
        ("write", ("a", 2, 1, 0, Settings(order=["up"])), "The order must be one of"),
        ("write", ("a", 2, 1, 0, Settings(temperature=9)), "temperature"),
        ("fill_in", ("a fox", [], 0, Settings()), "nothing to fill"),
        ("fill_in", ("a fox", [7], 0, Settings()), "A chosen word"),
        ("fill_in", ("a fox", "0", 0, Settings()), "must be a list"),
        ("fill_in", ("<mask:999999999>", [], 0, Settings()), "more than 12 tokens"),
        ("fill_in", ("<mask:1-3> <mask:1-3> <mask:1-3>", [], 0, Settings()), "combinations"),
        ("edit", (" ", 0.5, "", 0, Settings()), "is empty"),
        ("edit", ("a fox", 0, "", 0, Settings()), "strength"),
        ("edit", ("a fox", 0.5, "dragon", 0, Settings()), "dragon"),
        ("compare", ("a", 2, -1, [Settings(), Settings()]), "seed"),
    ],
)
def test_too_much_and_nonsense_are_answered_in_one_sentence(
    writer: Writer, verb: str, arguments: tuple[Any, ...], words: str
) -> None:
    (found,) = getattr(writer, verb)(*arguments)
    shown = found[0] if isinstance(found, list) else found
    assert isinstance(shown, Shown) and shown.trace is None
    assert shown.html.startswith('<p class="problem"') and words in html.unescape(shown.html)


def test_a_visitor_who_leaves_ends_the_run(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    request = writer.write("One day", 12, 3, 0, Settings())
    next(request)
    request.close()
    assert writer._turn.acquire(timeout=30), "the run of a visitor who has left goes on"
    writer._turn.release()
    *_, last = writer.write("One day", 2, 1, 0, Settings())
    assert last.trace is not None


def test_words_can_be_chosen_but_not_blanks() -> None:
    text = "It's <mask:2>, so <b> na\u00efve. \u65e5\u672c"
    words = [text[start:end] for start, end in words_of(text)]
    assert words == ["It's", ",", "so", "<", "b", ">", "na\u00efve", ".", "\u65e5\u672c"]
    assert mask_words(text, [0, 2, 2], [2] * 9) == text.replace("It's", "<mask:2>").replace("so", "<mask:2>")
    assert len(words_of("a " * 5000)) == 300


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port", "0"], ("`--port`", "0")),
        (["--host", "localhost"], ("`--host`", "127.0.0.1")),
        (["--queue-size", "0"], ("`--queue-size`",)),
        (["--share", "true"], ("--share", "no option")),
    ],
)
def test_mistakes_are_wrong_use(capsys: pytest.CaptureFixture[str], argv: list[str], words: tuple[str, ...]) -> None:
    assert main(["demo", *argv]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert all(word in message for word in words), message


def test_without_gradio_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    assert main(["demo"]) == 2
    assert "pip install 'diffusion-mlm[demo]'" in capsys.readouterr().err


def test_the_page_has_a_bounded_queue_and_reports_nothing(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    pytest.importorskip("gradio")
    from diffusion_mlm.demo.app import build_app

    app = build_app(writer, "title", queue_size=3)
    assert app._queue.max_size == 3 and app.analytics_enabled is False
    working = [fn for fn in app.fns.values() if fn.concurrency_id == "model"]
    assert len(working) == 4 and all(fn.concurrency_limit == 1 for fn in working)
    assert all(fn.api_visibility == "private" for fn in app.fns.values())
