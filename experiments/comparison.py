"""A question about settings of generation, answered by figures of the built-in stories: the loop, table and picture.

`compare_schedules.py`, `compare_sampling.py` and `compare_temperatures.py` each hold a question, the settings to try
and how their figures are put into a sentence. Every setting writes stories from nothing with the same seeds, and the
grammar of the stories, whose probabilities are exact, judges them:

* the share of stories that it accepts;
* the mean exact log-probability of the accepted ones, in nats per token. That of the language is minus its entropy;
  above it the stories are too probable: the generator has collapsed;
* different 3-grams among all 3-grams, beside those of as many stories of the language.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.utils import tqdm
from transformers import PreTrainedTokenizerBase

from diffusion_mlm import generate, load_generator, story_language
from diffusion_mlm.checkpoints import STORIES_GENERATOR
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.evaluation.story_quality import StoryFigures, story_figures, writes_stories

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONFIDENCE = 0.99  # of all intervals: a dozen settings are looked at, and none shall stand out by chance
REFERENCE_SEED = 1_000_005  # stories that no recipe trains on
# Okabe and Ito 2008, which colour-blind readers tell apart; the marks tell them apart in grey print.
COLOURS, MARKS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), "osD^"
INK, PALE_INK, RULE = "#1a1a1a", "#606060", "#dcdcdc"


@dataclass(frozen=True)
class Setting:
    """One of the settings that are compared.

    Attributes:
        series (`str`): what is drawn in one colour.
        place (number or `str`): on the horizontal axis; points at numbers are joined.
        settings (`dict`): of `generate`, over the preset `default`.
    """

    series: str
    place: float | str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """The stories of a setting and what the grammar says of them."""

    setting: Setting
    figures: StoryFigures
    texts: list[str]
    forwards: float  # per story

    @property
    def has_collapsed(self) -> bool:
        """Whether these are few stories again and again, or too probable ones beyond chance."""
        return self.figures.is_too_probable or self.figures.num_distinct <= self.figures.num_stories / 2

    def differs_from(self, other: "Written") -> bool:
        """Whether the shares of accepted stories differ beyond chance.

        That is, whether the interval of their difference leaves out 0 (Newcombe 1998, Statistics in Medicine 17,
        873-890, method 10).
        """
        more, less = sorted((self.figures, other.figures), key=lambda figures: -figures.valid_share)
        down, up = more.valid_share - more.valid_interval[0], less.valid_interval[1] - less.valid_share
        return more.valid_share - less.valid_share > math.hypot(down, up)


@dataclass(frozen=True)
class Comparison:
    """A question, what is tried to answer it, and the answer.

    Attributes:
        name (`str`): of the script and of the files it writes.
        question, note (`str`): the heading of table and picture, and what is the same in all settings.
        series, axis (`str`): what differs between the colours, and along the horizontal axis.
        settings (sequence of `Setting`).
        conclude (`Callable`): puts what was written into one sentence.
    """

    name: str
    question: str
    note: str
    series: str
    axis: str
    settings: Sequence[Setting]
    conclude: Callable[[Sequence[Written]], str]


@dataclass
class ComparisonArguments:
    """How much is written, and by which model."""

    checkpoint: str = field(
        default=STORIES_GENERATOR, metadata={"help": "A model of the built-in stories: a directory or a Hub id."}
    )
    num_samples: int = field(default=48, metadata={"help": "Stories per setting."})
    seed: int = field(default=0, metadata={"help": "Of the stories; each setting gets the same."})
    output_dir: str = field(default="results", metadata={"help": "Where the JSON and the picture go."})
    picture: bool = field(default=True, metadata={"help": "Draw it; needs matplotlib."})

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise ValueError(f"`--num-samples` must be a whole number of at least 2, not {self.num_samples}.")
        if self.picture:
            try:
                import matplotlib  # noqa: F401
            except ImportError:
                raise ValueError(
                    "`--picture` needs matplotlib: run `pip install 'diffusion-mlm[viz]'`, or pass `--picture false`."
                ) from None


def run(comparison: Comparison, argv: Sequence[str] | None = None) -> int:
    """Writes, measures, concludes; returns the exit status, the same as those of `diffusion-mlm`."""
    try:
        script = f"{comparison.name}.py"
        (args,) = parse([ComparisonArguments], list(sys.argv[1:] if argv is None else argv), script)
        start = time.process_time()
        written = write_all(comparison.settings, args)
        reference = story_figures(story_language.sample(args.num_samples, REFERENCE_SEED), CONFIDENCE)
        conclusion = comparison.conclude(written)
        print(as_table(comparison, written, reference))
        print(f"\n{conclusion}\n")
        result = {
            "question": comparison.question,
            "conclusion": conclusion,
            "note": comparison.note,
            "checkpoint": Path(args.checkpoint).name,
            "num_samples": args.num_samples,
            "seed": args.seed,
            "confidence": CONFIDENCE,
            "entropy_nats_per_token": story_language.entropy_per_token(),
            "stories_of_the_language": asdict(reference),
            "cpu_seconds": round(time.process_time() - start, 1),
            "rows": [as_row(one) for one in written],
        }
        path = Path(args.output_dir) / f"{comparison.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(f"Wrote {path}.")
        if args.picture:
            draw(comparison, written, reference).savefig(path.with_suffix(".png"))
            print(f"Wrote {path.with_suffix('.png')}.")
    except (ValueError, OSError) as error:
        return report_error(error)
    return 0


def write_all(settings: Sequence[Setting], args: ComparisonArguments) -> list[Written]:
    """The stories of all settings.

    Raises:
        ValueError: the model is not one of the built-in stories.
    """
    model, tokenizer = load_generator(args.checkpoint)
    require_stories(tokenizer, args.checkpoint)
    written = []
    with tqdm(settings, unit=" settings", delay=1, leave=False, disable=None, file=sys.stderr) as bar:
        for setting in bar:
            bar.set_postfix_str(f"{setting.series}, {setting.place}")
            options = {"preset": "default", "num_return_sequences": args.num_samples, **setting.settings}
            output = generate(model, tokenizer, "", seed=args.seed, **options)
            forwards = sum(sample.num_forwards for sample in output.samples) / args.num_samples
            written.append(Written(setting, story_figures(output.texts, CONFIDENCE), output.texts, forwards))
    return written


def require_stories(tokenizer: PreTrainedTokenizerBase, checkpoint: str) -> None:
    if not writes_stories(tokenizer):
        raise ValueError(
            f"`--checkpoint` is {checkpoint!r}, whose tokenizer is not that of the built-in stories, and only these "
            f"are measured here. Name a model that `train.py` made of them, or use `diffusion-mlm sweep --judge`."
        )


def as_row(written: Written) -> dict[str, Any]:
    """The figures of a setting as JSON, with two of its stories."""
    figures = {**asdict(written.figures), "too_probable": written.figures.is_too_probable}
    return {**asdict(written.setting), **figures, "forwards_per_story": written.forwards, "samples": written.texts[:2]}


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# --- the table ---


def as_table(comparison: Comparison, written: Sequence[Written], reference: StoryFigures) -> str:
    """Lines of text, one a setting, and the stories of the language last."""
    measured = ("forwards", "accepted", "interval", "log-prob", "interval", "different", "distinct-3")
    heads = (comparison.series, comparison.axis, *measured)
    rows = [
        [one.setting.series, str(one.setting.place), f"{one.forwards:.1f}", *cells(one.figures)] for one in written
    ]
    rows.append(["the language itself", "", "", *cells(reference)])
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)]
    entropy = story_language.entropy_per_token()
    caption = (
        f"{comparison.note} {reference.num_stories} stories a setting; intervals are of {CONFIDENCE:.0%}; log-prob is "
        f"exact, in nats per token of the accepted stories, and {-entropy:.3f} in the language."
    )
    return "\n".join([comparison.question, "", *(line.rstrip() for line in lines), "", caption])


def cells(figures: StoryFigures) -> list[str]:
    low, high = figures.valid_interval
    of_log_prob = figures.log_prob_interval
    verdict = " too probable" if figures.is_too_probable else ""
    return [
        percent(figures.valid_share),
        f"{100 * low:.0f} to {100 * high:.0f}",
        "" if figures.log_prob is None else f"{figures.log_prob:.3f}",
        "" if of_log_prob is None else f"{of_log_prob[0]:.3f} to {of_log_prob[1]:.3f}{verdict}",
        str(figures.num_distinct),
        f"{figures.distinct_3:.3f}",
    ]


# --- the picture ---


def draw(comparison: Comparison, written: Sequence[Written], reference: StoryFigures) -> "Figure":
    """Three panels over the same axis: accepted stories, their log-probability, distinct 3-grams."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), dpi=130, facecolor="white", layout="constrained")
    panels = figure.subplots(1, 3)
    truth = -story_language.entropy_per_token()
    for panel, title, level in zip(
        panels,
        ("stories accepted, %", "exact nats per token; shaded: too probable", "distinct 3-grams, %"),
        (100.0, truth, 100 * reference.distinct_3),
        strict=True,
    ):
        panel.set_title(title, loc="left", fontsize=10, color=INK)
        panel.axhline(level, color=PALE_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        panel.grid(axis="y", color=RULE, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel(comparison.axis, color=PALE_INK)
    series = list(dict.fromkeys(one.setting.series for one in written))
    places = list(dict.fromkeys(one.setting.place for one in written))
    numbers = [place if isinstance(place, (int, float)) else places.index(place) for place in places]
    names = [f"{place:g}" if isinstance(place, (int, float)) else place for place in places]
    apart = (max(numbers) - min(numbers)) / 100  # points of different series at one place stand side by side
    for number, name in enumerate(series):
        of_series = [one for one in written if one.setting.series == name]
        shift = (number - (len(series) - 1) / 2) * apart
        x = [numbers[places.index(one.setting.place)] + shift for one in of_series]
        style = {"color": COLOURS[number], "marker": MARKS[number], "joined": numbers == places}
        figures = [one.figures for one in of_series]
        draw_points(panels[0], x, [percents(f.valid_share, *f.valid_interval) for f in figures], label=name, **style)
        log_probs = [(f.log_prob, *f.log_prob_interval) if f.log_prob_interval else None for f in figures]
        draw_points(panels[1], x, log_probs, **style)
        draw_points(panels[2], x, [percents(f.distinct_3) * 3 for f in figures], **style)
    panels[0].set_ylim(-4, 104)
    panels[2].set_ylim(0, 1.05 * panels[2].dataLim.ymax)
    low, high = panels[1].get_ylim()
    panels[1].axhspan(truth, high + 1, color="#f6ece4", zorder=0)
    panels[1].set_ylim(low, max(high, truth + 0.15 * (high - low)))
    for panel in panels:
        slant = {} if numbers == places else {"rotation": 35, "ha": "right", "fontsize": 8}
        panel.set_xticks(numbers, names, **slant)
    figure.suptitle(comparison.question, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    if len(series) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="upper right", ncols=len(series), frameon=False)
    figure.supxlabel(
        f"{comparison.note} {reference.num_stories} stories a setting, intervals of {CONFIDENCE:.0%}; dashed: stories "
        f"of the language.",
        x=0.01,
        ha="left",
        fontsize=8,
        color=PALE_INK,
    )
    return figure


def percents(*shares: float) -> tuple[float, ...]:
    return tuple(100 * share for share in shares)


def draw_points(
    panel: "Axes",
    places: Sequence[float],
    points: Sequence[tuple[float | None, ...] | None],
    *,
    color: str,
    marker: str,
    joined: bool,
    label: str = "",
) -> None:
    """Points with their intervals; None leaves a gap."""
    there = [(place, point) for place, point in zip(places, points, strict=True) if point is not None]
    if not there:
        return
    x = [place for place, _ in there]
    middle, low, high = zip(*[point for _, point in there], strict=True)
    panel.vlines(x, low, high, color=color, linewidth=1.2, alpha=0.7)
    line = "-" if joined else "none"
    panel.plot(x, middle, linestyle=line, marker=marker, color=color, linewidth=1.4, markersize=5, label=label)
