"""What `train.py` takes beside the training arguments: the model and the data."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from ..embedding_diffusion.arguments import GaussianArguments
from ..hub_access import looks_like_path
from ..lora import require_peft
from ..presets import PRESETS
from ..time_conditioning import TIME_CONDITIONINGS
from ..training_args import DiffusionTrainingArguments

PACKINGS = ("packed", "one_per_row")
# What `presets.preset_config` takes by these names.
ENCODER_SETTINGS = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "qk_norm",
    "time_conditioning",
    "time_steps",
)


@dataclass
class ModelArguments(GaussianArguments):
    """The model that is trained, and its tokenizer."""

    model_name: str | None = field(
        default=None,
        metadata={
            "help": "Masked language model to fine-tune: a directory or a Hub id. Default: the small story model."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Train a model of this size from scratch instead: a RoBERTa as published, or one of today's parts "
            "(rotary positions, RMSNorm, SwiGLU).",
            "choices": list(PRESETS),
        },
    )
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Layers, instead of the preset's."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Heads, instead of the preset's."})
    hidden_size: int | None = field(default=None, metadata={"help": "Width, instead of the preset's."})
    qk_norm: bool = field(default=False, metadata={"help": "Normalise queries and keys; presets modern-* only."})
    time_conditioning: str = field(
        default="none",
        metadata={
            "help": "How a model from scratch is told the share of masks: sinusoidal or learned (added to the token "
            "embeddings) or adaln (scales and shifts every norm).",
            "choices": list(TIME_CONDITIONINGS),
        },
    )
    time_steps: int = field(
        default=128, metadata={"help": "Rows of the learned table of times; the time 1 in steps of the sinusoids."}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "`bpe` or `char` (trained on the training text), a directory or a Hub id. Default: the model's."
        },
    )
    vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "Vocabulary of `--tokenizer bpe`. Default: the power of two nearest to the square root of the "
            "text's bytes, from 512 to 32768."
        },
    )
    dropout: float | None = field(
        default=None,
        metadata={"help": "Dropout of a model from scratch. Default: 0.1 for roberta-*, 0 for modern-* (attention)."},
    )
    attention_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Dropout of attention of a model that is fine-tuned. Default: its own; 0 is much faster on a CPU."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, ...: the model's by default."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Let code in the model's repository run."})
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Train LoRA matrices of this rank beside the frozen model; the final model has them merged."
        },
    )
    lora_alpha: float | None = field(default=None, metadata={"help": "Scale of LoRA. Default: twice the rank."})
    lora_targets: list[str] | None = field(
        default=None, metadata={"help": "Linear layers that get LoRA, such as query value. Default: all but the last."}
    )

    def __post_init__(self) -> None:
        self.require_own_options()
        if self.noise_objective == "eps_mse" and self.model_name is None and self.preset is None:
            self.preset = "roberta-tiny"  # there is nothing to start from
        if self.noise_objective == "eps_mse" and self.model_name is not None:
            raise ValueError(
                f"`--noise-objective` is 'eps_mse', which predicts noise and has no use for what {self.model_name} "
                f"knows: name a `--preset` instead of `--model-name`."
            )
        if self.process == "gaussian" and self.time_conditioning != "none":
            raise ValueError(
                "`--time-conditioning` belongs to masks: a Gaussian process tells its noise level anyway."
            )
        if self.process == "gaussian" and self.lora_rank is not None:
            raise ValueError("`--lora-rank` and `--process gaussian` exclude one another: all of it is trained.")
        if self.model_name is not None and self.preset is not None:
            raise ValueError(
                f"`--model-name` ({self.model_name}) and `--preset` ({self.preset}) exclude one another: fine-tune a "
                f"model or train one from scratch."
            )
        if self.preset is None and self.tokenizer is not None:
            raise ValueError(
                f"`--tokenizer` is {self.tokenizer!r}, but a model that is fine-tuned keeps its own: add `--preset`."
            )
        if self.preset is None:
            usual = {item.name: item.default for item in fields(self)}
            for name in ENCODER_SETTINGS:
                if getattr(self, name) != usual[name]:
                    raise ValueError(
                        f"`--{name.replace('_', '-')}` is {getattr(self, name)!r}, but a model that is fine-tuned "
                        f"keeps its own: add `--preset`."
                    )
        if self.lora_rank is None and (self.lora_alpha is not None or self.lora_targets is not None):
            raise ValueError("`--lora-alpha` and `--lora-targets` need `--lora-rank`.")
        if self.lora_rank is not None:
            if self.lora_rank < 1:
                raise ValueError(f"`--lora-rank` must be at least 1, not {self.lora_rank}.")
            if self.preset is not None:
                raise ValueError(
                    f"`--lora-rank` and `--preset` ({self.preset}) exclude one another: a model from scratch has "
                    f"nothing yet to stay close to."
                )
            try:
                require_peft()
            except ImportError as error:
                raise ValueError(f"`--lora-rank` is {self.lora_rank}. {error}") from None
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must lie in [0, 1), not {value}.")
        for name in ("model_name", "tokenizer"):
            value = getattr(self, name)
            if value is not None and looks_like_path(value) and not Path(value).is_dir():
                raise ValueError(f"`--{name.replace('_', '-')}` is {value!r}, and there is no such directory.")


@dataclass
class DataArguments:
    """The text to train on: a data set, local files, or the built-in stories if neither is named."""

    dataset: str | None = field(default=None, metadata={"help": "Data set: a Hub id or a directory."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the data set to train on."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on. Default: a share of the training split."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the data set while training; needs --max-steps."})
    train_file: list[str] | None = field(
        default=None, metadata={"help": "Local files: text, .jsonl, .json, .csv, .tsv or .parquet, also .gz."}
    )
    eval_file: list[str] | None = field(default=None, metadata={"help": "Local files to evaluate on."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    text_unit: str = field(
        default="line",
        metadata={"help": "One text of a plain text file.", "choices": ["line", "paragraph", "file"]},
    )
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files."})
    validation: float = field(
        default=0.02, metadata={"help": "Texts held out to evaluate on: a share below 1, or a number."}
    )
    num_stories: int = field(default=20_000, metadata={"help": "Built-in stories to train on."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens per row. Default: 128, 80 for the stories, or what the model takes."}
    )
    packing: str | None = field(
        default=None,
        metadata={
            "help": "`packed` cuts joined texts into full rows; `one_per_row` fills each with `</s>`, so that the "
            "model learns where texts end. Default: packed, but one_per_row for the stories and prompts.",
            "choices": list(PACKINGS),
        },
    )
    join_texts: bool = field(default=False, metadata={"help": "Packed: put no `</s>` between two texts."})
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of prompts, which are never masked; the text column is the response."}
    )

    def __post_init__(self) -> None:
        if self.dataset is not None and self.train_file:
            raise ValueError(f"`--dataset` ({self.dataset}) and `--train-file` exclude one another: name one of them.")
        for name in (*(self.train_file or []), *(self.eval_file or [])):
            if not Path(name).is_file():
                raise ValueError(f"The file {name!r} of `--train-file` or `--eval-file` does not exist.")
        if self.num_stories < 1:
            raise ValueError(f"`--num-stories` must be at least 1, not {self.num_stories}.")
        if self.validation < 0:
            raise ValueError(f"`--validation` must be a share below 1 or a number of texts, not {self.validation}.")
        if self.max_length is not None and self.max_length < 3:
            raise ValueError(f"`--max-length` must be at least 3 (<s>, one token, </s>), not {self.max_length}.")
        if self.prompt_column is not None and not self.train_file:
            raise ValueError("`--prompt-column` needs `--train-file`: pairs are read from local files.")
        if self.packing is None:
            one_per_row = self.is_stories or self.prompt_column is not None
            self.packing = "one_per_row" if one_per_row else "packed"

    @property
    def is_stories(self) -> bool:
        """Whether the text is the built-in stories."""
        return self.dataset is None and not self.train_file


@dataclass
class TrainCommandArguments(DiffusionTrainingArguments):
    """The training arguments of the command line, with short names for the most used."""

    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the data.", "aliases": ["--epochs"]})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Rows per step and device in training.", "aliases": ["--batch-size"]}
    )
    eval_strategy: str = field(
        default="epoch",
        metadata={"help": "When the bound is evaluated.", "choices": ["no", "steps", "epoch"]},
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to go on from: `true` for the newest complete one of `--output-dir`, `auto` for that "
            "or none, or a directory."
        },
    )
    auto_find_batch_size: bool = field(
        default=False,
        metadata={"help": "Out of memory: take fewer rows at a time and more accumulation, the same global batch."},
    )
    overwrite_output: bool = field(
        default=False, metadata={"help": "Replace the checkpoints that `--output-dir` already holds."}
    )
