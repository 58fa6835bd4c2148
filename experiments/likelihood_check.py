"""Whether likelihoods can be trusted: every estimator beside the exact value, and how often intervals hold it.

    python experiments/likelihood_check.py --output results/likelihood_check.json

On the built-in stories the exact likelihood is known, and so is the model that has it. With that model (the exact
denoiser) every estimator must give the exact value; with the packaged generator the bound must lie above it and the
importance-weighted bound between. 200 evaluations of other stories show how often the interval holds the truth.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_mlm import load_generator, story_language
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.evaluation.interval import ratio_estimate
from diffusion_mlm.evaluation.likelihood import bound_of_rows, count_tokens
from diffusion_mlm.evaluation.loss_curve import loss_curve_of_rows
from diffusion_mlm.evaluation.row_predictor import RowPredictor, make_predictor
from diffusion_mlm.evaluation.trajectory import (
    chain_of_rows,
    fixed_ranks,
    importance_bound,
    random_chains_of_rows,
    sampler_bound_of_rows,
)

STEPS = (8, 16, 32, 64, 79)  # a row of stories has 79 tokens to write
BATCH_SIZE = 64


@dataclass
class LikelihoodCheckArguments:
    """What to measure."""

    checkpoint: str = field(
        default="diffusion_mlm/checkpoints/stories-generator", metadata={"help": "Beside the exact denoiser."}
    )
    num_stories: int = field(default=96, metadata={"help": "Stories for the bound and the curve."})
    num_few: int = field(default=24, metadata={"help": "Stories for the estimators of many forwards."})
    draws: int = field(default=16, metadata={"help": "Masks per story for the bound."})
    orders: int = field(default=8, metadata={"help": "Random orders for the importance-weighted bound."})
    repetitions: int = field(default=200, metadata={"help": "Evaluations whose intervals are counted."})
    repeated_stories: int = field(default=24, metadata={"help": "Stories of each of them."})
    repeated_draws: int = field(default=4, metadata={"help": "Masks per story of each of them."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write."})


class Check:
    """Estimates of stories by one model, beside their exact values."""

    def __init__(self, model: nn.Module) -> None:
        self.predictor: RowPredictor = make_predictor(model, story_language.tokenizer(), scores_end=True)
        self.options: dict[str, Any] = {
            "mask_id": self.predictor.mask_id,
            "forbidden_ids": self.predictor.forbidden_ids,
        }

    def nats(self, ids: Tensor, estimate: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The estimate of each row, batch by batch."""
        found = []
        for rows in ids.split(BATCH_SIZE):
            maskable = torch.ones_like(rows, dtype=torch.bool)
            maskable[:, 0] = False
            found.append(estimate(rows.to(self.predictor.device), maskable.to(self.predictor.device)).cpu())
        return torch.cat(found)

    def bound(self, ids: Tensor, draws: int) -> Tensor:
        return self.nats(ids, lambda *rows: bound_of_rows(self.predictor, *rows, draws=draws, **self.options).nats)

    def curve(self, ids: Tensor) -> Tensor:
        return self.nats(ids, lambda *rows: loss_curve_of_rows(self.predictor, *rows, **self.options).integral())

    def steps(self, ids: Tensor, steps: int) -> Tensor:
        return self.nats(ids, lambda *rows: sampler_bound_of_rows(self.predictor, *rows, steps=steps, **self.options))

    def chain(self, ids: Tensor) -> Tensor:
        def of_rows(rows: Tensor, maskable: Tensor) -> Tensor:
            ranks = fixed_ranks("left_to_right", maskable)
            return chain_of_rows(self.predictor, rows, maskable, ranks, **self.options)

        return self.nats(ids, of_rows)

    def orders(self, ids: Tensor, orders: int) -> Tensor:
        return self.nats(
            ids, lambda *rows: random_chains_of_rows(self.predictor, *rows, orders=orders, **self.options)
        )


def stories(number: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of stories, their tokens (one end each), and their exact -log p in nats."""
    ids = story_language.sample_ids(number, seed)
    maskable = torch.ones_like(ids, dtype=torch.bool)
    maskable[:, 0] = False
    exact = -story_language.ExactDenoiser().log_prob_ids(ids)
    return ids, count_tokens(ids, maskable, int(story_language.tokenizer().eos_token_id)), exact


def beside_exact(nats: Tensor, exact: Tensor, tokens: Tensor) -> dict[str, float]:
    """Nats per token, and by how much they differ from the exact value, with the standard error over stories."""
    difference = ratio_estimate(nats - exact, tokens)
    error = difference.standard_error or 0.0
    return {
        "nats_per_token": float(nats.sum() / tokens.sum()),
        "above_exact": difference.value,
        "standard_error": error,
        "standard_errors_above": difference.value / error if error > 1e-7 else 0.0,
        "largest_difference_of_a_story_nats": float((nats - exact).abs().max()),
    }


def estimators(check: Check, args: LikelihoodCheckArguments, orders: int) -> dict[str, Any]:
    """Every estimator on the same stories, beside their exact likelihood."""
    ids, tokens, exact = stories(args.num_stories, seed=11)
    few = slice(args.num_few)
    chains = check.orders(ids[few], orders)
    numbers = [n for n in (1, 2, 4, 8, 16) if n <= orders]
    return {
        "exact_nats_per_token": float(exact.sum() / tokens.sum()),
        "exact_nats_per_token_of_few": float(exact[few].sum() / tokens[few].sum()),
        "bound": beside_exact(check.bound(ids, args.draws), exact, tokens),
        "integrated_curve": beside_exact(check.curve(ids), exact, tokens),
        "left_to_right": beside_exact(check.chain(ids[few]), exact[few], tokens[few]),
        "importance_bound_by_orders": {
            n: beside_exact(importance_bound(chains[:, :n]), exact[few], tokens[few]) for n in numbers
        },
        "mean_of_orders": beside_exact(chains.mean(-1), exact[few], tokens[few]),
        "sampler_by_steps": {
            steps: beside_exact(check.steps(ids[few], steps), exact[few], tokens[few]) for steps in STEPS
        },
    }


def coverage(check: Check, args: LikelihoodCheckArguments, truth: float | None) -> dict[str, Any]:
    """How many of the intervals of `repetitions` evaluations hold the truth; None: the mean over all of them."""
    size = args.repeated_stories
    ids, tokens, _ = stories(args.repetitions * size, seed=12)
    nats = check.bound(ids, args.repeated_draws)
    if truth is None:
        truth = float(nats.sum() / tokens.sum())
    repeated = [ratio_estimate(*of) for of in zip(nats.split(size), tokens.split(size), strict=True)]
    covered = [of.interval is not None and of.interval[0] <= truth <= of.interval[1] for of in repeated]
    values = torch.tensor([of.value for of in repeated], dtype=torch.float64)
    return {
        "truth_nats_per_token": truth,
        "repetitions": args.repetitions,
        "stories_each": size,
        "draws_each": args.repeated_draws,
        "covered_share": sum(covered) / len(covered),
        "mean_of_estimates": float(values.mean()),
        "spread_of_estimates": float(values.std()),
        "mean_standard_error": sum(of.standard_error or 0.0 for of in repeated) / len(repeated),
    }


@torch.no_grad()
def main(argv: list[str]) -> int:
    (args,) = parse([LikelihoodCheckArguments], argv, "likelihood_check")
    start, cpu_start = time.perf_counter(), time.process_time()
    exact = Check(story_language.ExactDenoiser())
    model, _ = load_generator(args.checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    trained = Check(model)
    figures: dict[str, Any] = {"checkpoint": args.checkpoint, "entropy": story_language.entropy_per_token()}
    for name, part in (
        ("exact_denoiser", lambda: estimators(exact, args, orders=2)),
        ("trained_model", lambda: estimators(trained, args, orders=args.orders)),
        ("coverage_of_exact_denoiser", lambda: coverage(exact, args, story_language.entropy_per_token())),
        ("coverage_of_trained_model", lambda: coverage(trained, args, None)),
    ):
        figures[name] = part()
        print(f"{name}: after {time.perf_counter() - start:.0f} s", file=sys.stderr)
    figures["seconds"], figures["cpu_seconds"] = time.perf_counter() - start, time.process_time() - cpu_start
    text = json.dumps(figures, indent=2, allow_nan=False)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
