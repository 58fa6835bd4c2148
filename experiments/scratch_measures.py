"""What `from_scratch.py` and `from_scratch_study.py` measure of a model: likelihood, and the words that it writes."""

import math
import platform
import re
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusion_mlm import TraceRecorder, evaluate_texts, generate
from diffusion_mlm.evaluation.diversity import diversity_figures
from diffusion_mlm.evaluation.interval import share_interval
from diffusion_mlm.evaluation.words import split_words
from diffusion_mlm.modeling import forbidden_token_ids
from diffusion_mlm.visualization.trace_files import write_targets

LONG_WORD = 4  # letters
WORD = r"[^\W\d_]+(?:['’][^\W\d_]+)*"
_FIRST_LOSS_CHARACTERS, _FIRST_LOSS_DRAWS = 4000, 8


def machine() -> str:
    """The device, for figures of time."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    draws: int,
    packing: dict[str, Any],
    **options: Any,
) -> dict[str, Any]:
    """The bound of held-out text in nats per token and bits per byte, and the loss at each tenth of the mask rates."""
    report = evaluate_texts(model, tokenizer, list(texts), draws=draws, **packing, **options)
    bound, num_bytes = report.bound, report.rows.num_bytes
    found = {**bound.to_dict(), "num_tokens": report.num_tokens, "num_bytes": num_bytes}
    if bound.confidence_interval and num_bytes:
        bits = report.num_tokens / math.log(2) / num_bytes
        found["bits_per_byte_interval"] = [nats * bits for nats in bound.confidence_interval]
    curve = report.loss_by_mask_rate
    losses = [nats for _, nats in curve]
    return {
        "bound": found,
        "loss_by_mask_rate": curve,
        "loss_rises_with_mask_rate": rises(losses),
        "steps": [estimate.to_dict() for estimate in report.others.get("steps", [])],
        "rows": {"nats": _rounded(bound.nats), "tokens": [] if bound.tokens is None else bound.tokens.tolist()},
    }


def rises(losses: Sequence[float]) -> bool:
    """Whether the loss is lower at lower mask rates: from each tenth to the next it may fall by 1 % at most, which is
    less than the noise of the draws, and it is lower at the first than at the last."""
    return losses[0] < losses[-1] and all(after >= 0.99 * before for before, after in pairwise(losses))


def _rounded(nats: torch.Tensor | None) -> list[float]:
    return [] if nats is None else [round(value, 3) for value in nats.tolist()]


def first_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], packing: dict[str, Any]
) -> dict[str, Any]:
    """The loss before training beside the logarithm of the tokens that can be predicted: alike if nothing is known."""
    few, left = [], _FIRST_LOSS_CHARACTERS
    for text in texts:
        if left > 0:
            few.append(text[:left])
            left -= len(text)
    report = evaluate_texts(model, tokenizer, few, draws=_FIRST_LOSS_DRAWS, **packing)
    vocab_size = int(model.config.vocab_size)
    possible = vocab_size - len(forbidden_token_ids(tokenizer, packing["packing"] == "one_per_row", vocab_size))
    loss, expected = report.bound.nats_per_token, math.log(possible)
    return {
        "nats": loss,
        "log_vocabulary": expected,
        "possible_tokens": possible,
        "within_2_percent": abs(loss / expected - 1) <= 0.02,
    }


# Words


def vocabulary(texts: Iterable[str]) -> set[str]:
    """The different words of some texts, in small letters."""
    return {word.lower() for text in texts for word in re.findall(WORD, text)}


def known_words(texts: Iterable[str], known: set[str], least: int = 1) -> tuple[int, int]:
    """How many words of some texts are known, and how many there are; those cut at an end of a text do not count.

    Args:
        least (`int`): letters that a word must have to count. Single letters are known of any text, so that a row of
            them has a high share.
    """
    words: list[str] = []
    for text in texts:
        found = list(re.finditer(WORD, text))
        words += [match.group().lower() for match in found if match.start() > 0 and match.end() < len(text)]
    words = [word for word in words if len(word) >= least]
    return sum(word in known for word in words), len(words)


def word_figures(texts: Sequence[str], known: set[str]) -> dict[str, Any]:
    """The shares of known words and of known long ones, with 95 % intervals that take words as independent; and
    different n-grams."""
    found: dict[str, Any] = {}
    for name, least in (("known_words", 1), ("known_long_words", LONG_WORD)):
        right, total = known_words(texts, known, least)
        found[name] = right / total if total else None
        found[f"{name}_interval"] = list(share_interval(right, total)) if total else None
        found["num_words" if least == 1 else "num_long_words"] = total
    return {
        **found,
        **diversity_figures([split_words(text) for text in texts]),
    }


# Samples


def samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    known: set[str],
    number: int,
    seed: int,
    max_new_tokens: int | None,
) -> dict[str, Any]:
    """Texts from nothing with the settings of `generate`, and their figures."""
    begun = time.perf_counter()
    options = {**settings, "num_return_sequences": number, "max_new_tokens": max_new_tokens}
    written = generate(model, tokenizer, "", seed=seed, **options).samples
    return {
        "settings": settings,
        **word_figures([sample.text for sample in written], known),
        "forwards": sum(sample.num_forwards for sample in written) / len(written),
        "seconds": time.perf_counter() - begun,
        "texts": [sample.text for sample in written[:2]],
    }


def write_trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    seed: int,
    max_new_tokens: int | None,
    target: Path,
) -> str:
    """The steps of one text as an animation or a page, by the end of the name of the file."""
    recorder = TraceRecorder(tokenizer)
    generate(model, tokenizer, "", seed=seed, recorder=recorder, max_new_tokens=max_new_tokens, **settings)
    write_targets(recorder.trace(seed=seed), {target.suffix[1:]: str(target)})
    return target.name
