"""Arguments of training: those of transformers, with other defaults, and what is masked and scored."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_xla_available

from .corruption import GUIDE_LEVELS, MASKINGS, ForwardProcess
from .objectives import OBJECTIVES
from .rate_distributions import RATE_DISTRIBUTIONS
from .schedules import SCHEDULES, get_schedule
from .token_weights import TOKEN_WEIGHTS
from .trackers import require_trackers


@dataclass
class DiffusionTrainingArguments(TrainingArguments):
    """`TrainingArguments` for masked diffusion.

    Changed defaults: `output_dir` "results/run" (was "trainer_output"), `learning_rate` 1e-4 (was 5e-5), `adam_beta2`
    0.98 (was 0.999), `weight_decay` 0.01 (was 0), `warmup_steps` 0.06, a share (was 0), `lr_scheduler_type` "cosine"
    (was "linear"), `per_device_train_batch_size` 32 (was 8), `per_device_eval_batch_size` 32 (was 8), `logging_steps`
    50 (was 500), `save_total_limit` 2 (was none), `remove_unused_columns` False (was True: the prompt length would
    vanish), `prediction_loss_only` True (was False: the logits of a whole data set fill any memory) and
    `logging_nan_inf_filter` False (was True: a loss that is not finite must be seen).

    With `early_stopping_patience` or `load_best_model_at_end` whatever is evaluated is saved: `save_strategy`, unless
    it is "best", and `save_steps` become those of the evaluation.

    Raises:
        ValueError: a value is out of range; or `label_smoothing_factor` or `remove_unused_columns` is set; or the
            package of a tracker of `report_to` is not installed.
    """

    output_dir: str | None = field(
        default="results/run", metadata={"help": "Where checkpoints go; the final model goes to `final-model` beside."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Second-moment decay of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    warmup_steps: float = field(default=0.06, metadata={"help": "Warm-up: a share of all steps below 1, else steps."})
    lr_scheduler_type: str = field(  # type: ignore[assignment]  # an enum in the parent, which takes its values too
        default="cosine", metadata={"help": "How the learning rate falls."}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows per step and device in training."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Rows per step and device in evaluation."})
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Keep False: prompts need a column."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Keep True: logits of a whole set are huge."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Keep False: a NaN loss must be seen."})

    optim: str = field(  # type: ignore[assignment]  # an enum in the parent, which does not know `muon`
        default="adamw_torch_fused",
        metadata={"help": "Optimizer: any of transformers', or `muon` (Muon for matrices, AdamW for the rest)."},
    )

    # What is masked
    schedule: str = field(
        default="linear",
        metadata={"help": "How the mask rate grows with diffusion time.", "choices": list(SCHEDULES)},
    )
    masking: str = field(
        default="exact",
        metadata={
            "help": "Exact counts, independent (bernoulli) tokens, or fixed levels.",
            "choices": list(MASKINGS),
        },
    )
    mask_levels: list[float] = field(
        default_factory=lambda: list(GUIDE_LEVELS), metadata={"help": "The mask rates of `masking=levels`."}
    )
    levels_per: str = field(
        default="row",
        metadata={"help": "Whether each row draws a level or the whole batch has one.", "choices": ["row", "batch"]},
    )
    prefix_length: str = field(
        default="random", metadata={"help": "Leading tokens never masked: `random` (per row) or a number."}
    )
    no_prefix_share: float = field(default=0.3, metadata={"help": "Share of rows without prefix under `random`."})
    span_length: float = field(default=1.0, metadata={"help": "Mean length of spans masked together; 1: tokens."})

    rate_distribution: str = field(
        default="uniform",
        metadata={
            "help": "Law of the mask rate. uniform: as the schedule says; clipped: `--rate-parameters LOW HIGH`; "
            "beta: `--rate-parameters A B`; importance: learnt, rates of high loss more often. Under elbo all but "
            "clipped estimate the same bound.",
            "choices": list(RATE_DISTRIBUTIONS),
        },
    )
    rate_parameters: list[float] = field(
        default_factory=list, metadata={"help": "The two numbers of the rate distributions clipped and beta."}
    )
    max_mask_rate: float = field(
        default=1.0, metadata={"help": "Rates above it become it (0.999 in some systems); 1 clips nothing."}
    )
    stratified_times: bool = field(
        default=True,
        metadata={"help": "Spread the times of a batch evenly (low discrepancy) instead of drawing each for itself."},
    )
    token_weights: str | None = field(
        default=None,
        metadata={
            "help": "rare: mask tokens that the training set holds seldom more often; the loss is then no bound.",
            "choices": list(TOKEN_WEIGHTS),
        },
    )
    random_length_share: float = field(
        default=0.0, metadata={"help": "Share of the rows that are cut to a random length; 0.01 is usual."}
    )

    mask_end_token: bool = field(
        default=False,
        metadata={"help": "Mask and learn `</s>`: for rows of one text filled with `</s>`, not for packed blocks."},
    )

    # What is scored
    objective: str = field(
        default="elbo",
        metadata={
            "help": "elbo: the likelihood bound; simple: mean over masked tokens; full: over all tokens.",
            "choices": list(OBJECTIVES),
        },
    )
    # What is kept of the weights
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Above 0: a running mean of the weights that keeps this share each step (0.999, 0.9999) is "
            "evaluated and becomes the trained model."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations without a better bound, and keep the best model."},
    )

    eval_draws: int = field(default=8, metadata={"help": "Masks drawn per row when the bound is evaluated."})

    # What is resumed
    allow_inexact_resume: bool = field(
        default=False,
        metadata={"help": "Go on from a checkpoint of other settings, data, versions or processes."},
    )

    # What is shown
    sample_prefixes: list[str] = field(
        default_factory=lambda: [""], metadata={"help": "Prefixes that are continued after each evaluation."}
    )

    def __post_init__(self) -> None:
        self.schedule = get_schedule(self.schedule).name
        for name, choices in (("masking", MASKINGS), ("objective", OBJECTIVES), ("levels_per", ("row", "batch"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if self.prefix_length != "random" and not str(self.prefix_length).isdecimal():
            raise ValueError(f"`prefix_length` must be 'random' or a whole number >= 0, not {self.prefix_length!r}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"`learning_rate` must be a finite number above 0, not {self.learning_rate!r}.")
        if not self.mask_levels or not all(0 < level <= 1 for level in self.mask_levels):
            raise ValueError(f"`mask_levels` must be mask rates in (0, 1], not {self.mask_levels!r}.")
        ForwardProcess(mask_id=0, **self.masking_settings())  # refuses what is left
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)!r}.")
        if self.max_steps < 1 and self.max_steps != -1:
            raise ValueError(f"`max_steps` must be at least 1, or -1 for `num_train_epochs`, not {self.max_steps!r}.")
        if not 0 < self.num_train_epochs < math.inf:
            raise ValueError(f"`num_train_epochs` must be a finite number above 0, not {self.num_train_epochs!r}.")
        for name in ("logging_steps", "save_steps", "eval_steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be above 0 (below 1: a share of all steps), not {value!r}.")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be a finite number >= 0, not {getattr(self, name)!r}.")
        if self.eval_draws < 1:
            raise ValueError(f"`eval_draws` must be at least 1, not {self.eval_draws!r}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"`seed` must lie in [0, 2**32), not {self.seed!r}.")
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` must be 0, not {self.label_smoothing_factor!r}: it would break the bound."
            )
        if self.remove_unused_columns:
            raise ValueError(
                "`remove_unused_columns` must be False, not True: the column `prompt_length` would vanish unseen and "
                "prompts would be masked. Other columns do no harm."
            )
        self._check_recipe()
        fsdp = str(self.fsdp).lower()  # type: ignore[has-type]
        if fsdp in ("true", "false"):  # as a YAML file has it; transformers knows the bare flag only
            self.fsdp = fsdp == "true" or None  # type: ignore[assignment]
        trackers = self.report_to  # type: ignore[has-type]
        if isinstance(trackers, str) and "," in trackers:
            self.report_to = trackers.split(",")  # the command line takes one word
        optim = self.optim
        if optim == "muon":  # unknown to transformers: `DiffusionTrainer.create_optimizer` makes it
            self.optim = "adamw_torch_fused"
        if not torch.accelerator.is_available() and not is_torch_xla_available():
            self.use_cpu = True  # unless it is said, the processes of `torchrun` each train a model of their own
        super().__post_init__()
        require_trackers(self.report_to)  # type: ignore[arg-type]  # a list by now
        if self.accelerator_config.dispatch_batches is None:  # type: ignore[union-attr]
            self.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]  # each process reads its part
        if optim == "muon":
            self.optim = optim

    def _check_recipe(self) -> None:
        """Rates, token weights, averaging and early stopping: what excludes one another, and what follows."""
        if self.rate_distribution == "importance" and self.objective != "elbo":
            raise ValueError(
                f"`rate_distribution` is 'importance', whose weights only the objective elbo has, not "
                f"{self.objective!r}: there the rates would change what is learnt. Choose another of the two."
            )
        if self.token_weights is not None:
            if self.token_weights not in TOKEN_WEIGHTS:
                raise ValueError(
                    f"`token_weights` must be one of {', '.join(TOKEN_WEIGHTS)}, not {self.token_weights!r}."
                )
            ForwardProcess(mask_id=0, **self.masking_settings(), token_weights=torch.ones(1))
        if not 0 <= self.random_length_share <= 1:
            raise ValueError(f"`random_length_share` must lie in [0, 1], not {self.random_length_share!r}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie in [0, 1), 0 for none, not {self.ema_decay!r}.")
        if self.ema_decay and self.save_only_model:
            raise ValueError("`save_only_model` must be False with `ema_decay`: a checkpoint would lack the average.")
        patience = self.early_stopping_patience
        if patience is not None:
            if patience < 1:
                raise ValueError(f"`early_stopping_patience` must be at least 1, not {patience!r}.")
            if self.eval_strategy == "no":  # type: ignore[comparison-overlap]  # it compares as its value
                raise ValueError(
                    f"`early_stopping_patience` is {patience}, but nothing is evaluated: set `eval_strategy` to steps "
                    f"or epoch."
                )
            self.load_best_model_at_end = self.restore_callback_states_from_checkpoint = True
            self.metric_for_best_model, self.greater_is_better = "eval_loss", False
        if self.load_best_model_at_end and self.save_strategy != "best":  # type: ignore[has-type]
            # The best model can come back only if every one that is evaluated is saved.
            self.save_strategy, self.save_steps = self.eval_strategy, self.eval_steps or self.logging_steps

    def to_dict(self) -> dict[str, Any]:
        """As trackers get it: without tokens (transformers sees to that), and of absolute paths the name alone."""
        settings = super().to_dict()
        local = {
            name: value for name, value in settings.items() if isinstance(value, str) and Path(value).is_absolute()
        }
        return {**settings, **{name: Path(value).name for name, value in local.items()}}

    @property
    def prefix(self) -> int | str:
        """`prefix_length` as `ForwardProcess` takes it."""
        return "random" if self.prefix_length == "random" else int(self.prefix_length)

    def masking_settings(self) -> dict[str, Any]:
        """What is masked, by the names that `ForwardProcess` and the collator have for it."""
        return {
            "schedule": self.schedule,
            "masking": self.masking,
            "levels": tuple(self.mask_levels),
            "levels_per": self.levels_per,
            "prefix_length": self.prefix,
            "no_prefix_share": self.no_prefix_share,
            "span_length": self.span_length,
            "rate_distribution": self.rate_distribution,
            "rate_parameters": tuple(self.rate_parameters),
            "max_mask_rate": self.max_mask_rate,
            "stratified_times": self.stratified_times,
        }
