"""`diffusion-mlm generate`: continues prefixes and prints texts, one JSON object a line, or the text as it forms."""

import dataclasses
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hub_access import require_repository
from .parsing import parse

if TYPE_CHECKING:
    from ..generation import GeneratedText

FINAL_MODEL = "results/final-model"

# As in `schedules`, `sampling`, `unmasking` and `denoising`, which import torch: --help does not wait for it.
CHOICES = {
    "schedule": ["linear", "cosine", "exponential", "maskgit"],
    "sampling": ["greedy", "topk", "nucleus"],
    "order": ["random", "confidence", "margin", "entropy", "left_to_right"],
    "order_from": ["distribution", "sample"],
    "remask": ["none", "renoise"],
}


def _setting(name: str, help_text: str, default: str) -> Any:
    """A setting of `DiffusionGenerationConfig`: left out, the checkpoint decides, and if it is silent, `default`."""
    metadata: dict[str, Any] = {"help": f"{help_text} (default: the checkpoint's, else {default})"}
    return field(default=None, metadata=metadata | ({"choices": CHOICES[name]} if name in CHOICES else {}))


@dataclass
class GenerateArguments:
    """What `generate` takes; settings left out are those of the checkpoint's generation_config.json."""

    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": f"Directory or Hub id. (default: {FINAL_MODEL} if it exists, else the package's story generator)"
        },
    )
    prefix: list[str] = field(
        default_factory=lambda: [""], metadata={"help": "Text to continue; several are allowed."}
    )
    schedule: str | None = _setting("schedule", "How the masked share falls over the steps.", "linear")
    sampling: str | None = _setting("sampling", "How a token is chosen.", "nucleus")
    temperature: float | None = _setting("temperature", "Below 1 safer, above 1 wilder; 0 is greedy.", "1.0")
    top_k: int | None = _setting("top_k", "Of --sampling topk: candidates; 0 is off.", "50")
    top_p: float | None = _setting("top_p", "Of --sampling nucleus: probability kept, in (0, 1].", "0.9")
    steps: int | None = _setting("steps", "Denoising steps.", "one per new token")
    max_new_tokens: int | None = _setting("max_new_tokens", "New tokens.", "the row length of training, or 64")
    order: str | None = _setting("order", "What is revealed first.", "confidence")
    order_noise: float | None = _setting("order_noise", "Gumbel noise on the order, annealed to 0.", "0.0")
    order_from: str | None = _setting("order_from", "Rank positions before or after tokens are drawn.", "distribution")
    remask: str | None = _setting("remask", "What is masked again.", "none")
    num_samples: int | None = _setting("num_return_sequences", "Samples per prefix.", "1")
    batch_size: int | None = _setting("batch_size", "Rows per call of the model; the text is the same.", "64")
    seed: int | None = field(
        default=None, metadata={"help": "Sample j of a prefix uses seed + j. (default: a new one, shown)"}
    )
    output_format: str = field(
        default="text", metadata={"help": "json prints one object a line.", "choices": ["text", "json"]}
    )
    show_steps: bool = field(default=False, metadata={"help": "Watch the text form, one sample after another."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Let code in the repository run."})

    def __post_init__(self) -> None:
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"`--num-samples` must be a whole number of at least 1, not {self.num_samples}.")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise ValueError(f"`--seed` must be a whole number in [0, 2**32), not {self.seed}.")
        for prefix in self.prefix:
            try:
                prefix.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"`--prefix` is {prefix!r}, which is no valid text at character {error.start} (a lone surrogate, "
                    f"or a byte outside the encoding of the terminal). Remove it."
                ) from None

    def settings(self) -> dict[str, Any]:
        """The settings of `DiffusionGenerationConfig` that were given."""
        others = ("checkpoint", "prefix", "seed", "output_format", "show_steps", "trust_remote_code")
        given = {name: value for name, value in dataclasses.asdict(self).items() if name not in others}
        given["num_return_sequences"] = given.pop("num_samples")
        return {name: value for name, value in given.items() if value is not None}


def default_checkpoint() -> str:
    """What `generate` takes when no checkpoint is named."""
    from ..checkpoints import STORIES_GENERATOR

    return FINAL_MODEL if (Path(FINAL_MODEL) / "config.json").is_file() else STORIES_GENERATOR


def run(argv: list[str]) -> int:
    """Runs `generate` with these arguments and returns the exit status 0; errors are raised."""
    (args,) = parse([GenerateArguments], argv, "generate")

    from ..generation_config import DiffusionGenerationConfig

    DiffusionGenerationConfig(**args.settings())  # impossible values are refused before anything is loaded
    checkpoint = args.checkpoint if args.checkpoint is not None else default_checkpoint()
    require_repository(checkpoint, "model", "--checkpoint")

    import torch
    from huggingface_hub.utils import tqdm
    from transformers.utils import logging as transformers_logging

    from ..generation import generate_each, load_generator
    from ..visualization.terminal import TerminalStreamer, printable

    transformers_logging.disable_progress_bar()  # of the weights; it silences every bar of the Hub's library too
    model, tokenizer = load_generator(checkpoint, trust_remote_code=args.trust_remote_code)
    transformers_logging.enable_progress_bar()
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**31)
    streamer = TerminalStreamer(tokenizer) if args.show_steps else None
    # Only on a terminal, only after a second, and gone at the end.
    bar = tqdm(unit=" tokens", delay=1, leave=False, disable=True if streamer else None, file=sys.stderr)

    def progress(visible: int, total: int) -> None:
        bar.total = total
        bar.update(visible - bar.n)

    samples = generate_each(
        model, tokenizer, args.prefix, seed=seed, streamer=streamer, progress=progress, **args.settings()
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
    return 0


def format_sample(sample: "GeneratedText", output_format: str, first: bool) -> str:
    """A line of JSON, or the text, with an empty line before all but the first."""
    if output_format == "json":
        return sample.to_json()
    return sample.text if first else f"\n{sample.text}"
