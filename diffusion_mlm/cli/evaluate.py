"""`diffusion-mlm evaluate`: how well a model knows a text, as one JSON object or a table."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hub_access import require_repository
from .checkpoint_arguments import CheckpointArguments, load_checkpoint
from .parsing import parse

if TYPE_CHECKING:
    from ..data_report import DataReport
    from ..evaluation.likelihood_report import Estimate, LikelihoodReport

# As in `evaluation.text_likelihood`, `packing`, `file_format`, `schedules` and `trajectory`: --help is quick.
ESTIMATORS = ("curve", "steps", "chain", "importance")
PACKINGS = ("packed", "one_per_row")
TEXT_UNITS = ("line", "paragraph", "file")
SCHEDULES = ("linear", "cosine", "exponential", "maskgit", "survival")
FIXED_ORDERS = ("left_to_right", "right_to_left")

_HELD_OUT_SEED = 2  # stories that training evaluates on and never trains on


@dataclass
class EvaluateArguments(CheckpointArguments):
    """What `evaluate` takes."""

    eval_file: list[str] = field(
        default_factory=list, metadata={"help": "Local files: text, .jsonl, .json, .csv, .tsv or .parquet, also .gz."}
    )
    dataset: str | None = field(default=None, metadata={"help": "Data set instead: a Hub id or a directory."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str = field(default="test", metadata={"help": "Split of the data set."})
    num_stories: int | None = field(
        default=None, metadata={"help": "So many built-in stories instead, whose exact likelihood is known."}
    )
    num_texts: int | None = field(default=None, metadata={"help": "Take only the first texts. (default: all)"})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    text_unit: str = field(
        default="line", metadata={"help": "One text of a plain text file.", "choices": list(TEXT_UNITS)}
    )
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files."})
    packing: str | None = field(
        default=None,
        metadata={
            "help": "`packed` cuts joined texts into full rows; `one_per_row` scores each text on its own, a long one "
            "in windows. (default: as the model was trained, else packed)",
            "choices": list(PACKINGS),
        },
    )
    join_texts: bool = field(default=False, metadata={"help": "Packed: put no `</s>` between two texts."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens per row. (default: as in training, else what the model reads, to 512)"}
    )
    draws: int = field(default=32, metadata={"help": "Masks per row for the bound; 128 for a published figure."})
    estimators: list[str] = field(
        default_factory=list,
        metadata={"help": "What else is estimated: the others cost more forwards.", "choices": list(ESTIMATORS)},
    )
    steps: list[int] = field(
        default_factory=lambda: [8, 16, 32, 64],
        metadata={"help": "Of --estimators steps, and of a report: steps of the sampler."},
    )
    schedule: str = field(
        default="linear", metadata={"help": "Of --estimators steps: its schedule.", "choices": list(SCHEDULES)}
    )
    order: str = field(
        default="left_to_right", metadata={"help": "Of --estimators chain.", "choices": list(FIXED_ORDERS)}
    )
    orders: int = field(default=8, metadata={"help": "Of --estimators importance: random orders per row."})
    batch_size: int = field(default=32, metadata={"help": "Rows per call of the model; the figures are the same."})
    seed: int = field(default=0, metadata={"help": "Of the masks; two models are compared at the same one."})

    def __post_init__(self) -> None:
        named = [
            name
            for name, value in (
                ("--eval-file", self.eval_file),
                ("--dataset", self.dataset),
                ("--num-stories", self.num_stories),
            )
            if value not in (None, [])
        ]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(f'`{name}`' for name in named)} exclude one another: name one text.")
        if not named:
            raise ValueError(
                "`--eval-file` is missing: name a file of held-out text, or a `--dataset`, or a number of built-in "
                "stories by `--num-stories`."
            )
        for name in self.eval_file:
            if not Path(name).is_file():
                raise ValueError(f"`--eval-file` is {name!r}, and there is no such file.")
        for argument, value in (
            ("num-stories", self.num_stories),
            ("num-texts", self.num_texts),
            ("draws", self.draws),
            ("orders", self.orders),
            ("batch-size", self.batch_size),
            *(("steps", number) for number in self.steps),
        ):
            if value is not None and value < 1:
                raise ValueError(f"`--{argument}` must be a whole number of at least 1, not {value}.")
        if self.max_length is not None and self.max_length < 3:
            raise ValueError(f"`--max-length` must be at least 3 (<s>, one token, </s>), not {self.max_length}.")
        for name in self.estimators:  # argparse checks the command line, nobody checks a file
            if name not in ESTIMATORS:
                raise ValueError(f"`--estimators` must be of {', '.join(ESTIMATORS)}, not {name!r}.")


def run(argv: list[str]) -> int:
    """Runs `evaluate` with these arguments and returns the exit status 0; errors are raised."""
    from .evaluate_report import ReportArguments, run_report

    args, of_report = parse([EvaluateArguments, ReportArguments], argv, "evaluate")
    if of_report.is_asked:
        return run_report(args, of_report)
    checkpoint = args.checkpoint_name
    require_repository(checkpoint, "model", "--checkpoint")
    if args.dataset is not None:
        require_repository(args.dataset, "dataset", "--dataset", probe_file="README.md")

    from huggingface_hub.utils import tqdm

    from ..data_report import DataReport
    from ..evaluation.text_likelihood import evaluate_texts

    read = DataReport()
    texts, num_not_taken = load_texts_to_score(args, read)
    model, tokenizer = load_checkpoint(checkpoint, args.trust_remote_code)
    # Only on a terminal, only after a second, and gone at the end.
    bar = tqdm(unit=" batches", delay=1, leave=False, disable=None, file=sys.stderr)

    def progress(done: int, planned: int) -> None:
        bar.total = planned
        bar.update(done - bar.n)

    try:
        report = evaluate_texts(
            model,
            tokenizer,
            texts,
            estimators=args.estimators,
            packing=args.packing,
            max_length=args.max_length,
            separate_texts=not args.join_texts,
            draws=args.draws,
            steps=args.steps,
            schedule=args.schedule,
            order=args.order,
            orders=args.orders,
            batch_size=args.batch_size,
            seed=args.seed,
            progress=progress,
        )
    finally:
        bar.close()
    exact = exact_nats_per_token(texts, report) if args.num_stories else None
    if args.output_format == "json":
        found = {**report.to_dict(), "checkpoint": checkpoint, "device": str(model.device)}
        found["left_out"] |= {"blank": read.num_blank, "null": read.num_null, "texts_not_taken": num_not_taken}
        if exact is not None:
            found["exact_nats_per_token"] = exact
        print(json.dumps(found, allow_nan=False))
    else:
        print("\n".join(table(report, read, num_not_taken, exact)))
    return 0


def load_texts_to_score(args: EvaluateArguments, report: "DataReport") -> tuple[list[str], int]:
    """The texts that the options name, and how many `--num-texts` leaves out."""
    from ..data import load_stories, load_texts

    if args.num_stories is not None:
        dataset: Any = load_stories(args.num_stories, _HELD_OUT_SEED)
    else:
        dataset = load_texts(
            args.dataset,
            files=args.eval_file or None,
            config=args.dataset_config,
            split=args.dataset_split,
            text_column=args.text_column,
            text_unit=args.text_unit,
            encoding=args.encoding,
            report=report,
        )
    count = min(len(dataset), args.num_texts or len(dataset))
    return list(dataset[:count]["text"]), len(dataset) - count


def exact_nats_per_token(texts: list[str], report: "LikelihoodReport") -> float | None:
    """The exact -log p of built-in stories in nats per token, if the tokens are those of their language."""
    from .. import story_language

    tokens = sum(len(story_language.automaton.split_text(text)) + 1 for text in texts)
    if tokens != report.num_tokens:
        return None
    return -float(story_language.log_prob(texts).sum()) / tokens


def table(report: "LikelihoodReport", read: "DataReport", num_not_taken: int, exact: float | None) -> list[str]:
    """The lines of the readable output."""
    settings, rows = report.settings, report.rows
    is_gaussian = settings.get("process") == "gaussian"
    unit = settings["interval_over"]
    drawn = "noise levels" if is_gaussian else "masks"
    lines = [
        _line("likelihood bound", report.bound, f"{settings['draws']} {drawn} a row"),
    ]
    if exact is not None:
        lines.append(f"{'exact':<18} {exact:.4f} nats per token, of these stories in their language")
    for name, estimate in report.others.items():
        if name == "steps":
            lines += [
                _line(f"in {of.settings['steps']} steps", of, f"{of.settings['schedule']} schedule, bound")
                for of in estimate
            ]
        elif name == "importance":
            orders = estimate.settings["orders"]
            lines.append(_line("importance bound", estimate, f"random orders: {orders}; between -log p and the bound"))
        elif name == "chain":
            lines.append(_line("fixed order", estimate, f"{estimate.settings['order']}, exact"))
        else:
            lines.append(_line("integrated curve", estimate, "bound from the curve below"))
    per_byte = report.bound.bits_per_byte
    lines += [
        f"{'perplexity':<18} {report.bound.perplexity:.4g}, per token of this tokenizer",
        f"{'bits per byte':<18} " + (f"{per_byte:.4f}" if per_byte is not None else "unknown: see below"),
    ]
    curve = report.curve or report.loss_by_mask_rate
    what = f"loss by {'noise time' if is_gaussian else 'mask rate'}"
    lines.append(f"{what:<18} " + "  ".join(f"{rate:.2g}: {nats:.3f}" for rate, nats in curve))
    size = f"{rows.num_texts:,} texts, {report.num_tokens:,} tokens"
    size += f", {rows.num_bytes:,} bytes" if rows.num_bytes is not None else ""
    how = "packed" if settings["packing"] == "packed" else "one text a row"
    ends = "the end of a text is scored" if settings["scores_end"] else "ends of texts are given"
    lines.append(f"{'text':<18} {size}, in {len(rows.rows):,} rows of {settings['max_length']} tokens ({how}; {ends})")
    lines.append(f"{'interval':<18} {settings['confidence']:.0%}, over {unit}; seed {settings['seed']}")
    return lines + [f"{'note':<18} {note}" for note in _notes(report, read, num_not_taken)]


def _line(name: str, estimate: "Estimate", remark: str) -> str:
    interval = estimate.confidence_interval
    within = f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval is not None else ""
    return f"{name:<18} {estimate.nats_per_token:.4f} nats per token{within}, {remark}"


def what_was_left_out(read: "DataReport", num_not_taken: int) -> list[tuple[str, int]]:
    """Texts that were named and not scored, in words, with their number."""
    counts = [
        ("blank texts, left out", read.num_blank),
        ("texts without a value, left out", read.num_null),
        ("further texts, not taken (--num-texts)", num_not_taken),
    ]
    return [(words, count) for words, count in counts if count]


def _notes(report: "LikelihoodReport", read: "DataReport", num_not_taken: int) -> list[str]:
    """What was left out, in sentences."""
    rows = report.rows
    notes = []
    if rows.num_bytes is None:
        notes.append("this tokenizer does not tell which bytes its unknown tokens stand for")
    for count, words in (
        *((count, words) for words, count in what_was_left_out(read, num_not_taken)),
        (rows.num_without_tokens, "texts that give no token, left out with their bytes"),
        (rows.num_separators, "</s> between texts, given and not scored"),
        (rows.num_unknown, f"unknown tokens, given and not scored ({rows.num_unknown_bytes:,} bytes)"),
        (rows.num_split, "texts longer than a row, scored in windows, each token once"),
        (rows.num_altered, "texts that do not come back from their tokens byte for byte: bits per byte flatters"),
    ):
        if count:
            notes.append(f"{words}: {count:,}")
    return notes
