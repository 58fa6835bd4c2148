"""The options of `generate`, `infill` and `edit` that are settings of `DiffusionGenerationConfig`."""

import dataclasses
import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..hub_access import require_repository
from .checkpoint_arguments import CheckpointArguments, load_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# As in `schedules`, `sampling`, `unmasking`, `remasking`, `generation_config`, `precision`: --help does not wait for
# torch.
CHOICES = {
    "dtype": ["float32", "bfloat16", "int8"],
    "preset": ["default", "quality", "fast", "greedy", "faithful", "guide"],
    "schedule": ["linear", "cosine", "exponential", "maskgit", "survival"],
    "reveal": ["planned", "ancestral"],
    "adaptive": ["threshold", "factor", "entropy_bound", "independent"],
    "sampling": ["greedy", "topk", "nucleus", "min_p", "typical"],
    "order": ["random", "confidence", "margin", "entropy", "left_to_right"],
    "order_from": ["distribution", "sample"],
    "sampler": ["ddim", "ddpm"],
    "remask": [
        "none",
        "renoise",
        "low_confidence",
        "remdm_cap",
        "remdm_rescale",
        "remdm_conf",
        "remdm_loop",
    ],
}


def setting(name: str, help_text: str, default: str) -> Any:
    """A setting of `DiffusionGenerationConfig`: left out, the checkpoint decides, and if it is silent, `default`."""
    metadata: dict[str, Any] = {"help": f"{help_text} (default: the checkpoint's, else {default})"}
    return field(default=None, metadata=metadata | ({"choices": CHOICES[name]} if name in CHOICES else {}))


@dataclass
class GenerationSettings(CheckpointArguments):
    """How text is generated; settings left out are those of the checkpoint's generation_config.json."""

    preset: str | None = field(
        default=None,
        metadata={"help": "Settings to start from; others go over them.", "choices": CHOICES["preset"]},
    )
    schedule: str | None = setting("schedule", "How the masked share falls over the steps.", "linear")
    steps: int | None = setting("steps", "Denoising steps.", "--steps-per-token for each")
    steps_per_token: float | None = setting("steps_per_token", "Above 1 of use with --remask only.", "1.0")
    reveal: str | None = setting(
        "reveal", "As many tokens a step as the schedule plans, or each token by chance.", "planned"
    )
    adaptive: str | None = setting("adaptive", "Reveal as many as the model is sure of.", "off")
    adaptive_bound: float | None = setting("adaptive_bound", "Of --adaptive.", "0.9, 1.0, 0.5 or 0.1")
    max_reveal: int | None = setting("max_reveal", "Of --adaptive: the most in one step.", "unlimited")
    block_length: int | None = setting(
        "block_length",
        "Finish so many tokens before the next ones; 0 is off.",
        "16 for a token a step, surest first; 32 for --adaptive independent",
    )
    order: str | None = setting("order", "What is revealed first.", "entropy")
    order_noise: float | None = setting("order_noise", "Gumbel noise on the order, annealed to 0.", "0.0")
    order_from: str | None = setting("order_from", "Rank positions before or after tokens are drawn.", "distribution")
    min_gap: int | None = setting("min_gap", "Least distance of positions revealed together.", "0")
    defer_end: bool | None = setting("defer_end", "Do not reveal ends of text first.", "true")
    sampling: str | None = setting("sampling", "How a token is chosen.", "nucleus")
    temperature: float | None = setting("temperature", "Below 1 safer, above 1 wilder; 0 is greedy.", "1.0")
    temperature_end: float | None = setting("temperature_end", "Where the temperature goes to.", "--temperature")
    top_k: int | None = setting("top_k", "Of --sampling topk: candidates; 0 is off.", "50")
    top_p: float | None = setting("top_p", "Of --sampling nucleus: probability kept, in (0, 1].", "0.9")
    min_p: float | None = setting("min_p", "Of --sampling min_p: share of the best one's probability.", "0.05")
    typical_p: float | None = setting("typical_p", "Of --sampling typical: probability kept, in (0, 1].", "0.9")
    remask: str | None = setting("remask", "What is masked again.", "none")
    final_pass: bool | None = setting("final_pass", "Predict every new token once more at the end.", "false")
    remask_eta: float | None = setting("remask_eta", "Strength of the remdm rules, in [0, 1].", "the rule's own")
    remask_t_on: float | None = setting("remask_t_on", "Of --remask remdm_loop: where it begins.", "0.55")
    remask_t_off: float | None = setting("remask_t_off", "Of --remask remdm_loop: where it ends.", "0.05")
    remask_alpha_on: float | None = setting("remask_alpha_on", "Of --remask remdm_loop: share visible in it.", "0.9")
    guidance_scale: float | None = setting(
        "guidance_scale", "Above 1 the given text weighs more; takes two forwards a step.", "1.0"
    )
    repetition_penalty: float | None = setting("repetition_penalty", "Above 1 against words that are there.", "1.0")
    no_repeat_ngram_size: int | None = setting(
        "no_repeat_ngram_size", "No n-gram of so many tokens comes twice; 0 is off.", "0"
    )
    sampler: str | None = setting("sampler", "Of a model of embedding diffusion: without or with chance.", "ddim")
    num_samples: int | None = setting("num_return_sequences", "Samples per text.", "1")
    batch_size: int | None = setting("batch_size", "Rows per call of the model; the text is the same.", "64")
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Format of the weights. int8 takes the extra `int8`, a CPU, and pays with --torch-compile.",
            "choices": CHOICES["dtype"],
        },
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the layers: half a minute once, faster for long runs."}
    )
    seed: int | None = field(
        default=None, metadata={"help": "Sample j of a text uses seed + j. (default: a new one, shown)"}
    )

    def __post_init__(self) -> None:
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"`--num-samples` must be a whole number of at least 1, not {self.num_samples}.")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise ValueError(f"`--seed` must be a whole number in [0, 2**32), not {self.seed}.")
        if self.dtype == "int8" and importlib.util.find_spec("torchao") is None:
            raise ValueError("`--dtype int8` needs another package: pip install 'diffusion-mlm[int8]'.")

    def settings(self) -> dict[str, Any]:
        """The settings of `DiffusionGenerationConfig` that were given."""
        others = {of.name for of in dataclasses.fields(CheckpointArguments)} | {"seed", "dtype", "torch_compile"}
        names = {of.name for of in dataclasses.fields(GenerationSettings)} - others
        names |= {"max_new_tokens", "stride"}  # of those verbs that have them
        given = {name: value for name, value in dataclasses.asdict(self).items() if name in names}
        given["num_return_sequences"] = given.pop("num_samples")
        return {name: value for name, value in given.items() if value is not None}

    def checkpoint_to_load(self) -> str:
        """The checkpoint, once settings and repository have been found possible; nothing heavy is loaded.

        Raises:
            ValueError: a setting is impossible, or the checkpoint is not there.
        """
        from ..generation_config import DiffusionGenerationConfig

        DiffusionGenerationConfig(**self.settings())
        require_repository(self.checkpoint_name, "model", "--checkpoint")
        return self.checkpoint_name


def load(args: GenerationSettings) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The generator that the options name, on the GPU if there is one.

    Raises:
        ValueError, ImportError: see `load_checkpoint`, `set_precision` and `compile_layers`.
    """
    model, tokenizer = load_checkpoint(args.checkpoint_to_load(), args.trust_remote_code)
    if args.dtype == "float32" and not args.torch_compile:
        return model, tokenizer
    from ..precision import compile_layers, set_precision

    set_precision(model, args.dtype)
    return compile_layers(model) if args.torch_compile else model, tokenizer


def require_text(text: str, argument: str) -> None:
    """Raises ValueError for what no encoding can hold, which a terminal may pass on."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`{argument}` is {text!r}, which is no valid text at character {error.start} (a lone surrogate, or a "
            f"byte outside the encoding of the terminal). Remove it."
        ) from None
