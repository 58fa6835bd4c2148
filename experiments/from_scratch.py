"""Four small published systems of masked diffusion, trained from scratch with their settings and with ours.

    python experiments/from_scratch.py char_mercury --train-file input.txt      # reduced: about 20 minutes on 2 cores
    python experiments/from_scratch.py char_mercury --train-file input.txt --size full
    python experiments/from_scratch.py bpe_rope --characters --train-file input.txt --settings ours --seeds 0 1 2
    python experiments/from_scratch.py roberta_guide --size quick_test          # built-in stories, offline
    python experiments/from_scratch.py --table                                  # the table of all that was run

The recipes are `bpe_rope`, `minimal_mdm`, `char_mercury` and `roberta_guide` (`experiments/recipes/from_scratch/`).
All settings of a recipe are trained on as many tokens of the same text, Tiny Shakespeare if it is given as a file or
by its address, else the built-in stories; on a CPU side by side, each on its share of the cores. The last tenth of a
file is held out. Of every run there are: the loss before training beside the logarithm of the vocabulary; the
likelihood bound of the held-out text in nats per token and bits per byte, with 95 % intervals over rows; the loss by
mask rate; texts, with the share of their words that the training text holds. Each run is a file under
`results/from_scratch/`; together they are `results/from_scratch.json`, and its table is `results/from_scratch.md`.

`--max-seconds` is for a machine that is lent by the minute: the speed of each setting is measured, and all of them
make as many steps as the slowest can in its share of the time, with the learning rate fitted to them.
"""

import dataclasses
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from diffusion_mlm.cli.parsing import parse

sys.path.insert(0, str(Path(__file__).parent))
from pictures import run_script
from scratch_measures import first_loss, likelihood, machine, samples, vocabulary, word_figures, write_trace
from scratch_recipes import Arm, Recipe
from scratch_table import collect, write_json
from scratch_training import Text, Training

_DEFAULT_STORIES = 20_000
# Shares of --max-seconds: what training is planned to take at the speed that is measured, and what it may take, for a
# machine on which others start to work too.
_PLANNED_SHARE, _LONGEST_SHARE = 0.55, 0.8


@dataclass
class FromScratchArguments:
    """What is trained and measured."""

    recipe: list[str] = field(default_factory=list, metadata={"help": "One or several: see above."})
    size: str = field(default="reduced", metadata={"help": "reduced, full, or another size of the recipe."})
    settings: list[str] = field(
        default_factory=lambda: ["theirs", "ours"], metadata={"help": "theirs, ours, or others of the recipe."}
    )
    train_file: str | None = field(
        default=None, metadata={"help": "Text file or address, read whole. Default: built-in stories."}
    )
    characters: bool = field(default=False, metadata={"help": "Characters for tokens, where a recipe has a BPE."})
    model_name: str | None = field(
        default=None, metadata={"help": "Of roberta_guide: fine-tune this model, such as FacebookAI/roberta-base."}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Of weights, rows, masks and texts."})
    max_steps: int | None = field(default=None, metadata={"help": "Steps, instead of those of the recipe."})
    max_seconds: float | None = field(
        default=None, metadata={"help": "For all settings and seeds together, start and evaluation included."}
    )
    draws: int = field(default=32, metadata={"help": "Masks per row for the bound."})
    num_samples: int = field(default=16, metadata={"help": "Texts for each way of writing."})
    report_to: str = field(default="none", metadata={"help": "Tracker of the trainer: trackio, tensorboard, wandb."})
    table: bool = field(default=False, metadata={"help": "Only collect what was run."})
    output: str = field(
        default="results/from_scratch.json", metadata={"help": "All rows; runs and models are beside, without .json."}
    )

    def __post_init__(self) -> None:
        if not (self.recipe or self.table):
            raise ValueError("Name a recipe: bpe_rope, minimal_mdm, char_mercury or roberta_guide; or add `--table`.")
        if not self.output.endswith(".json"):
            raise ValueError(f"`--output` must end in .json, unlike {self.output!r}.")
        for name in ("max_steps", "max_seconds", "draws", "num_samples"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, not {value!r}.")
        for name in self.recipe:
            for setting in self.settings:
                self.arm(Recipe.read(name), setting)  # refuses what is unknown
        if self.model_name is not None and set(self.recipe) != {"roberta_guide"}:
            raise ValueError("`--model-name` belongs to the recipe roberta_guide: the others start from scratch.")

    def arm(self, recipe: Recipe, setting: str) -> Arm:
        source = "model" if self.model_name is not None else "stories" if self.train_file is None else "file"
        conditions = (source, *(["characters"] if self.characters else []))
        changes = {"max_steps": self.max_steps, "model_name": self.model_name}
        return recipe.arm(self.size, setting, conditions, **changes)

    @property
    def directory(self) -> Path:
        return Path(self.output).with_suffix("")

    def name_of(self, arm: Arm, seed: int) -> str:
        unit = ["characters"] if self.characters else []
        return "-".join([arm.recipe, *unit, arm.size, arm.setting, str(seed)])


def prepare(recipe: Recipe, args: FromScratchArguments, seed: int) -> list[Training]:
    """The arms of a recipe on one text."""
    arms = [args.arm(recipe, setting) for setting in args.settings]
    if args.train_file is None:
        number = int(arms[0].options.get("num_stories", _DEFAULT_STORIES))
        text = Text.of_stories(number, separate="preset" not in arms[0].options)
    else:
        text = Text.of_file(args.train_file)
    return [
        Training.prepare(arm, text, args.directory / args.name_of(arm, seed), seed, args.report_to) for arm in arms
    ]


def run_arm(training: Training, recipe: Recipe, steps: int, stop_after: float | None, args: Any) -> dict[str, Any]:
    """Trains and measures one arm; its row is written after training and again after each measurement."""
    arm, model, tokenizer, text = training.arm, training.model, training.tokenizer, training.text
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    row: dict[str, Any] = {
        "recipe": arm.recipe,
        "size": arm.size,
        "setting": arm.setting,
        "characters": arm.options.get("tokenizer") == "char",
        "seed": training.seed,
        **recipe.facts,
        "text": {"name": text.name, "train": sum(map(len, text.train)), "held_out": sum(map(len, text.held_out))},
        "options": arm.options,
        "low_rates": arm.low_rates,
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "machine": machine(),
        "first_loss": first_loss(model, tokenizer, text.held_out, training.packing),
    }
    row["training"] = training.run(steps, stop_after)
    target = training.directory.with_suffix(".json")
    write_json(target, row)
    row |= likelihood(model, tokenizer, text.held_out, args.draws, training.packing)
    write_json(target, row)
    known = vocabulary(text.train)
    row["held_out_words"] = word_figures(text.held_out, known)
    row["samples"] = {}
    new = None if training.args.mask_end_token else training.max_length - 2
    for name, settings in arm.generation.items():
        how = {"number": args.num_samples, "seed": training.seed, "max_new_tokens": new}
        row["samples"][name] = samples(model, tokenizer, settings, known, **how)
        write_json(target, row)
    if arm.trace is not None:
        picture = target.with_suffix(f".{arm.trace}")
        row["trace"] = write_trace(model, tokenizer, next(iter(arm.generation.values())), training.seed, new, picture)
        write_json(target, row)
    return row


def run_side_by_side(recipe: Recipe, args: FromScratchArguments, seed: int) -> None:
    """A process for each setting, each with its share of the cores: small models gain little from several."""
    threads = max(torch.get_num_threads() // len(args.settings), 1)
    alone = [dataclasses.replace(args, recipe=[recipe.name], settings=[setting]) for setting in args.settings]
    with ProcessPoolExecutor(len(alone), get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        for _ in pool.map(run_recipe, *zip(*[(recipe, one, seed, None) for one in alone], strict=True)):
            pass


def run_recipe(recipe: Recipe, args: FromScratchArguments, seed: int, seconds: float | None) -> None:
    """Trains and measures the settings of a recipe, one after another."""
    trainings = prepare(recipe, args, seed)
    steps, stop_after = min(training.steps_asked for training in trainings), None
    if seconds is not None:
        slowest = max(training.seconds_per_step() for training in trainings)
        steps = min(steps, max(int(_PLANNED_SHARE * seconds / len(trainings) / slowest), 2))
        stop_after = _LONGEST_SHARE * seconds / len(trainings)
    for training in trainings:
        row = run_arm(training, recipe, steps, stop_after, args)
        shares = [f"{name} {of['known_words'] or 0:.0%}" for name, of in row["samples"].items()]
        done = f"after {row['training']['steps']} steps in {row['training']['seconds']:.0f} s"
        bound = f"{row['bound']['nats_per_token']:.4f} nats per token {done}"
        print(f"{training.directory.name}: {bound}; known words: {', '.join(shares)}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    (args,) = parse([FromScratchArguments], argv, "from_scratch", positional="recipe")
    runs = [(Recipe.read(name), seed) for seed in args.seeds for name in args.recipe]
    for recipe, seed in runs:
        if args.max_seconds is None and len(args.settings) > 1 and not torch.cuda.is_available():
            run_side_by_side(recipe, args, seed)
        else:
            run_recipe(recipe, args, seed, None if args.max_seconds is None else args.max_seconds / len(runs))
        collect(Path(args.output))
    print(collect(Path(args.output)))
    return 0


if __name__ == "__main__":
    run_script(main)
