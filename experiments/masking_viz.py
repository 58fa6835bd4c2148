"""What the model sees while it is trained: one text at 100, 90, ... 10 % masked, with its prefix kept.

    python experiments/masking_viz.py --prefix-length 5
    python experiments/masking_viz.py --tokenizer FacebookAI/roberta-base --text "It was a bright cold day in April."

Prints a table and draws `results/masking.png`. Every row comes from the forward process that training uses, with the
same key, so the masks are nested: a row hides a part of what the row above it hides.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from diffusion_mlm import story_language
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.corruption import GUIDE_LEVELS, ForwardProcess
from diffusion_mlm.hub_access import require_repository
from diffusion_mlm.modeling import require_mask_token
from diffusion_mlm.randomness import make_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_TOKENS = 256  # ten copies of more do not make a picture that anybody reads
MISSING_GLYPH = "Glyph .* missing"  # how matplotlib's warning begins
PICTURE_FORMATS = (".png", ".pdf", ".svg")

Kind = Literal["prefix", "visible", "masked"]


@dataclass
class MaskingVizArguments:
    """What to mask and where to show it."""

    text: str | None = field(default=None, metadata={"help": "The text to mask; without it, a story of --seed."})
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Directory or Hub id of a tokenizer with a mask token; without it, the stories'."},
    )
    prefix_length: int = field(default=5, metadata={"help": "Tokens at the start that are never masked."})
    seed: int = field(default=0, metadata={"help": "Chooses which tokens are masked, and the story."})
    output: str = field(
        default="results/masking.png", metadata={"help": "The picture: .png, .pdf or .svg; empty for none."}
    )
    terminal: bool = field(default=True, metadata={"help": "Print the table."})

    def __post_init__(self) -> None:
        if self.prefix_length < 0:
            raise ValueError(f"`--prefix-length` must be 0 or more, not {self.prefix_length}.")
        if self.text is not None and not self.text.strip():
            raise ValueError(f"`--text` must hold at least one token to mask, not {self.text!r}.")
        if self.output and Path(self.output).suffix not in PICTURE_FORMATS:
            raise ValueError(f"`--output` must end in {', '.join(PICTURE_FORMATS)}, unlike {self.output!r}.")
        if not self.output and not self.terminal:
            raise ValueError("`--no-terminal` with an empty `--output` shows nothing: leave one of them out.")


@dataclass(frozen=True)
class Piece:
    """The text of one token, and whether a space stands before it (which, in RoBERTa, is part of the token)."""

    text: str
    space_before: bool


@dataclass(frozen=True)
class Unit:
    """What is drawn in one go: neighbouring visible tokens of one word, or one mask, which has no text."""

    kind: Kind
    text: str
    space_before: bool


@dataclass(frozen=True)
class Level:
    """One row of the table: the text at one mask rate."""

    mask_rate: float
    num_masked: int
    num_maskable: int
    units: list[Unit]


def pieces_of(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[Piece]]:
    """Token ids of `text`, nothing added, and the stretch of text that each token stands for.

    Raises:
        ValueError: the tokenizer does not say which characters a token covers.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"`--tokenizer` must be a fast tokenizer, which knows the characters of a token; "
            f"{type(tokenizer).__name__} is not."
        )
    encoding = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    ids: list[int] = encoding["input_ids"]
    pieces = []
    end_of_last = 0
    for index, (start, end) in zip(ids, encoding["offset_mapping"], strict=True):
        # Several tokens may share one character, such as the bytes of an emoji: the first of them shows it.
        covered = text[max(start, end_of_last) : end]
        space_before = covered[:1] == " " or text[end_of_last : max(start, end_of_last)].endswith(" ")
        if index == tokenizer.unk_token_id:
            shown = str(tokenizer.unk_token)  # the model sees no more than that
        else:
            shown = covered.strip() or covered.strip(" ").replace("\n", "↵").replace("\t", "→")
        pieces.append(Piece(shown, space_before))
        end_of_last = max(end, end_of_last)
    return ids, pieces


def units_of(pieces: Sequence[Piece], is_masked: Sequence[bool], prefix_length: int) -> list[Unit]:
    """Joins visible tokens to words. A mask always stands apart: whether its token begins a word is hidden too."""
    units: list[Unit] = []
    for position, (piece, masked) in enumerate(zip(pieces, is_masked, strict=True)):
        kind: Kind = "masked" if masked else "prefix" if position < prefix_length else "visible"
        if masked:
            units.append(Unit(kind, "", True))
        elif units and units[-1].kind == kind and not piece.space_before:
            units[-1] = Unit(kind, units[-1].text + piece.text, units[-1].space_before)
        else:
            units.append(Unit(kind, piece.text, piece.space_before))
    return units


def mask_at_all_levels(
    tokenizer: PreTrainedTokenizerBase, text: str, prefix_length: int, seed: int
) -> tuple[list[Piece], list[Level]]:
    """The pieces of `text` and the forward process at ten mask rates, highest first.

    Raises:
        ValueError: the prefix leaves nothing to mask, or the text is too long to be shown.
    """
    mask_id = require_mask_token(tokenizer, "--tokenizer")
    ids, pieces = pieces_of(tokenizer, text)
    if len(ids) <= prefix_length:
        raise ValueError(
            f"`--prefix-length` must be below the number of tokens of the text, which is {len(ids)}, not "
            f"{prefix_length}: shorten the prefix or pass a longer `--text`."
        )
    if len(ids) > MAX_TOKENS:
        raise ValueError(
            f"`--text` has {len(ids)} tokens, and {MAX_TOKENS} are the most that are shown: pass a passage."
        )
    process = ForwardProcess(mask_id, schedule="linear", masking="exact", prefix_length=prefix_length)
    times = torch.tensor(GUIDE_LEVELS, dtype=torch.float64)  # on the linear schedule time is the mask rate
    rows = torch.tensor([ids] * len(times))
    keys = torch.full((len(times),), make_key(seed, "masking_viz"))  # one key for all levels: nested masks
    batch = process(rows, torch.ones_like(rows, dtype=torch.bool), keys, times)
    levels = [
        Level(rate, int(is_masked.sum()), int(maskable.sum()), units_of(pieces, is_masked.tolist(), prefix_length))
        for rate, is_masked, maskable in zip(GUIDE_LEVELS, batch.is_masked, batch.maskable, strict=True)
    ]
    return pieces, levels


def summary(num_tokens: int, prefix_length: int) -> str:
    prefix = f"the first {prefix_length} are the prefix" if prefix_length else "there is no prefix"
    return f"{num_tokens} tokens, {prefix}. Masks are nested: each row hides a part of what the row above hides."


def print_table(levels: list[Level], pieces: list[Piece], prefix_length: int) -> None:
    """Prints one row per level. Brackets and underscores tell the three kinds apart where there is no colour."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    mean_width = sum(len(piece.text) for piece in pieces) / len(pieces)
    bar = "_" * min(max(round(mean_width), 1), 6)  # as wide as an average token, so that rows stay about as long
    legend = Text.assemble(
        ("[prefix]", "bold cyan"), ", kept    ", "visible, plain    ", (bar, "yellow"), " masked, one bar per token"
    )
    table = Table(title=summary(len(pieces), prefix_length), caption=legend, show_lines=True, expand=True)
    table.title_justify = table.caption_justify = "left"
    table.add_column("mask rate", justify="right", no_wrap=True)
    table.add_column("masked", justify="right", no_wrap=True)
    table.add_column("what the model sees", ratio=1)
    for level in levels:
        row = Text()
        for place, unit in enumerate(level.units):
            following = level.units[place + 1].kind if place + 1 < len(level.units) else None
            if unit.space_before and row:
                row.append(" ")
            if unit.kind == "masked":
                row.append(bar, style="yellow")
            elif unit.kind == "prefix":
                opening = "[" if place == 0 else ""
                closing = "]" if following != "prefix" else ""
                row.append(f"{opening}{unit.text}{closing}", style="bold cyan")
            else:
                row.append(unit.text)
        table.add_row(f"{level.mask_rate:.0%}", f"{level.num_masked} of {level.num_maskable}", row)
    Console().print(table)


# The picture. Lengths in points (1/72 inch). Colours of Okabe and Ito 2008, which colour-blind readers tell apart; in
# grey print the prefix is bold and underlined, and masks are bars.
WIDTH, MARGIN, TEXT_LEFT = 648.0, 34.0, 150.0
FONT_SIZE, LINE_HEIGHT, LEVEL_GAP, BAR_HEIGHT, DOTS_PER_INCH = 10.5, 17.0, 13.0, 7.6, 200
INK, PALE_INK, RULE, BLUE, ORANGE = "#1a1a1a", "#606060", "#dcdcdc", "#0072B2", "#E69F00"

Line = list[tuple[float, Unit]]


class Ruler:
    """Measures text in the font of the picture."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties

        self._renderer = FigureCanvasAgg(Figure(dpi=DOTS_PER_INCH)).get_renderer()
        self._fonts = {bold: FontProperties(size=FONT_SIZE, weight=("normal", "bold")[bold]) for bold in (False, True)}
        self._widths: dict[tuple[str, bool], float] = {}
        self.space = self.text("a a") - 2 * self.text("a")
        self.bar = 0.0  # width of a mask, set once the text is known

    def text(self, text: str, bold: bool = False) -> float:
        """Width of a text at the size of the body, in points."""
        if (text, bold) not in self._widths:
            self._widths[text, bold] = self._measure(text, bold)
        return self._widths[text, bold]

    def _measure(self, text: str, bold: bool) -> float:
        with warnings.catch_warnings():  # a character that the font lacks is reported once, when the picture is saved
            warnings.filterwarnings("ignore", message=MISSING_GLYPH)
            pixels = self._renderer.get_text_width_height_descent(text, self._fonts[bold], False)[0]
        return pixels * 72 / DOTS_PER_INCH

    def unit(self, unit: Unit) -> float:
        return self.bar if unit.kind == "masked" else self.text(unit.text, bold=unit.kind == "prefix")

    def break_lines(self, units: Sequence[Unit], width: float) -> list[Line]:
        """Sets units in lines no wider than `width`, which break at spaces; only a word wider than a line is cut."""
        words: list[list[Unit]] = []
        for unit in units:
            if unit.space_before or not words:
                words.append([])
            words[-1].append(unit)
        lines: list[Line] = [[]]
        x = 0.0
        for word in words:
            word_width = sum(map(self.unit, word))
            x += self.space if lines[-1] and word[0].space_before else 0.0
            if lines[-1] and x + word_width > width:
                lines.append([])
                x = 0.0
            if word_width > width:
                word = [part for unit in word for part in letters_of(unit)]
            for unit in word:
                if lines[-1] and x + self.unit(unit) > width:
                    lines.append([])
                    x = 0.0
                if lines[-1] and not unit.space_before and unit.kind == lines[-1][-1][1].kind != "masked":
                    x, last = lines[-1].pop()
                    unit = Unit(last.kind, last.text + unit.text, last.space_before)
                lines[-1].append((x, unit))
                x += self.unit(unit)
        return lines


def letters_of(unit: Unit) -> list[Unit]:
    """A unit in parts that may stand on different lines; a mask is one part."""
    if unit.kind == "masked":
        return [unit]
    return [Unit(unit.kind, letter, unit.space_before and place == 0) for place, letter in enumerate(unit.text)]


def draw_picture(levels: list[Level], pieces: list[Piece], prefix_length: int) -> "Figure":
    """Draws one block of lines per level; the height of the page follows the text."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, Rectangle

    ruler = Ruler()
    ruler.bar = min(max(sum(ruler.text(piece.text) for piece in pieces) / len(pieces), 6.0), 32.0)
    blocks = [ruler.break_lines(level.units, WIDTH - MARGIN - TEXT_LEFT) for level in levels]
    top = MARGIN + 98.0
    height = top + sum(len(block) * LINE_HEIGHT + LEVEL_GAP for block in blocks) - LEVEL_GAP + MARGIN - 4.0

    pixels = round(height * DOTS_PER_INCH / 72)
    figure = Figure(figsize=(WIDTH / 72, pixels / DOTS_PER_INCH), dpi=DOTS_PER_INCH, facecolor="white")
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))  # points from the upper left corner
    page.set_axis_off()

    def write(
        x: float, baseline: float, text: str, size: float = FONT_SIZE, colour: str = INK, bold: bool = False
    ) -> None:
        weight = "bold" if bold else "normal"
        page.text(x, baseline, text, size=size, color=colour, weight=weight, va="baseline", parse_math=False)

    def rule(x: float, y: float, width: float, colour: str) -> None:
        page.add_patch(Rectangle((x, y), width, 0.8, linewidth=0, facecolor=colour))

    def draw_unit(x: float, baseline: float, unit: Unit) -> None:
        if unit.kind == "masked":
            corner, size = (x + 0.4, baseline - BAR_HEIGHT), (ruler.bar - 1.6, BAR_HEIGHT)
            shape = f"Round,pad=0,rounding_size={BAR_HEIGHT * 0.3}"
            page.add_patch(FancyBboxPatch(corner, *size, boxstyle=shape, linewidth=0, facecolor=ORANGE))
        elif unit.kind == "prefix":
            write(x, baseline, unit.text, colour=BLUE, bold=True)
        elif unit.text:
            write(x, baseline, unit.text)

    def draw_line(x: float, baseline: float, line: Line) -> None:
        for shift, unit in line:
            draw_unit(x + shift, baseline, unit)
        prefix = [(shift, unit) for shift, unit in line if unit.kind == "prefix"]
        if prefix:
            shift, unit = prefix[-1]
            rule(x, baseline + 2.6, shift + ruler.unit(unit), BLUE)

    write(MARGIN, MARGIN + 12.0, "What the model sees", size=17, bold=True)
    write(MARGIN, MARGIN + 31.0, summary(len(pieces), prefix_length), size=9, colour=PALE_INK)
    x = MARGIN
    for unit, meaning in (
        (Unit("prefix", "prefix", True), "given, never masked"),
        (Unit("visible", "visible", True), "not masked at this rate"),
        (Unit("masked", "", True), "masked, one bar per token"),
    ):
        draw_line(x, MARGIN + 56.0, [(0.0, unit)])
        write(x + ruler.unit(unit) + 6.0, MARGIN + 56.0, meaning, size=9, colour=PALE_INK)
        x += ruler.unit(unit) + ruler.text(meaning) * 9 / FONT_SIZE + 32.0
    for x, heading in ((MARGIN, "mask rate"), (MARGIN + 58.0, "masked")):
        write(x, top - 12.0, heading, size=8, colour=PALE_INK)

    y = top
    for level, block in zip(levels, blocks, strict=True):
        rule(MARGIN, y - LEVEL_GAP / 2 - 0.4, WIDTH - 2 * MARGIN, RULE)
        write(MARGIN, y + 12.0, f"{level.mask_rate:.0%}", bold=True)
        write(MARGIN + 58.0, y + 12.0, f"{level.num_masked} of {level.num_maskable}", size=9, colour=PALE_INK)
        for number, line in enumerate(block):
            draw_line(TEXT_LEFT, y + 12.0 + number * LINE_HEIGHT, line)
        y += len(block) * LINE_HEIGHT + LEVEL_GAP
    return figure


def load_tokenizer(name: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory or on the Hub, or that of the built-in stories."""
    if name is None:
        return story_language.tokenizer()
    require_repository(name, "model", "--tokenizer", probe_file="tokenizer_config.json")
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"`--tokenizer` is {name!r}, from which no tokenizer can be loaded: {reason}") from error


def run(arguments: MaskingVizArguments) -> None:
    """Does what the command line says."""
    if arguments.output:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise ValueError(
                "`--output` needs matplotlib: run `pip install 'diffusion-mlm[viz]'`, or pass an empty `--output`."
            ) from None
    tokenizer = load_tokenizer(arguments.tokenizer)
    text = story_language.sample(1, arguments.seed)[0] if arguments.text is None else arguments.text
    pieces, levels = mask_at_all_levels(tokenizer, text, arguments.prefix_length, arguments.seed)
    if arguments.terminal:
        print_table(levels, pieces, arguments.prefix_length)
    if arguments.output:
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        figure = draw_picture(levels, pieces, arguments.prefix_length)
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", message=MISSING_GLYPH)
            figure.savefig(arguments.output)
        if caught:
            print(f"The picture's font lacks {len(caught)} of the characters: boxes stand for them.", file=sys.stderr)
        print(f"Wrote {arguments.output}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment and returns its exit status, the same as those of `diffusion-mlm`."""
    try:
        (arguments,) = parse([MaskingVizArguments], list(sys.argv[1:] if argv is None else argv), "masking_viz.py")
        run(arguments)
    except (ValueError, OSError) as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
