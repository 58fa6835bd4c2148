"""The real job in small: turns a masked language model of short stories into a generator, on a CPU, in minutes.

    make quickstart            or            python experiments/quickstart.py

Shows what the model writes before and after, the likelihood bound next to the exact entropy of the language, and the
share of stories that its grammar accepts. Writes `results/quickstart.json`, and the model to
`results/quickstart/final-model`.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from diffusion_mlm import load_generator, story_language
from diffusion_mlm.checkpoints import STORIES_MLM
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import arguments_of_file, parse
from diffusion_mlm.cli.train import show_progress, train
from diffusion_mlm.cli.train_arguments import DataArguments, ModelArguments, TrainCommandArguments

sys.path.insert(0, str(Path(__file__).parent))
from story_quality import story_bound, story_samples  # a neighbour, not a package

RECIPE = Path(__file__).parent / "recipes" / "quickstart.yaml"


@dataclass
class QuickstartArguments:
    """Everything else is in experiments/recipes/quickstart.yaml."""

    num_train_stories: int | None = field(default=None, metadata={"help": "Stories to train on; the recipe's."})
    num_samples: int = field(default=200, metadata={"help": "Stories to generate after training."})
    output_dir: str = field(default="results/quickstart", metadata={"help": "Where the model goes."})
    output: str = field(default="results/quickstart.json", metadata={"help": "Where the figures go."})


def main(argv: list[str]) -> int:
    (quickstart,) = parse([QuickstartArguments], argv, "quickstart")
    console = Console(soft_wrap=True, highlight=False)
    start = time.perf_counter()

    console.rule("before: a masked language model, trained to fill in 15 % of a story")
    before = measure(STORIES_MLM, num_stories=128, draws=8, num_samples=50)
    show(console, before)

    console.rule("training: the same model at every mask rate")
    options = [*arguments_of_file(str(RECIPE)), "--output_dir", quickstart.output_dir, "--overwrite_output", "true"]
    if quickstart.num_train_stories is not None:
        options += ["--num_stories", str(quickstart.num_train_stories)]
    arguments = parse([ModelArguments, DataArguments, TrainCommandArguments], options, "quickstart")
    show_progress(arguments[2])
    train(*arguments)

    console.rule("after: a generator")
    after = measure(f"{quickstart.output_dir}/final-model", 512, 16, quickstart.num_samples)
    show(console, after)
    figures = {"seconds": round(time.perf_counter() - start, 1), **after, "before": before}
    Path(quickstart.output).parent.mkdir(parents=True, exist_ok=True)
    Path(quickstart.output).write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    console.print(
        f"\n{figures['seconds']:.0f} seconds; figures in {quickstart.output}. Now write your own:\n\n"
        f"  {sys.executable} generate.py --checkpoint {quickstart.output_dir}/final-model --show-steps\n"
    )
    return 0


def measure(checkpoint: str, num_stories: int, draws: int, num_samples: int) -> dict[str, Any]:
    """The bound and the samples of a checkpoint, on the CPU."""
    model, tokenizer = load_generator(checkpoint)
    return {
        **story_bound(model, tokenizer, num_stories, draws),
        **story_samples(model, tokenizer, num_samples, seed=0),
    }


def show(console: Console, figures: dict[str, Any]) -> None:
    for text in figures["samples"][:3]:
        console.print(f"  {text}\n", markup=False)
    exact = story_language.entropy_per_token()
    log_prob = figures["mean_exact_logprob_per_token"]
    console.print(
        f"  likelihood bound        {figures['nelbo_nats_per_token']:.3f} nats per token (the language: {exact:.3f})\n"
        f"  stories accepted        {figures['valid_share']:.0%} of {figures['num_samples']}\n"
        f"  their log-probability   "
        + (f"{log_prob:.3f} nats per token (the language: {-exact:.3f})" if log_prob is not None else "-")
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ArithmeticError, KeyboardInterrupt) as error:
        sys.exit(report_error(error))
