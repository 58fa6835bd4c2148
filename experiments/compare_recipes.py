"""Which training settings make the better generator of stories, from the same start and after as many tokens?

    python experiments/compare_recipes.py                          # all arms, one after another
    python experiments/compare_recipes.py --arms base importance ema --seeds 0 1

Every arm trains the packaged masked language model of the stories (or a RoBERTa from scratch, with `--preset`) on the
same stories in the same order; it differs from `base` in what its name says and in nothing else. Afterwards the
likelihood bound is taken on held-out stories, with the same masks for all, and stories are written, which the grammar
judges. Runs that were measured before are not repeated, and a run that was interrupted goes on from its last
checkpoint. Writes `results/compare_recipes.json` and a table beside it, anew after every run.
"""

import json
import logging
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from diffusion_mlm import DiffusionTrainer, DiffusionTrainingArguments, load_model, story_language
from diffusion_mlm.checkpoints import STORIES_MLM
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.evaluation.interval import share_interval
from diffusion_mlm.modeling import build_model
from diffusion_mlm.presets import ROBERTA_PRESETS, preset_config

sys.path.insert(0, str(Path(__file__).parent))
from story_quality import story_bound, story_samples  # a neighbour, not a package

TRAIN_SEED = 1  # of the stories, as in `diffusion-mlm train`
BASE: dict[str, Any] = {
    "objective": "elbo",
    "no_prefix_share": 0.65,
    "optim": "muon",
    "learning_rate": 4e-3,
    "warmup_steps": 0.04,
    "lr_scheduler_type": "cosine",
    "dropout": 0.0,
}
# What an arm changes; `dropout` is that of the model's hidden layers, all others are training arguments.
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "clipped": {"rate_distribution": "clipped", "rate_parameters": [0.3, 0.8]},
    "clipped_high": {"rate_distribution": "clipped", "rate_parameters": [0.5, 1.0]},
    "beta": {"rate_distribution": "beta", "rate_parameters": [2.0, 1.0]},
    "importance": {"rate_distribution": "importance"},
    "simple": {"objective": "simple"},
    "rare": {"token_weights": "rare"},
    "random_length": {"random_length_share": 0.01},
    "ema": {"ema_decay": 0.99},
    "linear_lr": {"lr_scheduler_type": "linear"},
    "constant_lr": {"lr_scheduler_type": "constant_with_warmup"},
    "constant_lr_ema": {"lr_scheduler_type": "constant_with_warmup", "ema_decay": 0.99},
    "dropout": {"dropout": 0.1},
    "adamw": {"optim": "adamw_torch_fused", "learning_rate": 1e-3},
}


@dataclass
class CompareRecipesArguments:
    """What is trained, for how long, and how it is measured: alike for all arms."""

    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "Which of the arms to run."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Of order, masks and dropout."})
    preset: str | None = field(
        default=None, metadata={"help": "A RoBERTa from scratch of this size instead.", "choices": ROBERTA_PRESETS}
    )
    steps: int = field(default=1200, metadata={"help": "Optimizer steps of each run."})
    batch_size: int = field(default=24, metadata={"help": "Stories per step."})
    save_steps: int = field(default=300, metadata={"help": "Steps between two checkpoints, to go on from."})
    num_stories: int = field(default=512, metadata={"help": "Held-out stories for the bound."})
    draws: int = field(default=16, metadata={"help": "Masks per story for the bound."})
    num_samples: int = field(default=200, metadata={"help": "Stories that are written."})
    work_dir: str = field(default="results/compare_recipes", metadata={"help": "Where checkpoints go."})
    output: str = field(default="results/compare_recipes.json", metadata={"help": "JSON file; the table is beside."})

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown:
            raise ValueError(f"`--arms` has {unknown[0]!r}, but the arms are {', '.join(ARMS)}.")
        for name in ("steps", "batch_size", "save_steps", "num_stories", "draws", "num_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, not {getattr(self, name)}.")

    @property
    def measured(self) -> dict[str, Any]:
        """What two runs must share to be compared."""
        names = ("preset", "steps", "batch_size", "num_stories", "draws", "num_samples")
        return {name: getattr(self, name) for name in names}


def start_model(preset: str | None, dropout: float) -> PreTrainedModel:
    """The model that all arms begin with, and its dropout."""
    tokenizer = story_language.tokenizer()
    if preset is None:
        model = load_model(STORIES_MLM)
    else:
        model = build_model(preset_config(preset, tokenizer, 128), seed=0)
    model.config.hidden_dropout_prob = dropout
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


def run_arm(arm: str, seed: int, args: CompareRecipesArguments) -> dict[str, Any]:
    """Trains and measures one arm."""
    settings = {**BASE, **ARMS[arm]}
    model = start_model(args.preset, settings.pop("dropout"))
    directory = Path(args.work_dir) / f"{arm}-{seed}"
    training_args = DiffusionTrainingArguments(
        str(directory),
        **settings,
        mask_end_token=True,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        save_steps=args.save_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=False,
        seed=seed,
    )
    rows = [{"input_ids": ids} for ids in story_language.sample_ids(args.steps * args.batch_size, TRAIN_SEED).tolist()]
    tokenizer = story_language.tokenizer()
    trainer = DiffusionTrainer(model, training_args, processing_class=tokenizer, train_dataset=rows)
    last = get_last_checkpoint(str(directory)) if directory.is_dir() else None
    start = time.process_time()
    trainer.train(resume_from_checkpoint=last)
    seconds = time.process_time() - start
    trained = trainer.model.eval()
    trained.config.diffusion = {"generates_end": True, "row_length": story_language.BLOCK_LENGTH}
    samples = story_samples(trained, tokenizer, args.num_samples, seed=0)
    return {
        "arm": arm,
        "seed": seed,
        "settings": ARMS[arm],
        "train_tokens": args.steps * args.batch_size * story_language.BLOCK_LENGTH,
        "train_cpu_seconds": round(seconds, 1),
        "resumed": last is not None,
        **story_bound(trained, tokenizer, args.num_stories, args.draws),
        **{**samples, "samples": samples["samples"][:2]},
    }


def read_result(args: CompareRecipesArguments) -> dict[str, Any]:
    """The runs of before, and how all are measured.

    Raises:
        ValueError: the file holds runs of other settings.
    """
    path = Path(args.output)
    if not path.exists():
        return {**args.measured, "base": BASE, "runs": []}
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, value in {**args.measured, "base": BASE}.items():
        if found.get(name) != value:
            raise ValueError(
                f"`--output` {args.output} holds runs with {name} {found.get(name)!r}, which cannot be compared with "
                f"{value!r}. Name another file and another `--work-dir`."
            )
    return found


def as_table(result: dict[str, Any]) -> str:
    """A Markdown table, the best bound first, and what its columns are."""
    runs = sorted(result["runs"], key=lambda run: run["nelbo_nats_per_token"])
    base = {run["seed"]: run["nelbo_nats_per_token"] for run in runs if run["arm"] == "base"}
    lines = [
        "| arm | seed | bound | standard error | against base | stories accepted | interval | log-prob | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        against = run["nelbo_nats_per_token"] - base[run["seed"]] if run["seed"] in base else None
        low, high = share_interval(round(run["valid_share"] * run["num_samples"]), run["num_samples"])
        log_prob = run["mean_exact_logprob_per_token"]
        cells = [
            run["arm"],
            str(run["seed"]),
            f"{run['nelbo_nats_per_token']:.4f}",
            f"{run['nelbo_standard_error']:.4f}",
            "" if against is None else f"{against:+.4f}",
            f"{run['valid_share']:.1%}",
            f"{low:.0%} to {high:.0%}",
            "" if log_prob is None else f"{log_prob:.3f}",
            f"{run['train_cpu_seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    start = f"a {result['preset']} from scratch" if result["preset"] else "the packaged masked language model"
    entropy = story_language.entropy_per_token()
    note = (
        f"Each run trains {start} for {result['steps']} steps of {result['batch_size']} stories. The bound is in nats "
        f"per token on {result['num_stories']} held-out stories with {result['draws']} masks each, the same for all; "
        f"the entropy of the language is {entropy:.4f}. Its standard error is that of the stories and masks: what "
        f"another seed of training changes is not in it. Log-prob is the mean exact one of the accepted stories, "
        f"{-entropy:.3f} in the language; the interval is of 95 %."
    )
    return "\n".join(["# Training settings on the stories", "", *lines, "", note, ""])


def write_result(result: dict[str, Any], output: str) -> None:
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, text in (
        (path, json.dumps(result, indent=1, allow_nan=False) + "\n"),
        (path.with_suffix(".md"), as_table(result)),
    ):
        fresh = target.with_name(target.name + ".tmp")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(target)


def main(argv: list[str]) -> int:
    (args,) = parse([CompareRecipesArguments], argv, "compare_recipes")
    logging.getLogger("diffusion_mlm").setLevel(logging.ERROR)
    result = read_result(args)
    result["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    done = {(run["arm"], run["seed"]) for run in result["runs"]}
    for seed in args.seeds:
        for arm in args.arms:
            if (arm, seed) in done:
                print(f"{arm}, seed {seed}: measured before", file=sys.stderr)
                continue
            run = run_arm(arm, seed, args)
            result["runs"].append(run)
            write_result(result, args.output)
            print(
                f"{arm}, seed {seed}: bound {run['nelbo_nats_per_token']:.4f}, {run['valid_share']:.0%} accepted, "
                f"{run['train_cpu_seconds']:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    print(as_table(result))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ArithmeticError, KeyboardInterrupt) as error:
        sys.exit(report_error(error))
