"""Texts that a model writes to be measured, with what they cost: a masked diffusion model, or a causal one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..causal_peer import continue_causally
from ..generation import generate_each
from ..modeling import context_length, end_token_id, unwrap
from ..tokenization import boundary_token_ids, decode_text, encode_text


@dataclass(frozen=True)
class WrittenTexts:
    """Samples and their price.

    Attributes:
        texts (`list[str]`): prefix and continuation.
        finished (`list[bool]`): whether each ended by itself.
        forwards (`float`): calls of the model per text, on the mean.
        seconds (`float`): per text, when they are written `batch_size` at a time.
    """

    texts: list[str]
    finished: list[bool]
    forwards: float
    seconds: float


def write_by_diffusion(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    num_texts: int,
    *,
    prefix: str = "",
    steps: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> WrittenTexts:
    """Texts by the settings of the model's `generation_config`; sample j uses `seed + j`.

    Args:
        steps (`int`, *optional*): instead of those of the settings.

    Raises:
        ValueError: see `generate`.
    """
    settings: dict[str, Any] = {"num_return_sequences": num_texts, "batch_size": batch_size}
    settings |= {} if steps is None else {"steps": steps}
    start = time.perf_counter()
    written = generate_each(model, tokenizer, prefix, seed=seed, progress=progress, **settings)
    samples = [sample for sample, _ in written]
    seconds = time.perf_counter() - start
    return WrittenTexts(
        texts=[sample.text for sample in samples],
        finished=[sample.finished for sample in samples],
        forwards=sum(sample.num_forwards for sample in samples) / num_texts,
        seconds=seconds / num_texts,
    )


def write_causally(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    num_texts: int,
    *,
    max_length: int,
    may_end: bool,
    prefix: str = "",
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> WrittenTexts:
    """Texts of a causal model, a forward for each token: by its own `generation_config` if that samples, else from the
    nucleus of 0.9 at temperature 1, as masked models do by default.

    Args:
        max_length (`int`): tokens of a row, start and prefix included, which is filled unless the text may end.
        may_end (`bool`): whether the end token may be written; if not, it has probability 0 as all special tokens.

    Raises:
        ValueError: the prefix leaves no room.
    """
    ids, num_new = causal_prefix(model, tokenizer, prefix, max_length, may_end)
    end_id = end_token_id(tokenizer)
    causal: Any = unwrap(model)
    own = getattr(causal, "generation_config", None)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0}
    if getattr(own, "do_sample", False):
        sampling = {}
    texts, finished, num_forwards = [], [], 0
    start = time.perf_counter()
    for first in range(0, num_texts, batch_size):
        rows = torch.tensor([ids] * min(batch_size, num_texts - first), device=next(model.parameters()).device)
        written = continue_causally(causal, tokenizer, rows, num_new, may_end=may_end, seed=seed + first, **sampling)
        for new in written.tolist():
            ended = may_end and end_id in new
            new = new[: new.index(end_id)] if ended else new
            texts.append(decode_text(tokenizer, [*ids[1:], *new]) if prefix else decode_text(tokenizer, new))
            finished.append(ended)
            num_forwards += len(new) + ended
        if progress is not None:
            progress(len(texts), num_texts)
    seconds = time.perf_counter() - start
    return WrittenTexts(texts, finished, num_forwards / num_texts, seconds / num_texts)


def causal_prefix(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prefix: str, max_length: int, may_end: bool
) -> tuple[list[int], int]:
    """The ids that a row begins with, and how many new ones there is room for.

    Raises:
        ValueError: for none.
    """
    ids = [boundary_token_ids(tokenizer)[0], *encode_text(tokenizer, prefix)]
    length = min(max_length, context_length(unwrap(model), tokenizer))
    num_new = length - len(ids) - (not may_end)  # a row that does not end by itself is closed by `</s>`
    if num_new < 1:
        raise ValueError(
            f"`prefix` has {len(ids) - 1} tokens, which leave no room in rows of {length} tokens: shorten it."
        )
    return ids, num_new
