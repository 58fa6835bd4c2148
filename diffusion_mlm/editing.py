"""Editing: a share of a text's tokens is masked again and written anew, the rest stays."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from .canvas import Canvas, closing_of_whole_text
from .denoising_step import GuideLogits
from .filled_text import fill_texts
from .filling import fill_canvases
from .generation import resolve_config, resolve_seed
from .generation_config import DiffusionGenerationConfig
from .modeling import context_length, unwrap
from .randomness import make_key, uniform
from .tokenization import boundary_token_ids
from .tracing import TraceRecorder


@dataclass
class EditedText:
    """One sample.

    Attributes:
        original, text (`str`): before and after.
        num_masked (`int`): tokens that were masked and written anew; some may have come out as they were.
        seed (`int`): passing it with the same text and settings gives this sample again.
        num_forwards (`int`): calls of the model on this text.
    """

    original: str
    text: str
    num_masked: int
    seed: int
    num_forwards: int

    def to_json(self) -> str:
        """One line of strict JSON, in ASCII."""
        return json.dumps(vars(self), allow_nan=False)


def edit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: str | Sequence[str],
    generation_config: DiffusionGenerationConfig | None = None,
    *,
    strength: float = 0.4,
    protect: Sequence[str] = (),
    seed: int | None = None,
    generator: torch.Generator | None = None,
    logits_processor: LogitsProcessorList | None = None,
    guidance: GuideLogits | None = None,
    recorder: TraceRecorder | None = None,
    **settings: Any,
) -> list[EditedText]:
    """Varies texts: enters the reverse process where a share `strength` of the tokens is masked.

    As SDEdit does for images (Meng et al. 2021, arXiv:2108.01073), with masks for noise. Characters of tokens that
    are not masked come back as they were.

    Args:
        model, tokenizer, generation_config, seed, generator, logits_processor, guidance, settings: as for
            `generate`. `max_new_tokens` has no meaning here.
        texts (`str` or sequence of them): what is edited.
        strength (`float`): share of the unprotected tokens that are masked, in (0, 1]; at least one is.
        protect (sequence of `str`): pieces of text that stay, wherever they occur.
        recorder (`TraceRecorder`, *optional*): keeps every step.

    Returns:
        `list[EditedText]`: `num_return_sequences` samples of the first text, then of the second, ...

    Raises:
        ValueError: `strength` lies outside (0, 1], a piece to protect is in none of the texts, a text is empty, wholly
            protected or longer than the context, or the tokenizer cannot tell where its tokens stand in the text.
        NonFiniteLogitsError: the model's logits are not finite.
    """
    config = resolve_config(model, generation_config, settings)
    # The length is given, and no token may end the text sooner: what is written from the left does not know where it
    # has to arrive. So no blocks by default.
    config = config.updated(block_length=config.block_length or 0)
    if not isinstance(strength, (int, float)) or isinstance(strength, bool) or not 0 < strength <= 1:
        raise ValueError(f"`strength` must lie in (0, 1], got {strength!r}: it is the share of tokens written anew.")
    texts = [texts] if isinstance(texts, str) else texts
    protect = [protect] if isinstance(protect, str) else protect
    for piece in protect:
        if not piece or not any(piece in text for text in texts):
            raise ValueError(f"`protect` names {piece!r}, which stands in none of the texts.")
    first_seed = resolve_seed(seed, generator)
    seen: Counter[str] = Counter()
    jobs: list[_Job] = []
    for text in texts:
        ids, spans = _tokens_with_places(tokenizer, text)
        for _ in range(config.num_return_sequences):
            own = (first_seed + seen[text]) % 2**32
            seen[text] += 1
            jobs.append(_make_job(model, tokenizer, text, ids, spans, strength, protect, own))
    batch_size = config.batch_size
    if recorder is not None:
        batch_size, guidance = 1, recorder.watch(guidance)
    was_training = model.training
    results: list[EditedText] = []
    try:
        for first in range(0, len(jobs), batch_size):
            batch = jobs[first : first + batch_size]
            places = [place for place, masked in enumerate(batch[0].canvas.to_fill) if masked]
            for step in fill_canvases(
                model, tokenizer, [job.canvas for job in batch], config, logits_processor, guidance
            ):
                if recorder is not None:
                    recorder.see(step, places)
            for place, job in enumerate(batch):
                row = step.canvas[place, : len(job.canvas.ids)].tolist()
                edited = _finish(tokenizer, job, row, int(step.num_forwards[place]))
                if recorder is not None:
                    facts = {"seed": edited.seed, "num_forwards": edited.num_forwards}
                    recorder.finish_filling(recorder.take(), row, _parts(job), edited.text, **facts)
                results.append(edited)
    finally:
        model.train(was_training)
    return results


@dataclass
class _Job:
    text: str
    spans: list[tuple[int, int]]  # characters of each token
    canvas: Canvas  # the start token, the tokens, what closes the row
    seed: int


def _tokens_with_places(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"`texts` must hold texts with something in them, got {text!r}.")
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) does not tell where its tokens stand in a text: load the "
            f"fast one (`AutoTokenizer` does by default)."
        )
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    return list(encoded["input_ids"]), [(int(start), int(end)) for start, end in encoded["offset_mapping"]]


def _make_job(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    ids: list[int],
    spans: list[tuple[int, int]],
    strength: float,
    protect: Sequence[str],
    seed: int,
) -> _Job:
    guarded = [(at, at + len(piece)) for piece in protect for at in range(len(text)) if text.startswith(piece, at)]
    free = [
        place
        for place, (start, end) in enumerate(spans)
        if not any(start < until and end > since for since, until in guarded)
    ]
    if not free:
        raise ValueError(f"`protect` covers all of {text!r}: nothing is left to edit.")
    key = make_key("edit", seed, *ids)
    noise = uniform(torch.tensor(key), len(free)).tolist()
    ranking = sorted(range(len(free)), key=lambda index: noise[index])
    chosen = {free[index] for index in ranking[: math.ceil(strength * len(free) - 1e-9)]}
    start, _ = boundary_token_ids(tokenizer)
    closing = closing_of_whole_text(model, tokenizer, 1 + len(ids))
    limit = context_length(unwrap(model), tokenizer)
    if 1 + len(ids) + len(closing) > limit:
        raise ValueError(
            f"`texts` holds a text of {len(ids)} tokens, but this model reads {limit - 2}. Edit it in parts."
        )
    masked = [place in chosen for place in range(len(ids))]
    to_fill = [False, *masked] + [False] * len(closing)
    given = [False] + [not mask for mask in masked] + [False] * len(closing)
    return _Job(text, spans, Canvas([start, *ids, *closing], to_fill, given, key, may_end=False), seed)


def _finish(tokenizer: PreTrainedTokenizerBase, job: _Job, row: list[int], num_forwards: int) -> EditedText:
    """Replaces the characters of each run of masked tokens by what was generated there."""
    parts = _parts(job)
    return EditedText(
        job.text, "".join(fill_texts(tokenizer, row, parts)), sum(job.canvas.to_fill), job.seed, num_forwards
    )


def _parts(job: _Job) -> list[str | slice]:
    """What stays of the text, and the masked runs between, as their places in the row."""
    parts: list[str | slice] = []
    copied, place, masked = 0, 1, job.canvas.to_fill
    while place <= len(job.spans):
        if not masked[place]:
            place += 1
            continue
        run = place
        while place <= len(job.spans) and masked[place]:
            place += 1
        start, end = job.spans[run - 1][0], job.spans[place - 2][1]
        parts += [job.text[copied:start]] if start > copied else []
        parts.append(slice(run, place))
        copied = end
    return parts + ([job.text[copied:]] if copied < len(job.text) else [])
