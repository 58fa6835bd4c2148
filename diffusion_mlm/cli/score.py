"""`diffusion-mlm score`: how likely sentences are, and which is the likeliest."""

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..hub_access import require_repository
from .checkpoint_arguments import CheckpointArguments, load_checkpoint
from .generation_settings import require_text
from .parsing import parse

if TYPE_CHECKING:
    from ..evaluation.scoring import ScoredText

SCORES = ("bound", "chain", "importance")  # as in `evaluation.text_nats`: --help is quick


@dataclass
class ScoreArguments(CheckpointArguments):
    """What `score` takes."""

    texts: list[str] = field(default_factory=list, metadata={"help": "Sentences, each in quotation marks."})
    prefix: str = field(
        default="",
        metadata={"help": "Stands before each of them, given and not scored; a space between belongs to one."},
    )
    beginning: bool = field(
        default=False, metadata={"help": "They are beginnings: what follows is left open, and no end is scored."}
    )
    estimator: str = field(
        default="bound",
        metadata={
            "help": "`bound`: the likelihood bound; `chain`: exact, of writing from left to right; `importance`: a "
            "tighter bound by several random orders.",
            "choices": list(SCORES),
        },
    )
    draws: int = field(default=64, metadata={"help": "Of --estimator bound: masks per text."})
    orders: int = field(default=8, metadata={"help": "Of --estimator importance: random orders."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens per row. (default: as in training, else what the model reads, to 512)"}
    )
    batch_size: int = field(default=64, metadata={"help": "Rows per call of the model; the scores are the same."})
    seed: int = field(default=0, metadata={"help": "Of the masks."})

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError("`--texts` is missing: give `score` one or more sentences, each in quotation marks.")
        for text in self.texts:
            require_text(text, "--texts")
        require_text(self.prefix, "--prefix")
        for argument, value, least in (
            ("draws", self.draws, 2),
            ("orders", self.orders, 1),
            ("batch-size", self.batch_size, 1),
            ("max-length", self.max_length, 3),
        ):
            if value is not None and value < least:
                raise ValueError(f"`--{argument}` must be a whole number of at least {least}, not {value}.")


def run(argv: list[str]) -> int:
    """Runs `score` with these arguments and returns the exit status 0; errors are raised."""
    (args,) = parse([ScoreArguments], argv, "score", positional="texts")
    require_repository(args.checkpoint_name, "model", "--checkpoint")
    model, tokenizer = load_checkpoint(args.checkpoint_name, args.trust_remote_code)

    from ..evaluation.scoring import score
    from ..visualization.terminal import printable

    scored = score(
        model,
        tokenizer,
        args.texts,
        prefix=args.prefix,
        beginning=args.beginning,
        estimator=args.estimator,
        draws=args.draws,
        orders=args.orders,
        max_length=args.max_length,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    lines = [text.to_json() for text in scored] if args.output_format == "json" else table(scored)
    for line in lines:
        print(printable(line) if sys.stdout.isatty() else line)
    return 0


def table(scored: "list[ScoredText]") -> list[str]:
    """The texts, the likeliest first, and by how much each of the others is less likely."""
    best, *others = sorted(scored, key=lambda text: text.nats)
    lines = [f"{'nats':>9} {'per token':>9} {'bits/byte':>9} {'tokens':>6} {'less likely by':>18}  text"]
    for text in (best, *others):
        bits = "" if text.bits_per_byte is None else f"{text.bits_per_byte:.3f}"
        nats, error = text.nats_above(best)
        above = "" if text is best else f"{nats:.2f}" + (f" ± {error:.2f}" if error else "")
        lines.append(
            f"{text.nats:9.2f} {text.nats_per_token:9.3f} {bits:>9} {text.num_tokens:6} {above:>18}  "
            + " ".join(text.text.split())
        )
    unknown = sum(text.num_unknown for text in scored)
    if unknown:
        lines.append(f"note: words unknown to the tokenizer are not scored: {unknown}")
    if best.scores_end:
        lines.append("note: the end of each text is scored; --beginning leaves open what follows")
    return lines
