"""`diffusion-mlm evaluate --report` and `--compare`: checkpoints side by side, with samples and plots."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hub_access import require_repository
from .checkpoint_arguments import device_of_process, load_checkpoint, no_loading_bar
from .generation_settings import require_text

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from ..evaluation.report_directory import ReportDirectory
    from ..evaluation.report_measures import Progress
    from .evaluate import EvaluateArguments


@dataclass
class ReportArguments:
    """What `evaluate` takes for a report."""

    report: str | None = field(
        default=None, metadata={"help": "Directory for a report: JSON, Markdown and plots. Samples by --num-samples."}
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={"help": "Further checkpoints, masked or causal, beside --checkpoint: directories or Hub ids."},
    )
    num_samples: int = field(
        default=0, metadata={"help": "Of a report: texts that each checkpoint writes, also in each number of --steps."}
    )
    prefix: str = field(default="", metadata={"help": "Of --num-samples: begins each of them."})
    judge: str | None = field(
        default=None, metadata={"help": "Of --num-samples: a causal model that judges them, a directory or a Hub id."}
    )
    judge_end_token: str | None = field(
        default=None, metadata={"help": "What ended texts in the training of --judge. (default: its eos_token)"}
    )
    training_file: list[str] = field(
        default_factory=list, metadata={"help": "Of --num-samples: text that they may have copied from."}
    )

    def __post_init__(self) -> None:
        if self.num_samples < 0:
            raise ValueError(f"`--num-samples` must be 0 (none) or more, not {self.num_samples}.")
        if self.num_samples and not self.is_asked:
            raise ValueError("`--num-samples` belongs to a report: name a directory for it by `--report`.")
        for argument, value in (("prefix", self.prefix), ("judge", self.judge), ("training-file", self.training_file)):
            if value and not self.num_samples:
                raise ValueError(f"`--{argument}` is about samples: say how many by `--num-samples`.")
        if self.judge_end_token is not None and self.judge is None:
            raise ValueError("`--judge-end-token` belongs to `--judge`: name that too.")
        require_text(self.prefix, "--prefix")
        for name in self.training_file:
            if not Path(name).is_file():
                raise ValueError(f"`--training-file` is {name!r}, and there is no such file.")

    @property
    def is_asked(self) -> bool:
        """Whether there is to be a report, printed or in a directory."""
        return self.report is not None or bool(self.compare)


def run_report(args: "EvaluateArguments", of_report: ReportArguments) -> int:
    """Measures, prints and writes; returns the exit status 0, errors are raised."""
    named = [(args.checkpoint_name, "--checkpoint"), *((name, "--compare") for name in of_report.compare)]
    labels = short_names([name for name, _ in named])
    directory = _check(args, of_report)

    from ..canvas import is_gaussian_checkpoint
    from ..causal_peer import is_causal_checkpoint
    from ..data import load_texts
    from ..data_report import DataReport
    from ..evaluation.judge import Judge
    from ..evaluation.report_markdown import report_markdown
    from ..evaluation.report_measures import ReportOptions, evaluation_report
    from .evaluate import load_texts_to_score, what_was_left_out

    for name, argument in named:
        if is_gaussian_checkpoint(name):
            raise ValueError(
                f"`{argument}` is {name!r}, a model of embedding diffusion, but a report is about tokens under masks: "
                f"leave out `--report` and `--compare`, and its likelihood bound is measured."
            )
    trusted = args.trust_remote_code
    causal = [is_causal_checkpoint(name, trust_remote_code=trusted, argument=argument) for name, argument in named]
    read = DataReport()
    texts, num_not_taken = load_texts_to_score(args, read)
    training = None
    if of_report.training_file:
        form: dict[str, Any] = {name: getattr(args, name) for name in ("text_column", "text_unit", "encoding")}
        training = list(load_texts(files=of_report.training_file, **form)["text"])
    judge = None
    if of_report.judge is not None:
        how: dict[str, Any] = {"end_token": of_report.judge_end_token, "batch_size": args.batch_size}
        with no_loading_bar():
            judge = Judge.from_pretrained(of_report.judge, trust_remote_code=trusted, argument="--judge", **how)
    loaded = [
        _load(name, argument, is_causal, trusted) for (name, argument), is_causal in zip(named, causal, strict=True)
    ]
    options = ReportOptions(
        **{name: getattr(args, name) for name in _OPTIONS},
        separate_texts=not args.join_texts,
        num_samples=of_report.num_samples,
        prefix=of_report.prefix,
        stories=args.num_stories is not None,
    )
    with _bar() as progress:
        report = evaluation_report(
            dict(zip(labels, loaded, strict=True)),
            texts,
            options,
            judge=judge,
            training_texts=training,
            progress=progress,
        )
    left_out = [f"{words}: {count:,}" for words, count in what_was_left_out(read, num_not_taken)]
    report = replace(report, source=_source(args, of_report) | {"left_out": left_out})
    if directory is not None:  # before anything is printed, to a pipe that may be closed
        print(f"Wrote {', '.join(map(str, directory.write(report)))}.", file=sys.stderr)
    print(report.to_json() if args.output_format == "json" else report_markdown(report).rstrip())
    for line in [*left_out, *report.warnings]:
        print(f"note: {line}", file=sys.stderr)
    return 0


# Options of `evaluate` that a report has by the same name.
_OPTIONS = (
    "packing",
    "max_length",
    "estimators",
    "draws",
    "steps",
    "schedule",
    "order",
    "orders",
    "batch_size",
    "seed",
)


def _source(args: "EvaluateArguments", of_report: ReportArguments) -> dict[str, Any]:
    """Where the text is from and who judges, without the directories of this machine."""
    text = ", ".join(Path(name).name for name in args.eval_file) or "built-in stories"
    text = short_names([args.dataset])[0] if args.dataset is not None else text
    judge = None if of_report.judge is None else short_names([of_report.judge])[0]
    return {"text": text, "judge": judge, "training_text": [Path(name).name for name in of_report.training_file]}


def _check(args: "EvaluateArguments", of_report: ReportArguments) -> "ReportDirectory | None":
    """Finds out whether all that is named is there; nothing heavy is loaded before.

    Raises:
        ValueError, HubUnavailableError, NotAllowedError, OutputDirectoryError: it is not, or may not be used.
    """
    for name, kind, argument in (
        (args.checkpoint_name, "model", "--checkpoint"),
        *((name, "model", "--compare") for name in of_report.compare),
        *([] if of_report.judge is None else [(of_report.judge, "model", "--judge")]),
        *([] if args.dataset is None else [(args.dataset, "dataset", "--dataset")]),
    ):
        require_repository(name, kind, argument, probe_file="config.json" if kind == "model" else "README.md")
    if of_report.report is None:
        return None
    from ..evaluation.report_directory import ReportDirectory

    return ReportDirectory(of_report.report, "--report")


def _load(name: str, argument: str, is_causal: bool, trusted: bool) -> "tuple[nn.Module, PreTrainedTokenizerBase]":
    if not is_causal:
        return load_checkpoint(name, trusted, argument)
    from ..causal_peer import load_causal_model

    with no_loading_bar():
        model, tokenizer = load_causal_model(name, argument=argument, trust_remote_code=trusted)
    return model.to(device_of_process()), tokenizer  # type: ignore[arg-type]  # `to` hides behind a wrapper


def short_names(names: Sequence[str]) -> list[str]:
    """For each checkpoint the shortest end of its path that tells it from the others.

    Raises:
        ValueError: one is named twice.

    >>> short_names(["results/a/final-model", "results/b/final-model", "gpt2"])
    ['a/final-model', 'b/final-model', 'gpt2']
    """
    paths = [
        [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")] or [name] for name in names
    ]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise ValueError(f"`--compare` names {names[place]!r} twice, or as `--checkpoint` too: leave one out.")
    found = []
    for path in paths:
        sizes = (size for size in range(1, len(path)) if sum(of[-size:] == path[-size:] for of in paths) == 1)
        size = next(sizes, len(path))
        found.append("/".join(path[-size:]))
    return found


@contextmanager
def _bar() -> "Iterator[Progress]":
    """A bar that says what is done; only on a terminal, only after a second, and gone at the end."""
    from huggingface_hub.utils import tqdm

    bar = tqdm(delay=1, leave=False, disable=None, file=sys.stderr)
    shown = ""

    def progress(what: str, done: int, planned: int) -> None:
        nonlocal shown
        if what != shown:
            shown = what
            bar.reset(planned)
            bar.set_description(what)
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        bar.close()
