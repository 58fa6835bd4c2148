"""`diffusion-mlm doctor`: what would fail, and what to do; exit status 1 if something would."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parsing import parse

if TYPE_CHECKING:
    from ..doctor import Finding


@dataclass
class DoctorArguments:
    """What `doctor` takes: nothing (the machine), a model, texts, or both."""

    checkpoint: str | None = field(default=None, metadata={"help": "A generator: a directory or a Hub id."})
    model_name: str | None = field(default=None, metadata={"help": "A model to train: a directory or a Hub id."})
    dataset: str | None = field(default=None, metadata={"help": "A data set: a Hub id or a directory."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the data set."})
    train_file: list[str] = field(default_factory=list, metadata={"help": "Local files of text."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    text_unit: str = field(
        default="line", metadata={"help": "One text of a plain text file.", "choices": ["line", "paragraph", "file"]}
    )
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens per row. (default: what the model reads)"})
    output_dir: str = field(default="results/run", metadata={"help": "Where a run would write."})
    save_total_limit: int = field(default=2, metadata={"help": "Checkpoints that a run would keep."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Let code in the model's repository run."})
    output_format: str = field(
        default="text", metadata={"help": "json prints one object a line.", "choices": ["text", "json"]}
    )

    def __post_init__(self) -> None:
        if self.checkpoint is not None and self.model_name is not None:
            raise ValueError("`--checkpoint` and `--model-name` exclude one another: name one model.")
        if self.dataset is not None and self.train_file:
            raise ValueError("`--dataset` and `--train-file` exclude one another: name one of them.")
        for name in self.train_file:
            if not Path(name).is_file():
                raise ValueError(f"`--train-file` is {name!r}, and there is no such file.")


def run(argv: list[str]) -> int:
    """Runs `doctor` with these arguments; returns 1 if something would fail, else 0."""
    (args,) = parse([DoctorArguments], argv, "doctor")
    failures = 0
    for finding in findings(args):
        failures += finding.status == "fail"
        print(format_finding(finding, args.output_format), flush=True)
    return 1 if failures else 0


def findings(args: DoctorArguments) -> Iterator["Finding"]:
    """What is found, while it is found: the model first, for its size says what the disk must hold."""
    from ..doctor import ModelExamination, examine_machine, examine_texts
    from ..modeling import context_length
    from .checkpoint_arguments import no_loading_bar

    model, tokenizer, name = None, None, args.checkpoint or args.model_name
    if name is not None:
        argument = "--checkpoint" if args.checkpoint is not None else "--model-name"
        examination = ModelExamination(name, argument, args.trust_remote_code)
        with no_loading_bar():
            yield from examination.findings()
        model, tokenizer = examination.model, examination.tokenizer
    if args.dataset is not None or args.train_file:
        source: dict[str, Any] = (
            {"files": args.train_file}
            if args.train_file
            else {"dataset": args.dataset, "config": args.dataset_config, "split": args.dataset_split}
        )
        source |= {"text_column": args.text_column, "text_unit": args.text_unit, "encoding": args.encoding}
        length = args.max_length
        if length is None and model is not None and tokenizer is not None:
            length = context_length(model, tokenizer)
        yield from examine_texts(tokenizer, length, **source)
    parameters = model.num_parameters() if model is not None else 0
    yield from examine_machine(args.output_dir, parameters, args.save_total_limit)


def format_finding(finding: "Finding", output_format: str) -> str:
    """A line of JSON, or a line of text with what to do below it."""
    if output_format == "json":
        return json.dumps(dataclasses.asdict(finding))
    status = finding.status.upper() if finding.status == "fail" else finding.status
    remedy = f"\n{'':<24} {finding.remedy}" if finding.remedy and finding.status != "ok" else ""
    return f"{status:<5} {finding.check:<18} {finding.says}{remedy}"
