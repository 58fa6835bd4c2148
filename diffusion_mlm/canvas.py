"""The canvases that generation fills: what stands before the masks, how many masks, what closes the row."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from .generation_config import DiffusionGenerationConfig
from .modeling import context_length, end_token_id, require_mask_token, unwrap
from .tokenization import encode_text

logger = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = 64


@dataclass(frozen=True)
class CanvasRow:
    """One canvas to be filled: `prefix_ids`, the start token included, then `num_new` masks, then `closing`."""

    prefix: str
    prefix_ids: list[int]
    num_new: int
    closing: list[int]
    seed: int

    @property
    def new(self) -> slice:
        return slice(len(self.prefix_ids), len(self.prefix_ids) + self.num_new)

    @property
    def length(self) -> int:
        return self.new.stop + len(self.closing)


def training_facts(model: nn.Module) -> dict[str, Any]:
    """How the model was trained, from `config.json`; empty for a model that this package did not train."""
    return getattr(getattr(unwrap(model), "config", None), "diffusion", None) or {}


def _start_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    return [] if start is None else [int(start)]


def without_start(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return ids[len(_start_token_ids(tokenizer)) :]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands in for positions that the model does not attend to."""
    padding = tokenizer.pad_token_id
    return int(padding) if padding is not None else require_mask_token(tokenizer, "tokenizer")


def canvas_rows(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prefixes: str | Sequence[str],
    config: DiffusionGenerationConfig,
    seed: int,
) -> list[CanvasRow]:
    """One row per sample; sample j of a prefix has the seed `seed + j`, so that a batch changes nothing."""
    if not isinstance(prefixes, (str, Sequence)) or isinstance(prefixes, bytes):
        raise ValueError(f"`prefixes` must be a string or a sequence of strings, not {type(prefixes).__name__}.")
    prefixes = [prefixes] if isinstance(prefixes, str) else prefixes
    require_mask_token(tokenizer, "tokenizer")
    packed = not training_facts(model).get("generates_end")
    closing = [end for end in [end_token_id(tokenizer)] if packed and end >= 0]  # packed rows end with a visible </s>
    rows: list[CanvasRow] = []
    seen: Counter[str] = Counter()
    for place, prefix in enumerate(prefixes):
        prefix_ids = _start_token_ids(tokenizer) + _encode_prefix(tokenizer, prefix, place)
        num_new = _num_new(model, tokenizer, config, len(prefix_ids), len(closing))
        for _ in range(config.num_return_sequences):
            rows.append(CanvasRow(prefix, prefix_ids, num_new, closing, (seed + seen[prefix]) % 2**32))
            seen[prefix] += 1
    return rows


def _encode_prefix(tokenizer: PreTrainedTokenizerBase, prefix: object, place: int) -> list[int]:
    if not isinstance(prefix, str):
        raise ValueError(f"`prefixes[{place}]` must be a string, not {type(prefix).__name__}.")
    try:
        prefix.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`prefixes[{place}]` holds a lone surrogate at character {error.start}, which is half a character: "
            f"decode the source with errors='replace'."
        ) from None
    unknown = tokenizer.unk_token_id
    ids = encode_text(tokenizer, prefix)
    if prefix.endswith(" ") and unknown is not None and ids[-1:] == [unknown]:
        # A vocabulary of words has no word for a space at the end: it belongs to the word that follows.
        shorter = encode_text(tokenizer, prefix.rstrip(" "))
        ids = shorter if shorter.count(unknown) < ids.count(unknown) else ids
    if unknown is not None and unknown in ids:
        logger.warning("The prefix %r holds words that the tokenizer does not know; the model sees <unk>.", prefix)
    return ids


def _num_new(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: DiffusionGenerationConfig,
    num_prefix: int,
    num_closing: int,
) -> int:
    """How many tokens to generate after a prefix of `num_prefix` ids.

    By default a model that writes `</s>` fills a row of the length of training, and any other `DEFAULT_NEW_TOKENS`, or
    as many as there is room for.
    """
    facts, limit = training_facts(model), context_length(unwrap(model), tokenizer)
    room = limit - num_prefix - num_closing
    trained = facts.get("row_length") if facts.get("generates_end") else None
    default = min(room, DEFAULT_NEW_TOKENS) if trained is None else min(room, trained - num_prefix)
    num_new = config.max_new_tokens if config.max_new_tokens is not None else default
    if 1 <= num_new <= room:
        return num_new
    reads = f"The prefix takes {num_prefix} tokens (the start token included)"
    if room < 1:
        raise ValueError(
            f"{reads}, but this model reads {limit - num_closing}, new ones included. Shorten the prefix."
        )
    if config.max_new_tokens is None:
        raise ValueError(
            f"{reads}, as long as the rows of training ({trained}). Shorten it, or pass `max_new_tokens` up to {room}."
        )
    raise ValueError(
        f"{reads} and `max_new_tokens` asks for {num_new} more, but this model reads {limit - num_closing}. Pass "
        f"`max_new_tokens={room}` or less."
    )
