"""`diffusion-mlm infill` and `diffusion-mlm edit`: fill the blanks of texts, or write a share of them anew."""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .generation_settings import GenerationSettings, load, require_text
from .parsing import parse
from .trace_arguments import TraceArguments

if TYPE_CHECKING:
    from ..editing import EditedText
    from ..infilling import InfilledText
    from ..tracing import TraceRecorder


@dataclass
class InfillArguments(TraceArguments, GenerationSettings):
    """What `infill` takes."""

    text: list[str] = field(
        default_factory=list,
        metadata={"help": "Text with blanks: <mask> is one token, <mask:3> three, <mask:2-6> two to six."},
    )
    draws: int = field(default=16, metadata={"help": "Masks per text when lengths are compared by likelihood."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_trace_targets()
        _require_texts(self.text, "infill")
        if self.draws < 1:
            raise ValueError(f"`--draws` must be a whole number of at least 1, not {self.draws}.")


@dataclass
class EditArguments(TraceArguments, GenerationSettings):
    """What `edit` takes."""

    text: list[str] = field(default_factory=list, metadata={"help": "Text to vary; several are allowed."})
    strength: float = field(default=0.4, metadata={"help": "Share of the tokens that are written anew, in (0, 1]."})
    protect: list[str] = field(default_factory=list, metadata={"help": "Pieces of text that stay as they are."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_trace_targets()
        _require_texts(self.text, "edit")
        if not 0 < self.strength <= 1:
            raise ValueError(f"`--strength` must lie in (0, 1], not {self.strength}: it is a share of the tokens.")


def _require_texts(texts: list[str], verb: str) -> None:
    if not texts:
        raise ValueError(f"`--text` is missing: give `{verb}` a text, in quotation marks.")
    for text in texts:
        require_text(text, "--text")


def run_infill(argv: list[str]) -> int:
    """Runs `infill` with these arguments and returns the exit status 0; errors are raised."""
    (args,) = parse([InfillArguments], argv, "infill", positional="text")
    model, tokenizer = load(args)

    from ..infilling import infill

    recorder = args.recorder(tokenizer)
    options = {"draws": args.draws, "recorder": recorder, **args.settings()}
    return _print(args, recorder, lambda seed: infill(model, tokenizer, args.text, seed=seed, **options))


def run_edit(argv: list[str]) -> int:
    """Runs `edit` with these arguments and returns the exit status 0; errors are raised."""
    (args,) = parse([EditArguments], argv, "edit", positional="text")
    model, tokenizer = load(args)

    from ..editing import edit

    recorder = args.recorder(tokenizer)
    options = {"strength": args.strength, "protect": args.protect, "recorder": recorder, **args.settings()}
    return _print(args, recorder, lambda seed: edit(model, tokenizer, args.text, seed=seed, **options))


def _print(
    args: InfillArguments | EditArguments,
    recorder: "TraceRecorder | None",
    make: Callable[[int], "Sequence[InfilledText | EditedText]"],
) -> int:
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**31)
    if args.seed is None:
        print(f"seed {seed}", file=sys.stderr)

    from ..visualization.terminal import printable

    for place, sample in enumerate(make(seed)):
        text = sample.to_json() if args.output_format == "json" else ("\n" if place else "") + sample.text
        print(printable(text) if sys.stdout.isatty() else text, flush=True)
    if recorder is not None:
        args.save_trace(recorder, seed)
    return 0
