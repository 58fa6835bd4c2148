"""How well a model knows the built-in stories, whose exact probabilities are known.

    python experiments/story_quality.py --checkpoint results/final-model --output results/story_quality.json

Prints and writes the likelihood bound next to the exact entropy, the share of generated stories that the grammar
accepts and of those whose middle was filled in anew, and the mean exact log-probability per token. A perfect generator
has every story accepted *and* that mean equal to minus the entropy: greedy text is accepted too, but far too probable.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from diffusion_mlm import generate, infill, load_generator, story_language
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.evaluation.likelihood import bound_of_rows
from diffusion_mlm.evaluation.row_predictor import make_predictor
from diffusion_mlm.evaluation.story_quality import story_figures

HELD_OUT_SEED = 1_000_003  # stories that no recipe trains on


@dataclass
class StoryQualityArguments:
    """What to measure."""

    checkpoint: str = field(
        default="diffusion_mlm/checkpoints/stories-generator", metadata={"help": "The model: a directory or a Hub id."}
    )
    num_stories: int = field(default=512, metadata={"help": "Held-out stories for the bound."})
    draws: int = field(default=32, metadata={"help": "Masks per story for the bound."})
    num_samples: int = field(default=512, metadata={"help": "Stories to generate at the default settings."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write."})


@torch.no_grad()
def story_bound(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, num_stories: int, draws: int, batch_size: int = 128
) -> dict[str, float]:
    """The bound on held-out stories in nats per token, its standard error over stories, and the exact value."""
    ids = story_language.sample_ids(num_stories, HELD_OUT_SEED)
    predictor = make_predictor(model, tokenizer, scores_end=True)
    model.eval()
    nats, tokens = [], []
    for rows in ids.to(predictor.device).split(batch_size):
        bounds = bound_of_rows(
            predictor,
            rows,
            rows.ne(tokenizer.bos_token_id),
            mask_id=predictor.mask_id,
            end_id=predictor.end_id,
            forbidden_ids=predictor.forbidden_ids,
            draws=draws,
        )
        nats.append(bounds.nats)
        tokens.append(bounds.num_tokens)
    total_nats, total_tokens = torch.cat(nats).cpu(), torch.cat(tokens).cpu()
    exact = -story_language.log_prob(story_language.sample(num_stories, HELD_OUT_SEED))
    per_token = float(total_nats.sum() / total_tokens.sum())
    return {
        "nelbo_nats_per_token": per_token,
        "nelbo_standard_error": float((total_nats - exact).std() / num_stories**0.5 / total_tokens.double().mean()),
        "exact_nats_per_token_of_these_stories": float(exact.sum() / total_tokens.sum()),
        "exact_entropy_nats_per_token": story_language.entropy_per_token(),
        "nelbo_over_exact": per_token / float(exact.sum() / total_tokens.sum()),
    }


def story_samples(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, num_samples: int, seed: int, **settings: Any
) -> dict[str, Any]:
    """Stories written from nothing and what the grammar says of them."""
    start = time.perf_counter()
    output = generate(model, tokenizer, "", seed=seed, num_return_sequences=num_samples, **settings)
    seconds = time.perf_counter() - start
    figures = story_figures(output.texts)
    return {
        "valid_share": figures.valid_share,
        "mean_exact_logprob_per_token": figures.log_prob,  # of the accepted stories
        "num_distinct": figures.num_distinct,
        "distinct_3": figures.distinct_3,
        "num_samples": num_samples,
        "forwards_per_sample": sum(sample.num_forwards for sample in output.samples) / num_samples,
        "seconds_per_sample": seconds / num_samples,
        "samples": output.texts[:4],
    }


def story_infills(model: nn.Module, tokenizer: PreTrainedTokenizerBase, num_samples: int, seed: int) -> dict[str, Any]:
    """The middle half of held-out stories filled in again: how many of them the grammar still accepts."""
    templates = []
    for story in story_language.sample(num_samples, HELD_OUT_SEED + 1):
        tokens = story_language.automaton.split_text(story)
        first, last = len(tokens) // 4, 3 * len(tokens) // 4
        templates.append("".join([*tokens[:first], f" <mask:{last - first}>", *tokens[last:]])[1:])
    texts = [sample.text for sample in infill(model, tokenizer, templates, seed=seed)]
    valid = torch.isfinite(story_language.log_prob(texts))
    return {"infill_valid_share": float(valid.double().mean()), "infill_samples": texts[:2]}


def story_quality(checkpoint: str, num_stories: int, draws: int, num_samples: int, seed: int) -> dict[str, Any]:
    """All figures of a checkpoint."""
    model, tokenizer = load_generator(checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return {
        **story_bound(model, tokenizer, num_stories, draws),
        **story_samples(model, tokenizer, num_samples, seed),
        **story_infills(model, tokenizer, num_samples, seed),
    }


def main(argv: list[str]) -> int:
    (args,) = parse([StoryQualityArguments], argv, "story_quality")
    figures = story_quality(args.checkpoint, args.num_stories, args.draws, args.num_samples, args.seed)
    text = json.dumps({"checkpoint": args.checkpoint, **figures}, indent=2, allow_nan=False)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
