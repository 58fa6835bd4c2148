"""Canvases: rows of token ids, some of which are to be generated, and what opens and closes such a row."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .modeling import end_token_id, require_mask_token, unwrap
from .tokenization import encode_text

logger = logging.getLogger(__name__)

_GAUSSIAN = "embedding_diffusion"  # the model type


@dataclass(frozen=True)
class Canvas:
    """One row of token ids, special tokens included, some of which are to be generated.

    Attributes:
        ids (`list[int]`): whatever stands where `to_fill` is True does not matter.
        to_fill (`list[bool]`): positions to generate.
        given (`list[bool]`): what the caller wants to stand there: a prefix, the text around blanks, what an edit
            leaves. Neither start and closing tokens nor what earlier windows wrote. It is the condition of guidance.
        key (`int`): of its randomness; equal canvases with equal keys come out equal.
        may_end (`bool`): whether the text may end in what is generated, if the model writes ends at all.
    """

    ids: list[int]
    to_fill: list[bool]
    given: list[bool]
    key: int
    may_end: bool = True


def training_facts(model: nn.Module) -> dict[str, Any]:
    """How the model was trained, from `config.json`; empty for a model that this package did not train."""
    return getattr(getattr(unwrap(model), "config", None), "diffusion", None) or {}


def is_gaussian(model: nn.Module) -> bool:
    """Whether this is a model of embedding diffusion, which reads noisy embeddings instead of masks."""
    return getattr(getattr(unwrap(model), "config", None), "model_type", None) == _GAUSSIAN


def is_gaussian_checkpoint(name_or_path: str, source: Mapping[str, Any] | None = None) -> bool:
    """Whether `config.json` of a directory or a repository says that; False where there is none to read."""
    try:
        found, _ = PreTrainedConfig.get_config_dict(name_or_path, **(source or {}))
    except (OSError, ValueError):
        return False
    return found.get("model_type") == _GAUSSIAN


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    return [] if start is None else [int(start)]


def without_start(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return ids[len(start_ids(tokenizer)) :]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands in for positions that the model does not attend to."""
    padding = tokenizer.pad_token_id
    return int(padding) if padding is not None else require_mask_token(tokenizer, "tokenizer")


def closing_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What stands visible behind the text: packed rows end with `</s>`, rows whose end is learned with nothing."""
    packed = not training_facts(model).get("generates_end")
    return [end for end in [end_token_id(tokenizer)] if packed and end >= 0]


def closing_of_whole_text(model: nn.Module, tokenizer: PreTrainedTokenizerBase, num_ids: int) -> list[int]:
    """What stands visible behind a text of `num_ids` ids that is over: as in training, ends up to the row's length."""
    facts = training_facts(model)
    if not facts.get("generates_end"):
        return closing_ids(model, tokenizer)
    return [end_token_id(tokenizer)] * max(int(facts.get("row_length", 0)) - num_ids, 1)


def encode_prefix(tokenizer: PreTrainedTokenizerBase, prefix: object, place: int) -> list[int]:
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
        seen = tokenizer.unk_token
        logger.warning("The prefix %r holds words that the tokenizer does not know; the model sees %s.", prefix, seen)
    return ids
