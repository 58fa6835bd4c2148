"""`diffusion-mlm generate`: continues prefixes and prints texts, one JSON object a line, or the text as it forms."""

import random
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .generation_settings import GenerationSettings, load, require_text, setting
from .parsing import parse
from .trace_arguments import TraceArguments

if TYPE_CHECKING:
    from ..constraints import Constraints
    from ..generation import GeneratedText


@dataclass
class GenerateArguments(TraceArguments, GenerationSettings):
    """What `generate` takes; settings left out are those of the checkpoint's generation_config.json."""

    prefix: list[str] = field(
        default_factory=lambda: [""], metadata={"help": "Text to continue; several are allowed."}
    )
    max_new_tokens: int | None = setting("max_new_tokens", "New tokens.", "the row length of training, or 64")
    stride: int | None = setting("stride", "New tokens of a window, if the text is longer.", "half of what it holds")
    regex: str | None = field(
        default=None, metadata={"help": "The new text must match this expression, from its first character on."}
    )
    banned_words: list[str] = field(default_factory=list, metadata={"help": "Words that do not occur."})
    banned_strings: list[str] = field(
        default_factory=list, metadata={"help": "Strings that do not occur, inside words either."}
    )
    allowed_words: list[str] = field(default_factory=list, metadata={"help": "The only words that occur."})
    ignore_case: bool = field(
        default=False, metadata={"help": "Banned and allowed words stand for all their spellings in capitals too."}
    )
    show_steps: bool = field(default=False, metadata={"help": "Watch the text form, one sample after another."})
    prefixes_file: str | None = field(
        default=None, metadata={"help": "Prefixes to continue: text (one a line), .jsonl, .csv, .tsv or .parquet."}
    )
    prefix_column: str = field(
        default="prefix", metadata={"help": "Of --prefixes-file, unless it is text: the column of prefixes."}
    )
    encoding: str = field(default="utf-8", metadata={"help": "Of --prefixes-file."})
    output_file: str | None = field(
        default=None,
        metadata={
            "help": "JSON lines to write; the same command goes on where it was interrupted. Works in torchrun."
        },
    )
    overwrite_output: bool = field(
        default=False, metadata={"help": "Replace an --output-file that holds other samples."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for prefix in self.prefix:
            require_text(prefix, "--prefix")
        if self.prefixes_file is not None and self.prefix != [""]:
            raise ValueError("`--prefix` and `--prefixes-file` exclude one another: name one of them.")
        if self.show_steps and self.in_batches:
            raise ValueError(
                "`--show-steps` shows one text after another: leave it out, or name prefixes by `--prefix`."
            )
        self.require_trace_targets()
        if self.trace_targets and self.in_batches:
            raise ValueError(
                f"`{self.trace_targets[0]}` keeps the steps of single texts: name prefixes by `--prefix`, and leave "
                f"out `--prefixes-file` and `--output-file`."
            )
        if self.overwrite_output and self.output_file is None:
            raise ValueError("`--overwrite-output` belongs to `--output-file`: name that too.")

    @property
    def in_batches(self) -> bool:
        """Whether many samples are made at a time, in the order that suits best."""
        return self.prefixes_file is not None or self.output_file is not None

    def constraints(self) -> "Constraints | None":
        """What the new text must be like, or None.

        Raises:
            ValueError: see `Constraints`.
        """
        lists = self.banned_words, self.banned_strings, self.allowed_words
        if self.regex is None and not any(lists):
            if self.ignore_case:
                raise ValueError("`--ignore-case` is about words: pass `--banned-words` or another list with it.")
            return None
        from ..constraints import Constraints

        banned_words, banned_strings, allowed_words = map(tuple, lists)
        return Constraints(
            self.regex,
            banned_words,
            allowed_words or None,
            banned_strings=banned_strings,
            ignore_case=self.ignore_case,
        )


def run(argv: list[str]) -> int:
    """Runs `generate` with these arguments and returns the exit status 0; errors are raised."""
    (args,) = parse([GenerateArguments], argv, "generate")
    if args.in_batches:
        from .batches import run_batches

        return run_batches(args)
    constraints = args.constraints()
    model, tokenizer = load(args)

    from huggingface_hub.utils import tqdm

    from ..generation import generate_each
    from ..visualization.terminal import TerminalStreamer, printable

    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**31)
    streamer = TerminalStreamer(tokenizer) if args.show_steps else None
    recorder = args.recorder(tokenizer)
    # Only on a terminal, only after a second, and gone at the end.
    bar = tqdm(unit=" tokens", delay=1, leave=False, disable=True if streamer else None, file=sys.stderr)

    def progress(visible: int, total: int) -> None:
        bar.total = total
        bar.update(visible - bar.n)

    samples = generate_each(
        model,
        tokenizer,
        args.prefix,
        seed=seed,
        constraints=constraints,
        streamer=streamer,
        recorder=recorder,
        progress=progress,
        **args.settings(),
    )
    if args.seed is None:
        print(f"seed {seed}", file=sys.stderr)
    try:
        for place, (sample, _) in enumerate(samples):
            text = format_sample(sample, args.output_format, first=place == 0)
            bar.clear()
            print(printable(text) if sys.stdout.isatty() else text, flush=True)
    finally:
        bar.close()
        if streamer is not None:
            streamer.end()
    if recorder is not None:
        args.save_trace(recorder, seed)
    return 0


def format_sample(sample: "GeneratedText", output_format: str, first: bool) -> str:
    """A line of JSON, or the text, with an empty line before all but the first."""
    if output_format == "json":
        return sample.to_json()
    return sample.text if first else f"\n{sample.text}"
