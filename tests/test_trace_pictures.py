"""Pictures of traces: animations that end in the text, and files that open."""

import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from matplotlib.font_manager import fontManager
from PIL import Image

from diffusion_mlm.visualization import fonts
from diffusion_mlm.visualization.colours import BAR, BLUE, ORANGE, rgb
from diffusion_mlm.visualization.picture import (
    MARGIN,
    WIDTH,
    Page,
    make_comparison_gif,
    make_gif,
    make_png,
    make_svg,
)
from diffusion_mlm.visualization.trace import Reveal, TraceSample, TraceStep

HOSTILE = "<b>&\x1b[2J\x00]]>\u202e日"
WORDS = [" cat", ",", HOSTILE, "\n new", " line" * 30, "", " e" + "x" * 200, "."]


def make_sample(words: list[str], num_ends: int = 2, prefix: str = "Once upon") -> TraceSample:
    steps = [TraceStep((Reveal(place, word, 0.5),)) for place, word in enumerate(words)]
    steps += [TraceStep((Reveal(len(words) + place, None, 0.5),)) for place in range(num_ends)]
    return TraceSample((prefix, len(words) + num_ends), tuple(steps), prefix + "".join(words))


def test_an_animation_has_a_frame_for_each_step_and_uses_its_colours() -> None:
    data = make_gif(make_sample([" cat", " sat", "."]), seconds=2)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 6 and animation.info["loop"] == 0
        seen = []
        for place in range(animation.n_frames):
            animation.seek(place)
            picture = animation.convert("RGB")
            seen.append({colour for number, colour in picture.getcolors(1 << 20) or [] if number > 60})
            assert picture.size == (WIDTH, picture.height)
            assert animation.info["duration"] >= 40
    assert rgb(BAR) in seen[0] and rgb(BAR) not in seen[-1]
    assert all(rgb(BLUE) in colours for colours in seen)
    assert all(rgb(ORANGE) in colours for colours in seen[1:])


def test_words_stand_in_order_within_the_margins() -> None:
    page = Page(make_sample([f" word{place}" + "," * (place % 3) for place in range(60)]), has_ends=True)
    right = 0.0, 0.0
    for box, cell in zip(page.boxes, page.words, strict=True):
        assert (box.y, box.x) >= right, cell
        assert box.x >= MARGIN and box.x + box.width <= WIDTH - MARGIN + 1
        right = box.y, box.x + box.width - 1
    assert page.height > max(box.y for box in page.boxes)


def test_hostile_text_is_drawn_and_the_drawing_is_xml() -> None:
    sample = make_sample(WORDS, prefix=HOSTILE)
    root = ElementTree.fromstring(make_svg(sample, HOSTILE))
    names = {element.tag.split("}")[1] for element in root.iter()}
    assert names == {"svg", "title", "desc", "rect", "text"}
    shown = "".join(element.text or "" for element in root.iter() if element.tag.endswith("}text"))
    assert "<b>&" in shown and not re.search(r"[\x00-\x08\x1b]", shown)
    with Image.open(io.BytesIO(make_png(sample, HOSTILE))) as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width == 2 * WIDTH
    with Image.open(io.BytesIO(make_gif(sample, HOSTILE))) as animation:
        assert animation.n_frames == len(sample.steps) + 1


@pytest.fixture
def fonts_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing but what comes with matplotlib were installed."""
    ours = [font for font in fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(fontManager, "ttflist", ours)
    for function in (fonts._best_family, fonts._say_missing):
        function.cache_clear()


def test_a_font_that_has_all_characters_is_chosen(fonts_of_matplotlib: None, caplog: pytest.LogCaptureFixture) -> None:
    assert Page(make_sample([" cat"]), has_ends=True).family == "DejaVu Sans"
    other = next(c for c in map(chr, range(0x2000, 0x3000)) if fonts.missing_characters(c) and not _lacks_stix(c))
    page = Page(make_sample([f" x{other}"]), has_ends=True)
    assert page.family != "DejaVu Sans" and not fonts.missing_characters(page.sample.text, page.family)
    assert f'font-family="{page.family}, DejaVu Sans, Verdana' in make_svg(page.sample)
    assert not caplog.messages


def test_characters_that_no_font_has_are_named_once(
    fonts_of_matplotlib: None, caplog: pytest.LogCaptureFixture
) -> None:
    sample = make_sample([" 日本 x\x1b日"])
    make_gif(sample)
    make_png(sample)
    (said,) = caplog.messages
    assert (
        said.startswith("No installed font has 日 本: boxes are drawn instead. Install") and "fonts-noto-cjk" in said
    )


def _lacks_stix(character: str) -> bool:
    return bool(fonts.missing_characters(character, "STIXGeneral"))


def test_a_text_too_long_for_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="too many for a picture"):
        make_png(make_sample([" word"] * 2500))


def test_texts_side_by_side_are_as_far_as_they_were() -> None:
    sample = make_sample([" cat", " sat"], num_ends=0)
    timed = [
        replace(sample, steps=tuple(replace(step, seconds=pace * (k + 1)) for k, step in enumerate(sample.steps)))
        for pace in (1.0, 2.0)
    ]
    with Image.open(io.BytesIO(make_comparison_gif([("a", timed[0]), ("b", timed[1])], num_frames=4))) as animation:
        assert animation.n_frames == 5
        halves = []
        for place in range(5):
            animation.seek(place)
            picture = animation.convert("RGB")
            top, bottom = (picture.crop((0, y, WIDTH, y + picture.height // 2)) for y in (0, picture.height // 2))
            halves.append([_num(half, rgb(BAR)) for half in (top, bottom)])
    both, one = halves[0][0], halves[1][0]
    assert both > one > 0
    done_after_two_of_four_seconds = [both, one, 0, 0, 0]
    expected = zip(done_after_two_of_four_seconds, [both, both, one, one, 0], strict=True)
    for found, bars in zip(halves, expected, strict=True):
        assert found == pytest.approx(list(bars), rel=0.02)
    with pytest.raises(ValueError, match="`timed=True`"):
        make_comparison_gif([("a", sample)])


def _num(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    found = {shade: number for number, shade in picture.getcolors(1 << 20) or []}.get(colour, 0)
    return found if found > 60 else 0
