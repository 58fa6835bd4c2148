"""Whether constraints hold: many samples of the packaged story generator under each, over all kinds of settings.

    python experiments/constraint_check.py

Every sample is looked at with `re` and with lists of words, by code that knows nothing of automata. Orders, samplings,
numbers of steps, remasking, blocks and adaptive counts are mixed over the samples of a constraint; one of them asks
for texts longer than the model reads. Writes `results/constraints.json`; the exit status is 1 unless all of them held.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from diffusion_mlm import Constraints, generate, load_generator
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse


@dataclass
class ConstraintCheckArguments:
    """What to check."""

    checkpoint: str = field(
        default="diffusion_mlm/checkpoints/stories-generator", metadata={"help": "The model: a directory or a Hub id."}
    )
    num_samples: int = field(default=1000, metadata={"help": "Samples for each constraint."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    output: str = field(default="results/constraints.json", metadata={"help": "JSON file to write."})

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"`--num-samples` must be at least 1, got {self.num_samples}.")


@dataclass(frozen=True)
class Case:
    """A constraint, and the same said by other means of a new text."""

    name: str
    constraints: Constraints
    holds: Callable[[str], bool]
    prefixes: tuple[str, ...] = ("", "Once upon a time, Mia", "One rainy day")
    max_new_tokens: int = 16
    stride: int | None = None


SENTENCE = (
    r" lived (?:by|near) the (?:[a-z]+ ){1,2}with (?:her|his) [a-z]+(?:, [A-Z][a-z]+)?\."
    r"(?: (?:He|She) [a-z]+(?: [a-z]+)*\.)?"
)
COMMON = ["the", "and", "a", "was", "had", "lived", "with", "her", "his", "I", "Give"]
FEW = ["the", "a", "fox", "dog", "cat", "mouse", "saw", "found", "was", "had", "with", "and", "near", "lived", "in"]
FEW += ["She", "He", "Mia", "red", "small", "forest", "river"]
INSIDE = ["ra", "he", "ing", "o "]
NAMES = ("Once upon a time, Mia", "Brave Ben")


def words_of(text: str) -> set[str]:
    """Words as an eye sees them: what is left between signs and spaces."""
    return set("".join(character if character.isalnum() else " " for character in text).split())


CASES = (
    Case("regex", Constraints(regex=SENTENCE), lambda new: re.fullmatch(SENTENCE, new) is not None, NAMES),
    Case(
        "banned words",
        Constraints(banned_words=COMMON),
        lambda new: words_of(new).isdisjoint(COMMON) and "Give" not in new,  # nor glued to a neighbour
    ),
    Case("allowed words", Constraints(allowed_words=FEW), lambda new: words_of(new) <= set(FEW)),
    Case(
        "banned strings in any case",
        Constraints(banned_strings=INSIDE, ignore_case=True),
        lambda new: not any(string in new.lower() for string in INSIDE),
    ),
    Case(
        "regex and banned words",
        Constraints(regex=SENTENCE, banned_words=["her", "lake", "forest", "cat", "dog", "She"]),
        lambda new: (
            re.fullmatch(SENTENCE, new) is not None
            and words_of(new).isdisjoint(["her", "lake", "forest", "cat", "dog", "She"])
        ),
        NAMES,
    ),
    Case(
        "banned words and a regex in text longer than the context",
        Constraints(regex=r"[^\"]*", banned_words=COMMON),
        lambda new: '"' not in new and words_of(new).isdisjoint(COMMON),
        max_new_tokens=144,
        stride=48,
    ),
)


def mixed_settings() -> list[dict[str, Any]]:
    """Each order with each sampling, and on top of them, in turn, another number of steps and another extra."""
    orders = ("random", "confidence", "margin", "entropy", "left_to_right")
    samplings = ("greedy", "topk", "nucleus", "min_p", "typical")
    steps = (1, 2, 4, 16)
    extras: tuple[dict[str, Any], ...] = (
        {},
        {"remask": "renoise"},
        {"block_length": 16},
        {"remask": "remdm_cap"},
        {"min_gap": 1},
        {"adaptive": "entropy_bound", "adaptive_bound": 0.5},
        {"temperature": 1.5},
    )
    pairs = [(order, sampling) for order in orders for sampling in samplings]
    return [
        {"order": order, "sampling": sampling, "steps": max(steps[place % 4], 3 * ("block_length" in extra)), **extra}
        for place, (order, sampling) in enumerate(pairs)
        for extra in [extras[place % len(extras)]]
    ]


def check(
    case: Case, model: nn.Module, tokenizer: PreTrainedTokenizerBase, num_samples: int, seed: int
) -> dict[str, Any]:
    """How many of `num_samples` samples keep to the constraint, and examples of those that do not."""
    start = time.process_time()
    settings = mixed_settings()
    samples = []
    for place, setting in enumerate(settings):
        share = num_samples * (place + 1) // len(settings) - num_samples * place // len(settings)
        if share:
            output = generate(
                model,
                tokenizer,
                case.prefixes[place % len(case.prefixes)],
                seed=seed + place * num_samples,
                constraints=case.constraints,
                num_return_sequences=share,
                max_new_tokens=case.max_new_tokens,
                stride=case.stride,
                **setting,
            )
            samples += output.samples
    broken = [sample.completion for sample in samples if not case.holds(sample.completion)]
    return {
        "constraint": case.name,
        "description": str(case.constraints),
        "held": len(samples) - len(broken),
        "total": len(samples),
        "distinct": len({sample.completion for sample in samples}),
        "settings": len(settings),
        "max_new_tokens": case.max_new_tokens,
        "forwards_per_sample": sum(sample.num_forwards for sample in samples) / len(samples),
        "cpu_seconds": round(time.process_time() - start, 1),
        "broken": broken[:3],
        "examples": [sample.completion for sample in sorted(samples, key=lambda sample: -sample.num_forwards)[:3]],
    }


def main(argv: list[str]) -> int:
    (args,) = parse([ConstraintCheckArguments], argv, "constraint_check")
    model, tokenizer = load_generator(args.checkpoint)
    rows = []
    for case in CASES:
        rows.append(check(case, model, tokenizer, args.num_samples, args.seed))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "checkpoint": args.checkpoint,
        "held": sum(row["held"] for row in rows),
        "total": sum(row["total"] for row in rows),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows), 1),
        "constraints": rows,
    }
    Path(args.output).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"{result['held']} of {result['total']} samples keep to their constraint.", file=sys.stderr)
    return int(result["held"] < result["total"])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
