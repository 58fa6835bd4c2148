"""Pages of traces: nothing in a text comes alive, nothing is fetched, and a browser plays them to the very text."""

import html
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from diffusion_mlm.visualization.colours import RAMP, blend, code, ink_on, ramp_colour, rgb
from diffusion_mlm.visualization.html import comparison_page, frame_html, trace_page
from diffusion_mlm.visualization.trace import Candidate, Reveal, Trace, TraceSample, TraceStep

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>&lt;\"'@@DATA@@<!--"
)


def hostile_sample(word: str = HOSTILE) -> TraceSample:
    steps = (
        TraceStep((Reveal(0, word, 0.5, (Candidate(word, 0.5), Candidate("", 0.25))),), seconds=0.25),
        TraceStep((Reveal(1, "\n  " + word),), seconds=1.5),
        TraceStep((Reveal(2, None, 0.9),), (), 2.0),
    )
    return TraceSample((word, 2, word, 1), steps, f"{word}{word}\n  {word}{word}", seed=3, num_forwards=3)


def long_sample(number: int = 128, alternatives: int = 4) -> TraceSample:
    words = [f" word{place}" for place in range(number)]
    others = [tuple(Candidate(f" other{place + k}", 0.12345) for k in range(alternatives)) for place in range(number)]
    steps = tuple(
        TraceStep((Reveal(place, words[place], 0.98765, others[place]),)) for place in reversed(range(number))
    )
    return TraceSample((number,), steps, "".join(words))


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of the data element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][1].get("id") == "data":
            self.data += data


@pytest.mark.parametrize(
    "page", [trace_page, lambda trace, title: comparison_page([(title, trace.samples[0])], title)]
)
def test_hostile_text_is_nothing_but_text(page: Any) -> None:
    trace = Trace((hostile_sample(),), {"schedule": HOSTILE})
    plain, hostile = Elements(page(Trace((hostile_sample("word"),)), "word")), Elements(page(trace, HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [attributes for _, attributes in hostile.tags] == [attributes for _, attributes in plain.tags]
    data = json.loads(hostile.data)
    sample = data["samples"][0] if "samples" in data else data["panes"][0]["sample"]
    assert sample["text"] == trace.samples[0].text


def test_a_page_asks_for_nothing_from_anywhere() -> None:
    page = trace_page(Trace((hostile_sample("word"),)))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bfetch\b|XMLHttpRequest|WebSocket|\bsrc\s*=", page)
    assert all(tag not in ("link", "iframe", "img", "object", "base", "form") for tag, _ in Elements(page).tags)
    assert "default-src 'none'" in page


def test_a_page_of_128_tokens_is_small() -> None:
    assert len(trace_page(Trace((long_sample(),))).encode()) < 300_000


def test_every_control_has_a_name() -> None:
    page = Elements(trace_page(Trace((hostile_sample("word"),))))
    labels = {attributes.get("for") for tag, attributes in page.tags if tag == "label"}
    for tag, attributes in page.tags:
        if tag in ("input", "select"):
            assert attributes.get("aria-label") or attributes["id"] in labels
        if tag == "button":
            assert attributes.get("aria-label") or attributes.get("data-colour")
            assert attributes["type"] == "button"
    assert "prefers-reduced-motion" in trace_page(Trace((hostile_sample(),)))


def test_a_frame_is_escaped_spans() -> None:
    frames = list(hostile_sample().frames())
    assert frame_html(frames[0]).count('class="mask"') == 3
    for frame in frames:
        found = Elements(frame_html(frame))
        assert {tag for tag, _ in found.tags} == {"span"}
        assert {name for _, attributes in found.tags for name in attributes} <= {"class", "aria-label"}
    shown = re.sub(r"<[^>]*>", "", frame_html(frames[-1]))
    assert html.unescape(shown) == hostile_sample().text


def test_texts_without_times_cannot_be_played_by_time() -> None:
    with pytest.raises(ValueError, match="'first'.*`timed=True`"):
        comparison_page([("first", long_sample(3))], "both")


def test_colours_are_in_order_and_their_ink_can_be_read() -> None:
    def light(colour: tuple[int, int, int]) -> float:
        parts = [x / 3294.6 if x <= 10 else ((x / 255 + 0.055) / 1.055) ** 2.4 for x in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    shades = [ramp_colour(step / 50) for step in range(51)]
    assert [code(shades[0]), code(shades[-1])] == [RAMP[0], RAMP[-1]]
    assert all(light(a) < light(b) for a, b in pairwise(shades))  # also in grey print
    for shade in shades:
        low, high = sorted((light(shade), light(ink_on(shade))))
        assert (high + 0.05) / (low + 0.05) > 4.0
    assert blend(rgb("#000000"), rgb("#ffffff"), 0.5) == (128, 128, 128)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a network, if it and its driver are installed."""
    api = pytest.importorskip("playwright.sync_api")
    program = next((path for name in ("chromium", "google-chrome") if (path := Path("/usr/bin", name)).exists()), None)
    if program is None:
        pytest.skip("there is no browser")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(program), args=["--no-sandbox"])
        yield chromium.new_context(offline=True)
        chromium.close()


def test_a_browser_plays_hostile_text_to_its_end(browser: Any, tmp_path: Path) -> None:
    sample = hostile_sample()
    (tmp_path / "page.html").write_text(trace_page(Trace((sample,)), HOSTILE), encoding="utf-8")
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto((tmp_path / "page.html").as_uri())
    for key, step in (("Home", 0), ("ArrowRight", 1), ("End", 3), ("ArrowLeft", 2), ("End", 3)):
        page.keyboard.press(key)
        assert page.locator("#where").text_content() == f"step {step} of 3"
    assert page.locator(".text").text_content() == sample.text
    page.locator(".shown .word").first.click()
    assert "step 1 of 3; probability 50.0 %" in page.locator("#details").text_content()
    assert page.title() == HOSTILE and not errors
