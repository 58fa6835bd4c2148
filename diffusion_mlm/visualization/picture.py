"""Pictures of a trace: an animation (GIF), and the finished text coloured by the step of each word (PNG, SVG)."""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .colours import BAR, BLUE, INK, ORANGE, PALE_INK, RAMP, RULE, Colour, blend, code, ink_on, ramp_colour, rgb
from .fonts import DEFAULT, font_family, font_file
from .trace import Cell, Frame, TraceSample

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

# Lengths in pixels of a page of this width; PNG and GIF are drawn at a multiple of it.
WIDTH, MARGIN, FONT_SIZE, LINE_HEIGHT, WORD_HEIGHT = 760, 34, 19.0, 35, 25
_MASK_WIDTH, _TITLE_SIZE, _SMALL_SIZE, _HEAD, _FOOT = 22.0, 19.0, 13.0, 82, 62
_FADE = 3  # steps until a new word looks like the others
_MOST_FRAMES, _MOST_CHARACTERS = 400, 12_000


def require_pillow(argument: str) -> None:
    """Raises ValueError that names the extra, if Pillow or the fonts of matplotlib are missing."""
    try:
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ImportError:
        raise ValueError(f"`{argument}` draws: run `pip install 'diffusion-mlm[viz]'`, or leave it out.") from None


@dataclass(frozen=True)
class Box:
    """Where a cell stands: `x`, `y` of its upper left corner and its width, without the space in front of it."""

    x: float
    y: float
    width: float


class Page:
    """Where everything stands: places are those of the finished text, so that no word moves while others appear."""

    def __init__(self, sample: TraceSample, has_ends: bool) -> None:
        require_pillow("--gif")
        if len(sample.text) > _MOST_CHARACTERS or sample.text.count("\n") > _MOST_CHARACTERS // 40:
            raise ValueError(
                f"The text has {len(sample.text):,} characters, too many for a picture: use `--html` instead."
            )
        self.sample = sample
        self.family = font_family(sample.text)
        self._fonts: dict[tuple[float, bool], FreeTypeFont] = {}
        self.words = split_given(sample.last_frame())
        self.boxes = self._set(self.words)
        bottom = max(
            (box.y for box, cell in zip(self.boxes, self.words, strict=True) if has_ends or cell.text), default=0
        )
        self.height = round(max(bottom, _HEAD) + _FOOT)

    def font(self, size: float, bold: bool = False) -> "FreeTypeFont":
        from PIL import ImageFont

        if (size, bold) not in self._fonts:
            self._fonts[size, bold] = ImageFont.truetype(font_file(self.family, bold), size)
        return self._fonts[size, bold]

    def width_of(self, text: str, size: float = FONT_SIZE, bold: bool = False) -> float:
        return float(self.font(size, bold).getlength(text))

    def _set(self, words: Frame) -> list[Box]:
        """Sets words in lines that break at spaces; a word wider than a line stands alone."""
        boxes: list[Box] = []
        space, right = self.width_of(" "), WIDTH - MARGIN
        x, y = float(MARGIN), float(_HEAD)
        for place, cell in enumerate(words):
            bare = cell.text.lstrip()
            gap = cell.text[: len(cell.text) - len(bare)]
            width = self.width_of(bare.rstrip(), bold=cell.state == "given") if bare else 0.0
            y += LINE_HEIGHT * gap.count("\n")
            x = float(MARGIN) if "\n" in gap else x
            if cell.state == "end":
                gap, width = " ", _MASK_WIDTH
            elif not bare and cell.position is not None:
                width = 0.0
            x += space if gap and x > MARGIN else 0.0
            joined = self._joined(words[place + 1 :])
            if x > MARGIN and x + width + joined > right and (gap or x + width > right):
                x, y = float(MARGIN), y + LINE_HEIGHT
            boxes.append(Box(x, y, width))
            x += width
            if bare.endswith("\n"):
                x, y = float(MARGIN), y + LINE_HEIGHT * bare.count("\n")
        return boxes

    def _joined(self, following: Frame) -> float:
        """Width of what belongs to a word without a space in between."""
        width = 0.0
        for cell in following:
            if cell.state == "end" or not cell.text or cell.text[0].isspace():
                break
            width += self.width_of(cell.text, bold=cell.state == "given")
        return width


def split_given(frame: Frame) -> Frame:
    """A frame with one cell for each word of what is given, so that lines can break between them."""
    cells: Frame = []
    for cell in frame:
        if cell.state != "given":
            cells.append(cell)
            continue
        word = ""
        for character in cell.text:
            if character.isspace() and word.strip():
                cells.append(Cell("given", word))
                word = ""
            word += character
        if word.strip() or (word and not cells):
            cells.append(Cell("given", word))
        elif word and cells:
            cells[-1] = Cell("given", cells[-1].text + word) if "\n" in word else cells[-1]
    return cells


def make_gif(sample: TraceSample, title: str = "Text out of masks", seconds: float = 8.0) -> bytes:
    """An animation of about so many seconds, then two seconds of the finished text, for ever.

    Raises:
        ValueError: Pillow or matplotlib is missing, or the text is too long to be animated.
    """
    page = Page(sample, has_ends=True)
    from PIL.Image import Dither

    frames = list(sample.frames())
    stride = -(-len(frames) // _MOST_FRAMES)
    shown = sorted({*range(0, len(frames), stride), len(frames) - 1})
    palette = _palette()
    images = [
        _draw_frame(page, frames[step], step, title).quantize(palette=palette, dither=Dither.NONE) for step in shown
    ]
    return _gif(images, seconds / len(shown))


def make_comparison_gif(
    panes: Sequence[tuple[str, TraceSample]], slowdown: float = 1.0, num_frames: int = 60
) -> bytes:
    """Several texts, one below the other, each as far as it was at a moment; time runs as measured, or slower.

    Args:
        panes: title and sample of each; all steps must have `seconds`.
        slowdown (`float`): how many times slower than measured; the frames are spread over the longest run.
        num_frames (`int`): of the animation.

    Raises:
        ValueError: a step has no time, or Pillow or matplotlib is missing.
    """
    from PIL import Image
    from PIL.Image import Dither

    pages = [(title, Page(sample, has_ends=True), list(sample.frames())) for title, sample in panes]
    times = [[step.seconds for step in sample.steps] for _, sample in panes]
    if any(second is None for row in times for second in row):
        raise ValueError("`panes` holds steps without times: record with `timed=True`.")
    longest = max(row[-1] or 0.0 for row in times)
    palette, images = _palette(), []
    height = sum(page.height for _, page, _ in pages)
    for place in range(num_frames + 1):
        now, top = longest * place / num_frames, 0
        image = Image.new("RGB", (WIDTH, height), (255, 255, 255))
        for (title, page, frames), row in zip(pages, times, strict=True):
            step = sum((second or 0.0) <= now + 1e-9 for second in row)
            done = f"done at {row[-1]:.2f} s" if step == len(row) else f"{now:.2f} s"
            image.paste(_draw_frame(page, frames[step], step, title, done), (0, top))
            top += page.height
        images.append(image.quantize(palette=palette, dither=Dither.NONE))
    return _gif(images, longest * slowdown / num_frames)


def _gif(images: "list[Image]", seconds_each: float) -> bytes:
    """An endless animation: its first frame stays a little, its last one long enough to be read."""
    each = max(round(seconds_each * 100) * 10, 40)
    durations = [700, *[each] * (len(images) - 2), 2500][-len(images) :]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, disposal=1)
    return file.getvalue()


def make_png(sample: TraceSample, title: str = "Which words came first") -> bytes:
    """The finished text, each word on the colour of the step that revealed it.

    Raises:
        ValueError: Pillow or matplotlib is missing, or the text is too long for a picture.
    """
    page, scale = Page(sample, has_ends=False), 2
    canvas = _Canvas(page, scale)
    _paint_still(page, canvas, title)
    file = io.BytesIO()
    canvas.image.save(file, "PNG", optimize=True)
    return file.getvalue()


def make_svg(sample: TraceSample, title: str = "Which words came first") -> str:
    """`make_png` as SVG, whose text is text.

    Raises:
        ValueError: Pillow or matplotlib, which measure the text, is missing.
    """
    page = Page(sample, has_ends=False)
    canvas = _Drawing()
    _paint_still(page, canvas, title)
    families = ", ".join(dict.fromkeys([page.family, DEFAULT, "Verdana", "sans-serif"]))
    size = f'width="{WIDTH}" height="{page.height}" viewBox="0 0 {WIDTH} {page.height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{families}">'
        f"<title>{_escaped(title)}</title><desc>{_escaped(sample.text)}</desc>{''.join(canvas.parts)}</svg>\n"
    )


def _palette() -> "Image":
    """All colours of an animation: few, so that files are small and no frame flickers."""
    from PIL import Image

    white, ink = (255, 255, 255), rgb(INK)
    mains = [white, ink, rgb(PALE_INK), rgb(RULE), rgb(BAR), rgb(BLUE), rgb(ORANGE)]
    steps = [blend(rgb(ORANGE), white, age / _FADE) for age in range(1, _FADE)]
    colours = [*mains, *steps]
    for front, back in ((ink, white), (rgb(PALE_INK), white), (rgb(BLUE), white), (ink, rgb(ORANGE))):
        colours += [blend(back, front, share / 8) for share in range(1, 8)]
    colours += [blend(step, ink, share / 4) for step in steps for share in range(1, 4)]
    image = Image.new("P", (1, 1))
    image.putpalette([part for colour in dict.fromkeys(colours) for part in colour])  # not full: one is transparent
    return image


class _Canvas:
    """Draws in pixels."""

    def __init__(self, page: Page, scale: int) -> None:
        from PIL import Image, ImageDraw

        self.page, self.scale = page, scale
        self.image = Image.new("RGB", (WIDTH * scale, page.height * scale), (255, 255, 255))
        self._draw = ImageDraw.Draw(self.image)

    def bar(self, x: float, y: float, width: float, height: float, colour: Colour, radius: float = 4.0) -> None:
        s = self.scale
        box = (round(x * s), round(y * s), round((x + max(width, 1)) * s) - 1, round((y + height) * s) - 1)
        self._draw.rounded_rectangle(box, min(radius * s, (box[2] - box[0]) / 2), fill=colour)

    def write(
        self, x: float, base: float, text: str, colour: Colour, size: float = FONT_SIZE, bold: bool = False
    ) -> None:
        shown = "".join(c if c.isprintable() else "\ufffd" for c in text)
        font = self.page.font(size * self.scale, bold)
        self._draw.text((x * self.scale, base * self.scale), shown, fill=colour, font=font, anchor="ls")


class _Drawing:
    """Writes SVG."""

    def __init__(self) -> None:
        self.parts = [f'<rect width="100%" height="100%" fill="{code((255, 255, 255))}"/>']

    def bar(self, x: float, y: float, width: float, height: float, colour: Colour, radius: float = 4.0) -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" rx="{radius:g}"'
        self.parts.append(f'<rect {place} fill="{code(colour)}"/>')

    def write(
        self, x: float, base: float, text: str, colour: Colour, size: float = FONT_SIZE, bold: bool = False
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        place = f'x="{x:.1f}" y="{base:.1f}" font-size="{size:g}"{weight} fill="{code(colour)}"'
        self.parts.append(f"<text {place}>{_escaped(text)}</text>")


def _escaped(text: str) -> str:
    """Text for XML, which knows no control characters."""
    allowed = (c if c in "\t\n" or (c >= " " and c not in "\x7f\ufffe\uffff") else "\ufffd" for c in text)
    return html.escape("".join(allowed))


def _draw_frame(page: Page, frame: Frame, step: int, title: str, said: str | None = None) -> "Image":
    """One frame of the animation; `said` stands for the numbers of steps and masks."""
    canvas, white, ink = _Canvas(page, 1), (255, 255, 255), rgb(INK)
    cells = split_given(frame)
    for box, cell, final in zip(page.boxes, cells + [Cell("end", "")] * len(page.boxes), page.words, strict=False):
        top, base = box.y - WORD_HEIGHT + 7, box.y
        if cell.state == "mask":
            width = box.width or (0.0 if final.position is not None else _MASK_WIDTH)
            canvas.bar(box.x, top, width - 1.5, WORD_HEIGHT, rgb(BAR)) if width else None
        elif cell.state == "given":
            canvas.write(box.x, base, cell.text.strip(), rgb(BLUE), bold=True)
        elif cell.text.strip():
            age = step - (cell.step or 0)
            if age < _FADE and step < len(page.sample.steps):
                canvas.bar(box.x - 2, top, box.width + 4, WORD_HEIGHT, blend(rgb(ORANGE), white, age / _FADE))
            canvas.write(box.x, base, cell.text.strip(), ink)
    masks = sum(cell.state == "mask" for cell in cells)
    total = max(page.sample.num_positions, 1)
    y = page.height - 27
    canvas.write(MARGIN, MARGIN + 4, title, ink, _TITLE_SIZE, bold=True)
    said = said or f"step {step} of {len(page.sample.steps)}, {masks} masked"
    left = (
        WIDTH
        - MARGIN
        - page.width_of(f"step {len(page.sample.steps)} of {len(page.sample.steps)}, {total} masked", 13)
    )
    canvas.write(left, y + 6, said, rgb(PALE_INK), _SMALL_SIZE)
    canvas.bar(MARGIN, y - 2, left - 18 - MARGIN, 6, rgb(RULE), 3)
    canvas.bar(MARGIN, y - 2, (left - 18 - MARGIN) * (1 - masks / total), 6, rgb(ORANGE), 3)
    return canvas.image


def _paint_still(page: Page, canvas: Any, title: str) -> None:
    """The finished text on colours, with a legend."""
    num_steps = len(page.sample.steps)
    end, written = (-1.0, -1.0), []
    starts = {(box.x, box.y) for box in page.boxes}
    for box, cell in zip(page.boxes, page.words, strict=True):
        word = cell.text.strip()
        if cell.state == "given":
            written.append((box, word, rgb(BLUE), True))
        elif word:
            colour = ramp_colour(((cell.step or 1) - 1) / max(num_steps - 1, 1))
            joined = end == (box.x, box.y)  # no space between: neither is there one between the colours
            left = box.x if joined else box.x - 2
            right = box.x + box.width + (0 if (box.x + box.width, box.y) in starts else 2)
            canvas.bar(left, box.y - WORD_HEIGHT + 7, right - left, WORD_HEIGHT, colour, 2)
            written.append((box, word, ink_on(colour), False))
        end = box.x + box.width, box.y
    for box, word, colour, bold in written:
        canvas.write(box.x, box.y, word, colour, bold=bold)
    canvas.write(MARGIN, MARGIN + 4, title, rgb(INK), _TITLE_SIZE, bold=True)
    y = page.height - 30
    canvas.write(MARGIN, y + 11, "step 1", rgb(PALE_INK), _SMALL_SIZE)
    left = MARGIN + page.width_of("step 1", _SMALL_SIZE) + 10
    pieces = 4 * len(RAMP)
    for place in range(pieces):
        canvas.bar(left + 6 * place, y, 6, 13, ramp_colour(place / (pieces - 1)), 0)
    canvas.write(left + 6 * pieces + 10, y + 11, f"step {num_steps}", rgb(PALE_INK), _SMALL_SIZE)
    said = f"{page.sample.num_positions} tokens; given text is bold and blue"
    canvas.write(WIDTH - MARGIN - page.width_of(said, _SMALL_SIZE), y + 11, said, rgb(PALE_INK), _SMALL_SIZE)
