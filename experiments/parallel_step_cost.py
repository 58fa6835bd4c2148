"""What parallel steps cost on the built-in stories: as predicted from conditional entropies, and as measured.

    python experiments/parallel_step_cost.py

Tokens that are revealed in one step are drawn independently of each other. Even with the exact denoiser the sampler
then follows another distribution q than the stories' p, and for an order that does not look at the text

    KL(p || q | order)  =  sum over steps of the total correlation of what is revealed, given what is visible
                        =  sum over revealed positions of  H(x_i | visible before its step)
                         - sum over revealed positions of  H(x_i | all that comes before it in the order).

In a random order H(x_i | n visible) is h(n), the mean over masked positions: the curve of the loss by mask rate.

* Predicted: these entropies, in closed form from the denoiser's distributions, in contexts cut out of stories. Nothing
  is sampled or denoised.
* Measured: `denoise` walks its own plan on other stories, with each drawn token replaced by that of the story, and the
  logarithm of the probability it had is added up: the exact log q(story | order). The exact log p is taken off.
* Valid: stories that `denoise` really writes in so many steps. q(valid) is at least exp(-KL), as p(valid) is 1.

Writes JSON, and beside it the same as a Markdown table.
Sources: Chen, Cong and Li 2025, arXiv:2511.04647; Lavenant and Zanella 2025, arXiv:2510.25544.
"""

import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_mlm import story_language
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.denoising import DenoisingStep, denoise
from diffusion_mlm.randomness import fold_in, make_key, uniform
from diffusion_mlm.sampling import Sampling
from diffusion_mlm.schedules import unmask_counts
from diffusion_mlm.story_language.automaton import BOS_ID, MASK_ID
from diffusion_mlm.story_language.inference import ROWS_AT_ONCE

# (canvas (B, L) int64, needed (B, L) bool) -> exact log p(token | visible tokens), (needed.sum(), V), in nats
Source = Callable[[Tensor, Tensor], Tensor]

ORDERS = ("random", "left_to_right")  # of these the positions of a step do not depend on the text
PLAIN = Sampling("nucleus", temperature=1.0, top_p=1.0)
NO_IDS = torch.tensor([], dtype=torch.int64)


@dataclass
class ParallelStepCostArguments:
    """How much to look at."""

    steps: list[int] = field(
        default_factory=lambda: [48, 32, 24, 16, 12, 8], metadata={"help": "Steps; a story has 79 positions."}
    )
    schedule: str = field(default="linear", metadata={"help": "How many positions each step reveals."})
    num_predicted: int = field(default=96, metadata={"help": "Stories for the prediction."})
    measured_forwards: int = field(
        default=3840,
        metadata={"help": "Forwards to measure a number of steps by: steps times stories, others each time."},
    )
    num_generated: int = field(default=64, metadata={"help": "Stories to write for the share of valid ones."})
    seed: int = field(default=0, metadata={"help": "Of stories, orders and samples."})
    output: str = field(default="results/parallel_step_cost.json", metadata={"help": "JSON file to write."})

    def __post_init__(self) -> None:
        for name in ("num_predicted", "num_generated"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"`--{name.replace('_', '-')}` must be at least 2 for a standard error, got {getattr(self, name)}."
                )
        if self.measured_forwards < 2 * max(self.steps):
            raise ValueError(
                f"`--measured-forwards` is {self.measured_forwards}, too few for two stories in {max(self.steps)} "
                f"steps: pass at least {2 * max(self.steps)}."
            )


# --- predicted -------------------------------------------------------------------------------------------------------


def entropies_by_visible(source: Source, clean: Tensor, rank: Tensor, mask_id: int) -> Tensor:
    """Exact entropy of each masked position when the first n positions of an order are visible, for every n.

    Args:
        source (`Callable`): see `Source`.
        clean (`torch.Tensor` of shape `(R, L)`, int64): texts drawn from p.
        rank (`torch.Tensor` of shape `(R, L)`, int64): the place of each position in the order, 0 to N - 1; -1 where
            it is always visible.
        mask_id (`int`): of the masks.

    Returns:
        `torch.Tensor` of shape `(N, R, L)`, float64, in nats; 0 where visible.
    """
    numbers = torch.arange(int(rank.max()) + 1)
    hidden = (rank >= numbers[:, None, None]).flatten(0, 1)  # (N * R, L)
    contexts = clean.repeat(len(numbers), 1).masked_fill(hidden, mask_id)
    nats = torch.zeros(hidden.shape, dtype=torch.float64)
    for some in torch.arange(len(hidden)).split(ROWS_AT_ONCE):
        log_p = source(contexts[some], hidden[some])
        nats[some] = nats[some].masked_scatter(hidden[some], torch.special.entr(log_p.double().exp()).sum(-1))
    return nats.unflatten(0, (len(numbers), len(clean)))


def expected_nats(entropies: Tensor, rank: Tensor, counts: Sequence[int], is_random: bool) -> Tensor:
    """-log q(text | order) in expectation over the tokens, `(R,)`, if steps reveal `counts` positions.

    In a random order any masked position is as likely to be next as another, so that the mean over all of them, times
    the count, stands for those revealed.
    """
    total = torch.zeros(len(rank), dtype=torch.float64)
    for visible, count in zip(itertools.accumulate([0, *counts[:-1]]), counts, strict=True):
        nats = entropies[visible]
        if is_random:
            total += count * nats.sum(-1) / (rank >= visible).sum(-1)
        else:
            total += nats.masked_fill(rank >= visible + count, 0.0).sum(-1)
    return total


def total_correlations(entropies: Tensor, rank: Tensor, counts: Sequence[int], is_random: bool) -> Tensor:
    """What these steps cost, `(R,)`, in nats; the mean over texts is KL(p || q | order)."""
    one_by_one = [1] * len(entropies)
    return expected_nats(entropies, rank, counts, is_random) - expected_nats(entropies, rank, one_by_one, is_random)


# --- measured --------------------------------------------------------------------------------------------------------


def measured_nats(source: Source, clean: Tensor, to_fill: Tensor, mask_id: int, keys: Tensor, **plan: Any) -> Tensor:
    """-log q(text | order) of the sampler itself, `(R,)`, in nats: exact for each text, its order given by `keys`.

    `denoise` gets the true token as the only possible one wherever it asks, so that it walks on through the true text;
    what the source gave that token is added up. Arguments as for `denoise` (`order`, `steps` and `schedule` are the
    plan) and `entropies_by_visible`.
    """
    nats = torch.zeros(len(clean), dtype=torch.float64)

    def truth(canvas: Tensor, needed: Tensor) -> Tensor:
        log_p = source(canvas, needed).double()
        tokens = clean[needed].unsqueeze(-1)
        nats.index_add_(0, needed.nonzero()[:, 0], -log_p.gather(-1, tokens).squeeze(-1))
        return torch.full_like(log_p, -math.inf).scatter(-1, tokens, 0.0)

    last = last_step(truth, clean, to_fill, mask_id, keys, **plan)
    if not torch.equal(last.canvas, clean):
        raise ValueError("`denoise` has left the texts that it was to walk through.")
    return nats


def last_step(
    source: Source, canvas: Tensor, to_fill: Tensor, mask_id: int, keys: Tensor, **plan: Any
) -> DenoisingStep:
    *_, last = denoise(
        source, canvas, to_fill, mask_id=mask_id, keys=keys, forbidden_ids=NO_IDS, sampling=PLAIN, **plan
    )
    return last


# --- the stories -----------------------------------------------------------------------------------------------------


def story_source(denoiser: story_language.ExactDenoiser) -> Source:
    return lambda canvas, needed: denoiser(canvas).logits[needed]


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def compare(args: ParallelStepCostArguments, order: str) -> dict[str, Any]:
    """The figures of an order: one row for each number of steps."""
    denoiser = story_language.ExactDenoiser(dtype=torch.float64)
    source = story_source(denoiser)
    length = story_language.BLOCK_LENGTH - 1
    plans = {steps: unmask_counts(args.schedule, length, steps) for steps in args.steps}

    # 1. Predicted, on stories of its own.
    is_random = order == "random"
    clean = story_language.sample_ids(args.num_predicted, make_key("predicted", args.seed))
    keys = fold_in(make_key("predicted", order, args.seed), torch.arange(len(clean)))
    places = uniform(keys, length) if is_random else torch.arange(length).expand(len(clean), -1)
    rank = torch.cat([torch.full((len(clean), 1), -1), places.argsort(-1).argsort(-1)], dim=1)
    entropies = entropies_by_visible(source, clean, rank, MASK_ID)
    one_by_one, one_by_one_error = mean_and_error(expected_nats(entropies, rank, [1] * length, is_random))

    # 2. Measured, on others; and 3. the stories that the sampler writes.
    nothing = torch.full((args.num_generated, length + 1), MASK_ID)
    nothing[:, 0] = BOS_ID
    rows = []
    for steps, counts in plans.items():
        key = make_key("measured", order, steps, args.seed)
        clean = story_language.sample_ids(args.measured_forwards // steps, key)
        keys = fold_in(key, torch.arange(len(clean)))
        plan = {"order": order, "steps": steps, "schedule": args.schedule}
        nats = measured_nats(source, clean, clean.ne(BOS_ID), MASK_ID, keys, **plan)
        measured, measured_error = mean_and_error(nats + denoiser.log_prob_ids(clean))
        keys = fold_in(make_key("generated", order, steps, args.seed), torch.arange(len(nothing)))
        last = last_step(source, nothing, nothing.eq(MASK_ID), MASK_ID, keys, **plan)
        valid = float(denoiser.log_prob_ids(last.canvas).isfinite().double().mean())
        predicted, predicted_error = mean_and_error(total_correlations(entropies, rank, counts, is_random))
        least_valid = math.exp(-max(predicted, 0.0))
        error = max(math.hypot(predicted_error, measured_error), 1e-9)  # one token a step costs nothing, for certain
        rows.append(
            {
                "order": order,
                "steps": steps,
                "predicted_nats": predicted,
                "predicted_standard_error": predicted_error,
                "num_measured": len(clean),
                "measured_nats": measured,
                "measured_standard_error": measured_error,
                "difference_in_standard_errors": (measured - predicted) / error,
                "agree_within_3_standard_errors": abs(measured - predicted) <= 3 * error,
                "valid_share": valid,
                "least_valid_share_predicted": least_valid,
                "valid_share_is_as_predicted": valid
                >= least_valid - 3 * math.sqrt(least_valid * (1 - least_valid) / len(nothing)),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return {"order": order, "entropy_from_curve": one_by_one, "standard_error": one_by_one_error, "rows": rows}


def main(argv: list[str]) -> int:
    (args,) = parse([ParallelStepCostArguments], argv, "parallel_step_cost")
    start = time.process_time()
    orders = [compare(args, order) for order in ORDERS]
    rows = [row for figures in orders for row in figures.pop("rows")]
    result = {
        "schedule": args.schedule,
        "positions": story_language.BLOCK_LENGTH - 1,
        "entropy_of_a_story_in_nats": story_language.AUTOMATON.entropy(),
        "entropy_from_the_curve_of_each_order": orders,
        "num_predicted": args.num_predicted,
        "num_generated": args.num_generated,
        "all_agree_within_3_standard_errors": all(row["agree_within_3_standard_errors"] for row in rows),
        "all_valid_shares_as_predicted": all(row["valid_share_is_as_predicted"] for row in rows),
        "cpu_seconds": round(time.process_time() - start, 1),
        "rows": rows,
    }
    path = Path(args.output)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(as_table(result), encoding="utf-8")
    return 0


COLUMNS = ("order", "steps", "predicted", "measured", "difference in standard errors", "valid", "valid at least")


def as_table(result: dict[str, Any]) -> str:
    lines = [
        f"What it costs to reveal the {result['positions']} positions of a story in fewer steps, in nats per story on "
        f"top of its {result['entropy_of_a_story_in_nats']:.1f}, with the exact denoiser and the "
        f"{result['schedule']} schedule; ± is one standard error. The last column is exp(-predicted). By "
        f"`experiments/parallel_step_cost.py`.\n",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for row in result["rows"]:
        cells = [
            row["order"],
            str(row["steps"]),
            f"{row['predicted_nats']:.2f} ± {row['predicted_standard_error']:.2f}",
            f"{row['measured_nats']:.2f} ± {row['measured_standard_error']:.2f}",
            f"{row['difference_in_standard_errors']:+.1f}",
            f"{row['valid_share']:.2f}",
            f"{row['least_valid_share_predicted']:.2g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
