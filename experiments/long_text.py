"""Text several times longer than a model reads, and whether it repeats itself where its windows meet.

    python experiments/long_text.py --checkpoint results/final-model --output results/long_text.json

Writes 2,000 new tokens in one call and looks at every seam, the place between the last token of a window and the first
one of the next. With `stride` new tokens a window, seams stand `stride` tokens apart.

What is measured at a place `s` of a text (before its token `s`): **the longest n-gram of tokens repeated across it**.
Take the tokens from `s - stride` to `s + stride`, as far as the text goes. An n-gram that occurs in them at `p` and
again at `q > p` is repeated across `s` if it begins before `s` and its second occurrence ends behind: `p < s < q + n`.
So one occurrence may stand on either side, or one or both may span the place; two on the same side do not count. The
two may overlap: "la la la" across a seam is a repetition.

A text passes if no 8-gram is repeated across any of its seams. Since some texts repeat themselves everywhere, the same
is measured at random places that are at least a quarter of a stride away from every seam.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from diffusion_mlm import generate, load_generator
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.continuation import make_continuations
from diffusion_mlm.generation import resolve_config
from diffusion_mlm.generation_config import PRESETS
from diffusion_mlm.randomness import make_key, uniform
from diffusion_mlm.tokenization import decode_text

LONGEST_ALLOWED = 7  # tokens


@dataclass
class LongTextArguments:
    """What to write."""

    checkpoint: str = field(
        default="diffusion_mlm/checkpoints/stories-generator", metadata={"help": "The model: a directory or a Hub id."}
    )
    prefix: str = field(default="", metadata={"help": "Text to continue."})
    num_tokens: int = field(default=2000, metadata={"help": "New tokens of each text."})
    stride: int | None = field(default=None, metadata={"help": "New tokens of a window. Default: half of one."})
    num_samples: int = field(default=4, metadata={"help": "Texts."})
    num_places: int = field(default=200, metadata={"help": "Random places to compare with, over all texts."})
    preset: str | None = field(default=None, metadata={"help": "How to sample.", "choices": list(PRESETS)})
    steps: int | None = field(default=None, metadata={"help": "Denoising steps of a window."})
    seed: int = field(default=0, metadata={"help": "Of the first text."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write."})


@dataclass(frozen=True)
class Repeat:
    """An n-gram of `length` tokens that begins at `first` and again at `second`."""

    length: int
    first: int
    second: int


def longest_repeat_across(ids: Sequence[int], place: int, reach: int) -> Repeat:
    """The longest n-gram repeated across a place, within `reach` tokens on either side; the first of equal ones.

    >>> longest_repeat_across([5, 1, 2, 3, 1, 2, 3, 9], place=4, reach=4)
    Repeat(length=3, first=1, second=4)
    >>> longest_repeat_across([1, 2, 1, 2, 9, 8, 7, 6], place=4, reach=4)  # both before it
    Repeat(length=0, first=4, second=4)
    """
    begin, end = max(place - reach, 0), min(place + reach, len(ids))
    longest = Repeat(0, place, place)
    for shift in range(1, end - begin):
        run = 0  # of tokens, up to `last`, that come again `shift` tokens later
        for last in range(begin, end - shift):
            run = run + 1 if ids[last] == ids[last + shift] else 0
            first = last - run + 1
            if run > longest.length and first < place <= last + shift:
                longest = Repeat(run, first, first + shift)
    return longest


def seams_of(num_prefix: int, num_tokens: int, stride: int) -> list[int]:
    """Where a window ends and another begins, counted from the first token of the prefix."""
    return [num_prefix + place for place in range(stride, num_tokens, stride)]


def other_places(num_prefix: int, num_tokens: int, stride: int, number: int, key: int) -> list[int]:
    """Random places of the new text, each at least a quarter of a stride away from seams and ends; none if none is."""
    candidates = [
        num_prefix + place for place in range(num_tokens) if stride // 4 <= place % stride < stride - stride // 4
    ]
    candidates = [place for place in candidates if place + stride // 4 <= num_prefix + num_tokens]
    if not candidates:
        return []
    chosen = uniform(torch.tensor(key), number) * len(candidates)
    return sorted(candidates[int(place)] for place in chosen.tolist())


def long_texts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: LongTextArguments
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each text with what is repeated across its seams and elsewhere, and the sums over all.

    Raises:
        ValueError: one window holds the whole text, so that there is no seam.
    """
    settings: dict[str, Any] = {"max_new_tokens": args.num_tokens, "num_return_sequences": args.num_samples}
    given = {"preset": args.preset, "stride": args.stride, "steps": args.steps}
    settings |= {name: value for name, value in given.items() if value is not None}
    plan = make_continuations(model, tokenizer, args.prefix, resolve_config(model, None, settings), args.seed)[0]
    if plan.fits:
        raise ValueError(
            f"`--num-tokens` is {args.num_tokens}, which one window of {plan.window} holds: without a seam. Use more."
        )
    start = time.perf_counter()
    output = generate(model, tokenizer, args.prefix, seed=args.seed, **settings)
    seconds = time.perf_counter() - start
    prefix_ids, reach = plan.prefix_ids[plan.num_start :], plan.stride
    texts, everywhere = [], {"seams": [], "elsewhere": []}  # type: ignore[var-annotated]
    for number, sample in enumerate(output.samples):
        ids, num_new = prefix_ids + sample.token_ids, len(sample.token_ids)
        key = make_key("long_text", args.seed, number)
        at_seams = [longest_repeat_across(ids, place, reach) for place in seams_of(len(prefix_ids), num_new, reach)]
        places = other_places(len(prefix_ids), num_new, reach, -(-args.num_places // args.num_samples), key)
        elsewhere = [longest_repeat_across(ids, place, reach).length for place in places]
        everywhere["seams"] += [repeat.length for repeat in at_seams]
        everywhere["elsewhere"] += elsewhere
        longest = max(at_seams, key=lambda repeat: repeat.length, default=Repeat(0, 0, 0))
        texts.append(
            {
                "seed": sample.seed,
                "num_tokens": num_new,
                "num_forwards": sample.num_forwards,
                "longest_across_each_seam": [repeat.length for repeat in at_seams],
                "longest_elsewhere": max(elsewhere, default=0),
                "longest_across_a_seam": decode_text(tokenizer, ids[longest.first : longest.first + longest.length]),
                "passes": longest.length <= LONGEST_ALLOWED,
                "text": sample.text,
            }
        )
    summary = {
        "window": plan.window,
        "stride": plan.stride,
        "settings": settings,
        "seconds": seconds,
        **{name: _figures(lengths) for name, lengths in everywhere.items()},
        "passes": all(text["passes"] for text in texts),
    }
    return texts, summary


def _figures(lengths: list[int]) -> dict[str, Any]:
    """How long the longest repeats at many places are."""
    number = max(len(lengths), 1)
    return {
        "num_places": len(lengths),
        "mean_longest_repeat": sum(lengths) / number,
        "max_longest_repeat": max(lengths, default=0),
        "share_too_long": sum(length > LONGEST_ALLOWED for length in lengths) / number,
    }


def main(argv: list[str]) -> int:
    (args,) = parse([LongTextArguments], argv, "long_text")
    for name in ("num_tokens", "num_samples", "num_places"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, not {getattr(args, name)}.")
    model, tokenizer = load_generator(args.checkpoint)
    texts, summary = long_texts(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, args)
    figures = {"checkpoint": args.checkpoint, "longest_allowed": LONGEST_ALLOWED, **summary}
    print(json.dumps(figures, indent=1, allow_nan=False))
    if args.output:
        text = json.dumps({**figures, "texts": texts}, indent=1, allow_nan=False)
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
