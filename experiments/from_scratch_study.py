"""What matters in training a small masked diffusion model from scratch? One thing is changed at a time.

    python experiments/from_scratch_study.py --train-file input.txt                  # all arms, one after another
    python experiments/from_scratch_study.py --train-file input.txt --arms base simple --seeds 0 1 2
    python experiments/from_scratch_study.py --table                               # table and pictures of what was run

All arms see as many tokens of the same text; each differs from `base` in what its name says and in nothing else, the
learning rate included. A run is a file under `results/from_scratch_study/`, so that several processes may each make
some; what is there already is not made again. `--table` puts them into `results/from_scratch_study.json`, a table and
three pictures: bits per byte of every arm, the loss by mask rate, and what the number of steps and remasking do to the
texts of the base.

The questions: characters or a BPE (`bpe_*`, in bits per byte; a token is then several characters, so that as many
tokens are more text)? Is the model told the time (`time_*`)? How is the loss weighted (`simple`, `full`; `base` is the
bound)? Which schedule (`cosine`; `base` is linear)? How large a batch (`batch_*`, at equal tokens)? And of the base
itself: how many steps does writing take, and does remasking help?
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.presets import PRESETS

sys.path.insert(0, str(Path(__file__).parent))
from pictures import run_script
from scratch_measures import first_loss, likelihood, machine, samples, vocabulary
from scratch_recipes import Arm
from scratch_table import write_json
from scratch_training import Text, Training
from study_pictures import as_markdown, draw

BASE: dict[str, Any] = {
    "tokenizer": "char",
    "qk_norm": True,
    "prefix_length": 0,
    "objective": "elbo",
    "optim": "muon",
    "learning_rate": 5e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.04,
}
LOW_RATES = {"share": 0.25, "levels": [0.15, 0.3]}  # the first quarter of every run, see `compare_autoregressive.py`
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "bpe_512": {"tokenizer": "bpe", "vocab_size": 512},
    "bpe_2048": {"tokenizer": "bpe", "vocab_size": 2048},
    "time_sinusoidal": {"time_conditioning": "sinusoidal"},
    "time_learned": {"time_conditioning": "learned"},
    "time_adaln": {"time_conditioning": "adaln"},
    "simple": {"objective": "simple"},
    "full": {"objective": "full"},
    "cosine": {"schedule": "cosine"},
    "batch_16": {"per_device_train_batch_size": 16},
    "batch_128": {"per_device_train_batch_size": 128},
}
WRITING_STEPS = (10, 20, 40, 80, 150, 300)
REMASKING = ("none", "remdm_conf", "low_confidence")


@dataclass
class StudyArguments:
    """What is trained, for how long, and how it is measured: alike for all arms."""

    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": "Which arms to run.", "choices": list(ARMS)}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Of weights, rows, masks and texts."})
    train_file: str | None = field(
        default=None, metadata={"help": "Text file or address, read whole. Default: built-in stories."}
    )
    num_stories: int = field(default=20_000, metadata={"help": "Built-in stories, if no file is given."})
    preset: str = field(default="modern-tiny", metadata={"help": "Size of all.", "choices": list(PRESETS)})
    max_length: int = field(default=258, metadata={"help": "Tokens per row, <s> and </s> included."})
    tokens: int = field(default=4_000_000, metadata={"help": "Tokens that every run sees."})
    batch_size: int = field(default=32, metadata={"help": "Rows per step, but for the arms that change it."})
    max_seconds: float | None = field(default=None, metadata={"help": "Ends a training; what it cuts is marked."})
    draws: int = field(default=32, metadata={"help": "Masks per row for the bound."})
    num_samples: int = field(default=16, metadata={"help": "Texts for each number of steps."})
    bound_characters: int = field(
        default=1500, metadata={"help": "Held-out text for the bound of samplers, a forward for every step and row."}
    )
    table: bool = field(default=False, metadata={"help": "Only collect and draw what was run."})
    output: str = field(
        default="results/from_scratch_study.json", metadata={"help": "All runs; runs, table and pictures are beside."}
    )

    def __post_init__(self) -> None:
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"`--arms` has {unknown[0]!r}, but the arms are {', '.join(ARMS)}.")
        if not self.output.endswith(".json"):
            raise ValueError(f"`--output` must end in .json, unlike {self.output!r}.")
        for name in ("tokens", "batch_size", "draws", "num_samples", "num_stories", "bound_characters"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, not {getattr(self, name)}.")

    @property
    def directory(self) -> Path:
        return Path(self.output).with_suffix("")

    def arm(self, name: str) -> Arm:
        common: dict[str, Any] = {"preset": self.preset, "max_length": self.max_length}
        common["per_device_train_batch_size"] = self.batch_size
        if not self.preset.startswith("modern-"):
            common["qk_norm"] = None
        return Arm("study", "equal", name, {**BASE, **common, **ARMS[name]}, LOW_RATES, {"default": {}}, None)

    @property
    def measured(self) -> dict[str, Any]:
        """What two runs must share to be compared."""
        names = ("preset", "max_length", "tokens", "batch_size", "draws", "num_samples")
        return {name: getattr(self, name) for name in names}


def run_arm(name: str, seed: int, text: Text, args: StudyArguments) -> dict[str, Any]:
    """Trains and measures one arm; its file is written after training and again after each measurement."""
    target = args.directory / f"{name}-{seed}.json"
    if target.is_file():
        found = json.loads(target.read_text(encoding="utf-8"))
        if {of: found.get(of) for of in args.measured} != args.measured or found["text"] != text.name:
            raise ValueError(f"{target} was made with other settings: name another `--output`.")
        if found.get("complete"):
            return found
    training = Training.prepare(args.arm(name), text, args.directory / f"{name}-{seed}", seed)
    model, tokenizer = training.model, training.tokenizer
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    run: dict[str, Any] = {
        "arm": name,
        "seed": seed,
        "text": text.name,
        **args.measured,
        "changed": ARMS[name],
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "machine": machine(),
        "first_loss": first_loss(model, tokenizer, text.held_out, training.packing),
    }
    steps = max(round(args.tokens / training.tokens_per_step), 2)
    run["training"] = training.run(steps, args.max_seconds)
    write_json(target, run)
    run |= likelihood(model, tokenizer, text.held_out, args.draws, training.packing)
    write_json(target, run)
    known, new = vocabulary(text.train), training.max_length - 2
    how = {"known": known, "number": args.num_samples, "seed": seed, "max_new_tokens": new}
    run["samples"] = samples(model, tokenizer, {}, **how)
    if name == "base":
        run["writing"] = []
        for steps in WRITING_STEPS:
            for remask in REMASKING:
                order = {"order": "confidence"} if remask == "low_confidence" else {}
                settings = {"steps": steps, "remask": remask, **order}
                run["writing"].append(samples(model, tokenizer, settings, **how))
                write_json(target, run)
        few = [text.held_out[0][: args.bound_characters]]
        options = {"estimators": ["steps"], "steps": WRITING_STEPS}
        run["bound_of_steps"] = likelihood(model, tokenizer, few, args.draws, training.packing, **options)["steps"]
    run["complete"] = True
    write_json(target, run)
    return run


def collect(args: StudyArguments) -> str:
    """One file of all runs, its table, and the pictures; returns the table."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.directory.glob("*.json"))]
    runs = sorted(
        (run for run in found if "bound" in run), key=lambda run: (list(ARMS).index(run["arm"]), run["seed"])
    )
    if not runs:
        raise ValueError(f"There is no finished run in {args.directory}: leave out `--table`.")
    lean = [{name: value for name, value in run.items() if name != "rows"} for run in runs]
    write_json(Path(args.output), {"base": BASE, "low_rates": LOW_RATES, "runs": lean})
    table = as_markdown(runs)
    Path(args.output).with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    draw(runs, args.directory.with_name(args.directory.name + "_{}.png"))
    return table


def main(argv: list[str]) -> int:
    (args,) = parse([StudyArguments], argv, "from_scratch_study")
    if not args.table:
        stories = Text.of_stories(args.num_stories, separate=False) if args.train_file is None else None
        text = stories or Text.of_file(args.train_file)
        for seed in args.seeds:
            for name in args.arms:
                run = run_arm(name, seed, text, args)
                shown = f"{run['bound']['bits_per_byte']:.4f} bits per byte, {run['training']['seconds']:.0f} s"
                print(f"{name}, seed {seed}: {shown}", file=sys.stderr, flush=True)
    print(collect(args))
    return 0


if __name__ == "__main__":
    run_script(main)
