"""Which training settings make the better generator, from the same start and after as many tokens?

    python experiments/compare_recipes.py                          # all arms on the stories, one after another
    python experiments/compare_recipes.py --arms base importance ema --seeds 0 1
    python experiments/compare_recipes.py --model-name DIR --train-file train.txt --eval-file valid.txt \\
        --output results/compare_recipes_text.json --work-dir results/compare_recipes_text
    python experiments/compare_recipes.py --join part1.json part2.json     # of runs that went side by side

Every arm trains the packaged masked language model of the stories (or the one named, or a RoBERTa from scratch, with
`--preset`) on the same rows in the same order; it differs from `base` in what its name says and in nothing else.
Afterwards the likelihood bound is taken on held-out rows, with the same masks for all; of stories, some are written
and the grammar judges them. Runs that were measured before are not repeated, and a run that was interrupted goes on
from its last checkpoint. Writes `results/compare_recipes.json` and a table beside it, anew after every run.
"""

import json
import logging
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from diffusion_mlm import DiffusionTrainer, DiffusionTrainingArguments, load_model, story_language
from diffusion_mlm.checkpoints import STORIES_MLM
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.evaluation.interval import share_interval
from diffusion_mlm.generation import load_tokenizer
from diffusion_mlm.modeling import build_model
from diffusion_mlm.presets import ROBERTA_PRESETS, preset_config

sys.path.insert(0, str(Path(__file__).parent))
from pictures import run_script
from recipe_corpora import Corpus, Stories, Texts  # a neighbour, not a package

BASE: dict[str, Any] = {
    "objective": "elbo",
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
    "low_lr": {"learning_rate": 1e-3},
    "cosine_rates": {"schedule": "cosine"},
}


@dataclass
class CompareRecipesArguments:
    """What is trained, for how long, and how it is measured: alike for all arms."""

    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "Which of the arms to run."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Of order, masks and dropout."})
    preset: str | None = field(
        default=None, metadata={"help": "A RoBERTa from scratch of this size instead.", "choices": ROBERTA_PRESETS}
    )
    model_name: str | None = field(
        default=None, metadata={"help": "Start from this masked language model instead: a directory or a Hub id."}
    )
    train_file: list[str] = field(default_factory=list, metadata={"help": "Train on these text files, not stories."})
    eval_file: list[str] = field(default_factory=list, metadata={"help": "Text files for the bound."})
    max_length: int = field(default=128, metadata={"help": "Tokens per row of text files."})
    join: list[str] = field(default_factory=list, metadata={"help": "Put the runs of these files into --output."})
    steps: int = field(default=1200, metadata={"help": "Optimizer steps of each run."})
    batch_size: int = field(default=24, metadata={"help": "Rows per step."})
    save_steps: int = field(default=300, metadata={"help": "Steps between two checkpoints, to go on from."})
    num_stories: int = field(default=512, metadata={"help": "Held-out rows for the bound."})
    draws: int = field(default=16, metadata={"help": "Masks per row for the bound."})
    num_samples: int = field(default=200, metadata={"help": "Stories that are written."})
    work_dir: str = field(default="results/compare_recipes", metadata={"help": "Where checkpoints go."})
    output: str = field(default="results/compare_recipes.json", metadata={"help": "JSON file; the table is beside."})

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown:
            raise ValueError(f"`--arms` has {unknown[0]!r}, but the arms are {', '.join(ARMS)}.")
        if bool(self.train_file) != bool(self.eval_file) or (self.train_file and self.model_name is None):
            raise ValueError("`--train-file`, `--eval-file` and `--model-name` go together: name all of them.")
        if self.preset is not None and self.model_name is not None:
            raise ValueError(f"`--preset` ({self.preset}) and `--model-name` ({self.model_name}) exclude one another.")
        for name in (*self.train_file, *self.eval_file, *self.join):
            if not Path(name).is_file():
                raise ValueError(f"The file {name!r} of `--train-file`, `--eval-file` or `--join` does not exist.")
        for name in ("steps", "batch_size", "save_steps", "num_stories", "draws", "num_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, not {getattr(self, name)}.")

    @property
    def measured(self) -> dict[str, Any]:
        """What two runs must share to be compared."""
        names = ("preset", "steps", "batch_size", "num_stories", "draws", "num_samples")
        files = [Path(name).name for name in (*self.train_file, *self.eval_file)]  # directories are of one machine
        return {**{name: getattr(self, name) for name in names}, "text_files": files}


def start_model(args: CompareRecipesArguments, dropout: float) -> PreTrainedModel:
    """The model that all arms begin with, and its dropout."""
    if args.preset is None:
        model = load_model(args.model_name or STORIES_MLM)
    else:
        model = build_model(preset_config(args.preset, story_language.tokenizer(), 128), seed=0)
    model.config.hidden_dropout_prob = dropout
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


def corpus_of(args: CompareRecipesArguments) -> Corpus:
    if args.model_name is None or not args.train_file:
        return Stories()
    return Texts(load_tokenizer(args.model_name), args.train_file, args.eval_file, args.max_length)


def run_arm(arm: str, seed: int, args: CompareRecipesArguments) -> dict[str, Any]:
    """Trains and measures one arm."""
    corpus = corpus_of(args)
    settings = {**BASE, **corpus.settings, **ARMS[arm]}
    model = start_model(args, settings.pop("dropout"))
    directory = Path(args.work_dir) / f"{arm}-{seed}"
    training_args = DiffusionTrainingArguments(
        str(directory),
        **settings,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        save_steps=args.save_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=False,
        seed=seed,
    )
    rows = corpus.rows(args.steps * args.batch_size)
    trainer = DiffusionTrainer(model, training_args, processing_class=corpus.tokenizer, train_dataset=rows)
    last = get_last_checkpoint(str(directory)) if directory.is_dir() else None
    start, cpu = time.perf_counter(), time.process_time()
    trainer.train(resume_from_checkpoint=last)
    return {
        "arm": arm,
        "seed": seed,
        "settings": ARMS[arm],
        "train_tokens": args.steps * args.batch_size * corpus.row_length,
        "train_seconds": round(time.perf_counter() - start, 1),
        "train_cpu_seconds": round(time.process_time() - cpu, 1),
        "resumed": last is not None,
        **corpus.figures(trainer.model.eval(), args.num_stories, args.draws, args.num_samples),
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


def join(result: dict[str, Any], other: dict[str, Any], name: str) -> None:
    """Takes over the runs of another file that are not there yet.

    Raises:
        ValueError: they were measured in another way.
    """
    for key, value in other.items():
        if key == "machine" and not result["runs"]:
            result["machine"] = value
        elif key not in ("runs", "machine") and result.get(key) != value:
            raise ValueError(f"`--join` {name} has {key} {value!r}, not {result.get(key)!r}: give its settings too.")
    done = {(run["arm"], run["seed"]) for run in result["runs"]}
    result["runs"] += [run for run in other["runs"] if (run["arm"], run["seed"]) not in done]


def as_table(result: dict[str, Any]) -> str:
    """A Markdown table of the arms, the best first, and what its columns are."""
    of_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for run in result["runs"]:
        of_arm.setdefault(run["arm"], {})[run["seed"]] = run
    on_stories = not result["text_files"]
    head = [
        "arm",
        "seeds",
        "bound",
        "standard error",
        "against base",
        *(["accepted", "log-prob"] if on_stories else []),
    ]
    lines = [f"| {' | '.join([*head, 'seconds'])} |", f"|{'---|' * (len(head) + 1)}"]
    rows = []
    for arm, runs in of_arm.items():
        bounds = [run["nelbo_nats_per_token"] for run in runs.values()]
        cells = [
            arm,
            str(len(runs)),
            f"{fmean(bounds):.4f}",
            f"{fmean(run['nelbo_standard_error'] for run in runs.values()):.4f}",
        ]
        cells.append(against_base(runs, of_arm.get("base", {})))
        if on_stories:
            total = sum(run["num_samples"] for run in runs.values())
            accepted = sum(round(run["valid_share"] * run["num_samples"]) for run in runs.values())
            low, high = share_interval(accepted, total)
            log_probs = [run["mean_exact_logprob_per_token"] for run in runs.values() if run["valid_share"] > 0]
            cells.append(f"{accepted / total:.1%} ({low:.0%} to {high:.0%})")
            cells.append(f"{fmean(log_probs):.3f}" if log_probs else "")
        rows.append((fmean(bounds), [*cells, f"{fmean(run['train_seconds'] for run in runs.values()):.0f}"]))
    lines += [f"| {' | '.join(cells)} |" for _, cells in sorted(rows)]
    start = f"a {result['preset']} from scratch" if result["preset"] else "a trained masked language model"
    note = (
        f"Each run trains {start} for {result['steps']} steps of {result['batch_size']} rows. The bound is in nats "
        f"per token on {result['num_stories']} held-out rows with {result['draws']} masks each, the same for all; its "
        f"standard error is that of rows and masks. Against base: the mean difference of runs with the same seed, and "
        f"the least and the greatest."
    )
    if on_stories:
        entropy = story_language.entropy_per_token()
        note += (
            f" The entropy of the language is {entropy:.4f}. Accepted: by the grammar, with an interval of 95 %. "
            f"Log-prob: the mean exact one of accepted stories, {-entropy:.3f} in the language."
        )
    what = "the stories" if on_stories else ", ".join(result["text_files"])
    return "\n".join(
        [f"# Training settings on {what}", "", *lines, "", note, "", f"Machine: {result['machine']}.", ""]
    )


def against_base(runs: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> str:
    """How much the bound differs from that of `base`, in pairs of equal seeds."""
    pairs = [
        run["nelbo_nats_per_token"] - base[seed]["nelbo_nats_per_token"] for seed, run in runs.items() if seed in base
    ]
    if not pairs:
        return ""
    spread = f" ({min(pairs):+.4f} to {max(pairs):+.4f})" if len(pairs) > 1 else ""
    return f"{fmean(pairs):+.4f}{spread}"


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
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    result.setdefault("machine", f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    done = {(run["arm"], run["seed"]) for run in result["runs"]}
    for name in args.join:
        join(result, json.loads(Path(name).read_text(encoding="utf-8")), name)
    if args.join:
        write_result(result, args.output)
        print(as_table(result))
        return 0
    for seed in args.seeds:
        for arm in args.arms:
            if (arm, seed) in done:
                print(f"{arm}, seed {seed}: measured before", file=sys.stderr)
                continue
            run = run_arm(arm, seed, args)
            result["runs"].append(run)
            write_result(result, args.output)
            accepted = f", {run['valid_share']:.0%} accepted" if "valid_share" in run else ""
            what = f"{arm}, seed {seed}: bound {run['nelbo_nats_per_token']:.4f}{accepted}"
            print(f"{what}, {run['train_seconds']:.0f} s", file=sys.stderr, flush=True)
    print(as_table(result))
    return 0


if __name__ == "__main__":
    run_script(main)
