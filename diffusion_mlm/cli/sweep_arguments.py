"""The options of `diffusion-mlm sweep`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .checkpoint_arguments import CheckpointArguments
from .evaluate import TEXT_UNITS
from .generation_settings import CHOICES, require_text

# What is tried if nothing is named.
DEFAULT_PRESETS = CHOICES["preset"]
DEFAULT_VALUES: dict[str, list[Any]] = {
    "schedule": ["linear", "cosine"],
    "steps": [8, 16, 32, 64],
    "order": ["random", "entropy"],
}
GAUSSIAN_VALUES: dict[str, list[Any]] = {"steps": [8, 16, 32, 64, 128], "sampler": ["ddim", "ddpm"]}


def _values(help_text: str, choices: Sequence[str] = ()) -> dict[str, Any]:
    return {"help": help_text} | ({"choices": list(choices)} if choices else {})


@dataclass
class SweptSettings:
    """Values to try, in every combination; what is not named is as in the preset `default`."""

    schedule: list[str] | None = field(
        default=None, metadata=_values("How the masked share falls over the steps.", CHOICES["schedule"])
    )
    steps: list[int] | None = field(default=None, metadata=_values("Denoising steps."))
    steps_per_token: list[float] | None = field(
        default=None, metadata=_values("Steps for each new token, instead of --steps.")
    )
    adaptive: list[str] | None = field(
        default=None, metadata=_values("Reveal as many as the model is sure of.", ["none", *CHOICES["adaptive"]])
    )
    adaptive_bound: list[float] | None = field(default=None, metadata=_values("Of --adaptive."))
    block_length: list[int] | None = field(
        default=None, metadata=_values("Finish so many tokens before the next ones; 0 is off.")
    )
    order: list[str] | None = field(default=None, metadata=_values("What is revealed first.", CHOICES["order"]))
    min_gap: list[int] | None = field(default=None, metadata=_values("Least distance of positions revealed together."))
    sampler: list[str] | None = field(
        default=None, metadata=_values("Of a model of --process gaussian: without or with chance.", CHOICES["sampler"])
    )
    sampling: list[str] | None = field(default=None, metadata=_values("How a token is chosen.", CHOICES["sampling"]))
    temperature: list[float] | None = field(
        default=None, metadata=_values("Below 1 safer, above 1 wilder; 0 is greedy.")
    )
    top_k: list[int] | None = field(default=None, metadata=_values("Of --sampling topk."))
    top_p: list[float] | None = field(default=None, metadata=_values("Of --sampling nucleus."))
    min_p: list[float] | None = field(default=None, metadata=_values("Of --sampling min_p."))
    typical_p: list[float] | None = field(default=None, metadata=_values("Of --sampling typical."))
    remask: list[str] | None = field(default=None, metadata=_values("What is masked again.", CHOICES["remask"]))
    remask_eta: list[float] | None = field(default=None, metadata=_values("Strength of the remdm rules."))

    def named(self) -> dict[str, list[Any]]:
        """The values of each setting that is named."""
        given = {of.name: getattr(self, of.name) for of in fields(SweptSettings)}
        given = {name: list(values) for name, values in given.items() if values}
        if "adaptive" in given:
            given["adaptive"] = [None if rule == "none" else rule for rule in given["adaptive"]]
        return given


@dataclass
class SweepArguments(CheckpointArguments, SweptSettings):
    """What `sweep` takes."""

    preset: list[str] | None = field(
        default=None,
        metadata=_values(
            "Presets, tried as they are beside the combinations. If no setting is named at all: all presets, and two "
            "schedules and orders in 8 to 64 steps; or both samplers of a model of --process gaussian in 8 to 128.",
            CHOICES["preset"],
        ),
    )
    num_samples: int = field(default=64, metadata={"help": "Texts per setting and prefix."})
    prefix: list[str] = field(default_factory=lambda: [""], metadata={"help": "Texts to continue."})
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": "New tokens. (default: the checkpoint's, else the row length of training, or 64)"},
    )
    batch_size: int = field(default=64, metadata={"help": "Rows per call of the model; the figures are the same."})
    seed: int = field(default=0, metadata={"help": "Of the texts; every setting gets the same."})
    judge: str | None = field(
        default=None,
        metadata={"help": "A causal language model, directory or Hub id. (default: the grammar of built-in stories)"},
    )
    eval_file: list[str] = field(
        default_factory=list, metadata={"help": "Of --judge: held-out text to compare with, as for `evaluate`."}
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    text_unit: str = field(
        default="line", metadata={"help": "One text of a plain text file.", "choices": list(TEXT_UNITS)}
    )
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files."})
    output_dir: str = field(
        default="results/sweep",
        metadata={"help": "Where figures and picture go; the same command goes on where it was interrupted."},
    )
    overwrite_output: bool = field(default=False, metadata={"help": "Replace another sweep in --output-dir."})
    picture: bool = field(default=True, metadata={"help": "Draw frontier.png; needs matplotlib."})
    write_best: bool = field(
        default=False, metadata={"help": "Write the best setting into the checkpoint's generation_config.json."}
    )
    max_forwards: float | None = field(
        default=None,
        metadata={"help": "The best is chosen among settings of so many forwards per text. (default: all)"},
    )

    def __post_init__(self) -> None:
        for argument, value, least in (
            ("num-samples", self.num_samples, 2),
            ("batch-size", self.batch_size, 1),
            ("max-new-tokens", self.max_new_tokens, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"`--{argument}` must be a whole number of at least {least}, not {value}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"`--seed` must be a whole number in [0, 2**32), not {self.seed}.")
        if self.max_forwards is not None and not self.max_forwards >= 1:
            raise ValueError(f"`--max-forwards` must be a number of at least 1, not {self.max_forwards:g}.")
        if not self.prefix:
            raise ValueError("`--prefix` is named without a text: leave it out to write from nothing.")
        for prefix in self.prefix:
            require_text(prefix, "--prefix")
        if (self.judge is None) != (not self.eval_file):
            missing, given = ("--judge", "--eval-file") if self.judge is None else ("--eval-file", "--judge")
            raise ValueError(f"`{given}` is named and `{missing}` is not: the one needs the other.")
        for name in self.eval_file:
            if not Path(name).is_file():
                raise ValueError(f"`--eval-file` is {name!r}, and there is no such file.")

    def values(self, is_gaussian: bool) -> dict[str, list[Any]]:
        """The values that are combined."""
        named = self.named()
        return named if named or self.preset else dict(GAUSSIAN_VALUES if is_gaussian else DEFAULT_VALUES)

    def presets(self, is_gaussian: bool) -> list[str]:
        """The presets that are tried as they are; they say how masks go."""
        return list(self.preset or ([] if self.named() or is_gaussian else DEFAULT_PRESETS))
