"""Masked language models: loading, building from scratch, and their logits at chosen positions only."""

import copy
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from .aligned_head import aligned_rows
from .hub_access import HubSource, require_repository
from .initialization import start_at_neighbors, start_by_copying, start_rotary, start_undecided
from .last_layer import at_places, device_of, last_layer, on_rows, places_of
from .presets import PRESETS as PRESETS
from .presets import preset_config as preset_config
from .qk_norm import QkNormConfig
from .time_conditioning import TimeConditionedMaskedLM
from .tokenization import special_token_ids

logger = logging.getLogger(__name__)


def build_model(config: Any, seed: int = 0, attn_implementation: str | None = None) -> PreTrainedModel:
    """A masked language model with fresh float32 weights, built on the CPU, that depend on `seed` alone.

    RoBERTa and EuroBERT (with as many keys as queries) start with attention that copies and sees its neighbours, and
    undecided, see `initialization`, whether told the time or not. Without `attn_implementation` the model class
    decides: the fused kernel where it has one (DeBERTa has none).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the accelerators too
        # `from_config` writes the attention implementation into the configuration it is given.
        model = AutoModelForMaskedLM.from_config(
            copy.deepcopy(config), attn_implementation=attn_implementation, dtype=torch.float32
        )
        encoder = model.model if isinstance(model, TimeConditionedMaskedLM) else model
        if encoder.config.model_type == "roberta":
            start_by_copying(encoder)
            start_at_neighbors(encoder)
            start_undecided(encoder)
        elif encoder.config.model_type in ("eurobert", QkNormConfig.model_type) and _has_square_values(encoder.config):
            start_rotary(encoder)
    _switch_off_token_dropout(model)
    return model


def _has_square_values(config: Any) -> bool:
    """Whether all heads have keys and values of their own, and together the width of the model."""
    heads, width = config.num_attention_heads, config.head_dim
    return bool(config.num_key_value_heads == heads and heads * width == config.hidden_size)


@torch.no_grad()
def _switch_off_token_dropout(model: PreTrainedModel) -> None:
    """Lets ESM read rows of mostly masks, by turning its "token dropout" into what pre-training saw of it.

    Token dropout puts 0 for a mask and divides every embedding by the visible share of the row: 5.3 times what it
    should be at 10 masks of 12, NaN at nothing but masks. At the mask rate of pre-training the factor is 1, so what
    the weights know is the 0, which becomes the embedding of the mask.

    Source: `EsmEmbeddings` of transformers.
    """
    config, embeddings = model.config, getattr(model.base_model, "embeddings", None)
    if embeddings is None or not getattr(embeddings, "token_dropout", False):
        return
    config.token_dropout = embeddings.token_dropout = False
    embeddings.word_embeddings.weight[config.mask_token_id] = 0
    logger.info("Token dropout is switched off: it is made for few masks. Masks are read as 0, as in pre-training.")


def load_model(
    name_or_path: str,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    attention_dropout: float | None = None,
    trust_remote_code: bool = False,
    argument: str = "--model-name",
    source: HubSource | None = None,
) -> PreTrainedModel:
    """Loads any masked language model from a directory or the Hub, from safetensors only.

    Args:
        name_or_path (`str`): a directory or a Hub id.
        dtype (`torch.dtype`): float32 whatever the file holds; bf16 training is autocast over float32 weights.
        attn_implementation (`str`, *optional*): `sdpa`, `eager`, ...; the model class decides by default.
        attention_dropout (`float`, *optional*): in training, instead of what the configuration says. Any value but 0
            switches the fused attention kernel off on CPU.
        trust_remote_code (`bool`): whether code in the repository may run.
        argument (`str`): how the user calls the name, for error messages.
        source (`dict`, *optional*): `revision`, `token` and `cache_dir` of a repository on the Hub.

    Raises:
        ValueError: there is no such directory, no safetensors weights, the architecture has no masked-language-model
            class, weights are missing or of another shape, or they hold NaN; or the model cannot be called with token
            ids and an attention mask alone, or predicts something else when a row is padded.
        HubUnavailableError, NotAllowedError: see `hub_access.require_repository`.
    """
    require_repository(name_or_path, "model", argument, source=source)
    if os.path.isdir(name_or_path) and not os.path.isfile(os.path.join(name_or_path, "config.json")):
        raise ValueError(f"`{argument}` is {name_or_path!r}, a directory without config.json: it holds no model.")
    how: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # they are listed instead, and refused below
        "output_loading_info": True,
        **(source or {}),
    }
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **(source or {}))
        if attention_dropout is not None:
            dropout_name = attention_dropout_name(config)
            if dropout_name is None:
                raise ValueError(f"a {config.model_type} has no attention dropout to set to {attention_dropout}.")
            setattr(config.get_text_config(), dropout_name, attention_dropout)
        model, info = AutoModelForMaskedLM.from_pretrained(name_or_path, config=config, **how)
        other_head = any(key.startswith("lm_predictions.") for key in info["unexpected_keys"])
        if config.model_type == "deberta-v2" and other_head:  # that of DeBERTa-v3, whose config.json does not say so
            config.legacy = False
            model, info = AutoModelForMaskedLM.from_pretrained(name_or_path, config=config, **how)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ValueError(f"`{argument}` is {name_or_path!r}, which cannot be loaded: {_reason(error)}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # the class derives from Exception alone
            raise
        raise ValueError(
            f"`{argument}` is {name_or_path!r}, whose weights are no valid safetensors file ({error}); is it cut "
            f"short or a Git LFS pointer? Download it again."
        ) from error
    _require_complete(model, info, name_or_path, argument)
    _switch_off_token_dropout(model)
    _require_independent_rows(model, name_or_path, argument)
    return model


def attention_dropout_name(config: Any) -> str | None:
    """What the family of this configuration calls the dropout of attention; None if it has none."""
    names = ("attention_probs_dropout_prob", "attention_dropout")
    return next((name for name in names if hasattr(config.get_text_config(), name)), None)


def _reason(error: Exception) -> str:
    """One sentence for what transformers says in many."""
    text = " ".join(str(error).split())
    if "Unrecognized configuration class" in text:
        return "its architecture has no masked-language-model class, so it cannot fill masks. Choose a masked model."
    if "safetensors" in text and ("not found" in text or "does not appear" in text or "no file named" in text):
        return "it has no model.safetensors (other formats are refused: convert it with `save_pretrained`)."
    first = text.split(". ")[0].rstrip(".")
    return first[:300] + "."


def _require_complete(model: PreTrainedModel, info: dict[str, Any], name: str, argument: str) -> None:
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(key[0]) for key in info["mismatched_keys"])
    for what, keys in (("lacks", missing), ("has weights of another shape for", mismatched)):
        if keys:
            shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            raise ValueError(
                f"`{argument}` is {name!r}, which {what} {shown}; it is no complete masked language model. Choose a "
                f"checkpoint that was saved from a masked-language-model class."
            )
    for key, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"`{argument}` is {name!r}, whose weights {key} are not finite. Choose another one.")


# What a model raises that is called in a way it does not know.
_CALL_ERRORS = (RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError)


@torch.no_grad()
def _require_independent_rows(model: PreTrainedModel, name: str, argument: str) -> None:
    """Refuses what cannot read token ids with an attention mask, or whose logits depend on the padding after them."""
    kind = type(model).__name__
    attention_mask = torch.tensor([[1, 1, 1, 0, 0]])
    try:
        ids = torch.tensor([[5, 6, 7, 0, 0]]) % model.config.vocab_size
        with torch.random.fork_rng(devices=[]):
            padded = model(input_ids=ids, attention_mask=attention_mask).logits[:, :3]
            alone = model(input_ids=ids[:, :3], attention_mask=attention_mask[:, :3]).logits
        error, spread = (padded - alone).abs().max(), (alone[:, 1:] - alone[:, :-1]).abs().max()
    except _CALL_ERRORS as cause:
        raise ValueError(
            f"`{argument}` is {name!r}, a {kind}, which is not supported: it cannot be called with token ids and an "
            f"attention mask alone ({_reason(cause).rstrip('.')}). Choose a model like RoBERTa or BERT."
        ) from cause
    if error > max(1e-4, 4 * torch.finfo(alone.dtype).eps) * spread:
        raise ValueError(
            f"`{argument}` is {name!r}, a {kind}, which is not supported: padding changes what it predicts, so a text "
            f"would depend on the other texts of its batch. Choose a model like RoBERTa or BERT."
        )


def context_length(model: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """The number of tokens, special ones included, that a row may have.

    RoBERTa and its relatives count positions from the padding id + 1, so 514 positions make 512 tokens; ESM does so
    where it has no position table too. A model that names no limit has that of the tokenizer, else none (2**31).
    """
    config = getattr(model, "config", None)
    limit = getattr(config, "max_position_embeddings", None) or 2**31
    embeddings = getattr(getattr(model, "base_model", None), "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if padding is None and getattr(config, "model_type", None) == "esm":
        padding = getattr(config, "pad_token_id", None)
    if padding is not None:
        limit -= padding + 1
    if tokenizer is not None and tokenizer.model_max_length < 1_000_000:
        limit = min(limit, tokenizer.model_max_length)
    return int(limit)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel`, `torch.compile`, `peft.PeftModel` and the like."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None and hasattr(type(model), "get_base_model"):  # of peft; the LoRA layers are inside the model
            inner = model.get_base_model()  # type: ignore[operator]
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def _keep_rows(base_model: nn.Module, rows: Tensor) -> Iterator[None]:
    """Between encoder and head, drops all hidden states but those of `rows`: `(B, L, H)` becomes `(1, N, H)`."""
    places = places_of(rows, device_of(base_model))

    def keep(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (at_places(output[0], places, rows.shape), *output[1:])
        output.last_hidden_state = at_places(output.last_hidden_state, places, rows.shape)
        return output

    handle = base_model.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


_selects_rows: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_finishes_rows: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # whether `last_layer.on_rows` holds, too


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_lock_of_locks = threading.Lock()


def _lock_of(model: nn.Module) -> threading.RLock:
    """The lock of a model: which rows it keeps is told to the model itself, so threads take turns."""
    with _lock_of_locks:
        return _locks.setdefault(model, threading.RLock())


def selects_rows(model: nn.Module) -> bool:
    """Whether the head of this model can run on chosen rows only; found out once, on a few tokens, by comparing."""
    model = unwrap(model)
    if model not in _selects_rows:
        _selects_rows[model] = _probe(model, _keep_rows)
        if not _selects_rows[model] and hasattr(model, "base_model"):  # `ExactDenoiser` has no head
            logger.warning("%s computes logits at all positions: its head cannot be separated.", type(model).__name__)
        elif _selects_rows[model]:
            _layer_to_finish(model)  # both are looked at before anything depends on it
    return _selects_rows[model]


def _is_compiled(model: Any) -> bool:
    """Whether a model is compiled as a whole, wrapped or not: what changes at each call would compile it anew."""
    while model is not None:
        if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
            return True
        model = getattr(model, "module", None)
    return False


def _layer_to_finish(model: nn.Module) -> nn.Module | None:
    """The last layer of a model if it can run on chosen rows only; found out once, by comparing."""
    layer = last_layer(model.base_model)  # type: ignore[arg-type]
    if layer is None:
        return None
    if model not in _finishes_rows:
        _finishes_rows[model] = _probe(model, lambda _, rows: on_rows(layer, rows))
    return layer if _finishes_rows[model] else None


@torch.no_grad()
def _probe(model: nn.Module, keeping: Callable[[nn.Module, Tensor], AbstractContextManager[None]]) -> bool:
    """Whether logits computed while `keeping` three positions of eight are those that the model gives there."""
    base_model = getattr(model, "base_model", None)
    parameter = next(model.parameters(), None)
    vocab_size = getattr(getattr(model, "config", None), "vocab_size", None)
    if not isinstance(base_model, nn.Module) or base_model is model or parameter is None or vocab_size is None:
        return False
    # Two texts, since what is given for each text, such as a time, must find its positions.
    ids = torch.tensor([[5, 6, 7, 8], [9, 5, 8, 6]], device=parameter.device) % vocab_size
    rows = torch.tensor([[False, True, False, True], [True, False, False, False]], device=parameter.device)
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        full = model(input_ids=ids).logits
        with keeping(base_model, rows):
            selected = model(input_ids=ids).logits
        if selected.shape[:2] != (1, 3):
            return False
        # Small beside what tells two positions apart, in any dtype and however small the weights are.
        error, spread = (selected[0] - full[rows]).abs().max(), (full[:, 1:] - full[:, :-1]).abs().max()
        return bool(error <= 0.02 * spread)
    except _CALL_ERRORS:
        return False
    finally:
        for module in in_training:
            module.training = True


def logits_at(model: nn.Module, rows: Tensor, **inputs: Tensor) -> Tensor:
    """Logits at chosen positions only; the head, the larger part of a small model, is not run on the others.

    Nor is the last layer of an encoder like RoBERTa's.

    Args:
        model (`torch.nn.Module`): any masked language model, also wrapped in `DistributedDataParallel`.
        rows (`torch.BoolTensor` of shape `(B, L)`): N positions; on a CPU if they are there, so that nothing waits for
            the model's device.
        **inputs: `input_ids` and whatever else the model takes, but no `labels`.

    Returns:
        `torch.Tensor` of shape `(N, V)`, in row-major order of `rows`.
    """
    inner = unwrap(model)
    with _lock_of(inner):
        if not selects_rows(inner):
            return model(**inputs).logits[rows]
        base: Any = inner.base_model  # a module, by `selects_rows`; torch types attributes as Tensor | Module
        layer = None if _is_compiled(model) else _layer_to_finish(inner)
        keeping = _keep_rows(base, rows) if layer is None or not rows.any() else on_rows(layer, rows)
        find_head: Any = getattr(inner, "get_output_embeddings", lambda: None)
        with keeping, aligned_rows(find_head()):
            logits = model(**inputs).logits
    if logits.shape[:2] != (1, int(rows.sum())):
        raise RuntimeError(
            f"The model returned logits of {logits.shape[1]} positions instead of {int(rows.sum())}: it was compiled "
            f"before its first use here. Compile it after, or pass the uncompiled model."
        )
    return logits.squeeze(0)  # `logits[0]` would copy all of it on the way back


def forbidden_token_ids(tokenizer: PreTrainedTokenizerBase, generates_end: bool, vocab_size: int) -> list[int]:
    """Ids that get probability 0 in loss and sampler: every special token, and rows of the table without a token.

    Special tokens without a role count, such as the 250 that EuroBERT holds in reserve.

    Args:
        tokenizer: the tokenizer of the model.
        generates_end (`bool`): whether the model was trained to write the end-of-text token, which is then allowed.
        vocab_size (`int`): rows of the model's output, at least `len(tokenizer)`.
    """
    forbidden = set(special_token_ids(tokenizer, require_mask=False)) | set(range(len(tokenizer), vocab_size))
    if generates_end:
        forbidden.discard(end_token_id(tokenizer))
    return sorted(forbidden)


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """`</s>` for RoBERTa; BERT and its relatives end text with their separator."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return int(end) if end is not None else -1


def require_mask_token(tokenizer: PreTrainedTokenizerBase, argument: str = "--model-name") -> int:
    """The id of the mask token.

    Raises:
        ValueError: the tokenizer has none.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"`{argument}` is {tokenizer.name_or_path!r}, whose tokenizer has no mask token: a masked language model "
            f"is needed, such as FacebookAI/roberta-base."
        )
    return int(tokenizer.mask_token_id)
