"""Encoders from scratch: the configurations of two families, RoBERTa as published and one of today's parts."""

from typing import Any

from transformers import EuroBertConfig, PreTrainedConfig, PreTrainedTokenizerBase, RobertaConfig

from .qk_norm import QkNormConfig
from .time_conditioning import TimeConditionedConfig

# Layers, width and heads; both families have the same, and so almost the same number of parameters.
_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 4},
    "mini": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4},
    "small": {"num_hidden_layers": 6, "hidden_size": 512, "num_attention_heads": 8},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12},
}
PRESETS: dict[str, dict[str, int]] = {
    f"{family}-{name}": size for family in ("roberta", "modern") for name, size in _SIZES.items()
}
ROBERTA_PRESETS = [f"roberta-{name}" for name in _SIZES]


def preset_config(
    preset: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 512,
    dropout: float | None = None,
    *,
    qk_norm: bool = False,
    num_hidden_layers: int | None = None,
    num_attention_heads: int | None = None,
    hidden_size: int | None = None,
    time_conditioning: str = "none",
    time_steps: int = 128,
) -> Any:
    """The configuration of an encoder of the size `preset` for `tokenizer` and rows of up to `max_length` tokens.

    `roberta-*` are RoBERTa as it was published: learned positions, LayerNorm after each block, GELU. `modern-*` are
    EuroBERT (arXiv:2503.05500): rotary positions, RMSNorm before each block, SwiGLU, no biases.

    Args:
        preset (`str`): one of `PRESETS`.
        tokenizer: of the text.
        max_length (`int`): tokens per row, special ones included.
        dropout (`float`, *optional*): of the hidden layers of a RoBERTa, 0.1 by default, where attention has none
            because that would switch the fused kernel off on CPU. EuroBERT has no other than that of attention; 0 by
            default.
        qk_norm (`bool`): whether queries and keys are normalised, see `qk_norm`; `modern-*` only.
        num_hidden_layers, num_attention_heads, hidden_size (`int`, *optional*): in place of the preset's. The
            feed-forward width follows the width: 4 times for GELU, 8/3 times for SwiGLU, which has three matrices
            instead of two, rounded up to a multiple of 64.
        time_conditioning, time_steps: see `time_conditioning.TimeConditionedConfig`; `none` leaves the encoder alone.

    Raises:
        ValueError: the preset or a kind is unknown, or sizes do not go together.
    """
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, not {preset!r}.")
    is_modern = preset.startswith("modern-")
    if qk_norm and not is_modern:
        raise ValueError(f"`qk_norm` needs a preset of today's parts, not {preset!r}: use modern-{preset[8:]}.")
    given = {
        "num_hidden_layers": num_hidden_layers,
        "hidden_size": hidden_size,
        "num_attention_heads": num_attention_heads,
    }
    size = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
    _require_size(size, is_modern)
    common: dict[str, Any] = {
        **size,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = (_modern if is_modern else _roberta)(common, tokenizer, max_length, dropout, qk_norm)
    if time_conditioning == "none":
        return config
    return TimeConditionedConfig(
        encoder=config,
        time_conditioning=time_conditioning,
        time_steps=time_steps,
        mask_token_id=tokenizer.mask_token_id,
    )


def _require_size(size: dict[str, int], is_modern: bool) -> None:
    for name, value in size.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, not {value!r}.")
    width, heads = size["hidden_size"], size["num_attention_heads"]
    multiple = 2 * heads if is_modern else heads  # rotary positions turn pairs
    if width % multiple or width < 2 * heads:
        raise ValueError(
            f"`hidden_size` is {width}, which {heads} attention heads cannot share{' in pairs' * is_modern}: choose a "
            f"multiple of {multiple}, or other `num_attention_heads`."
        )


def _roberta(
    common: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int, dropout: float | None, qk_norm: bool
) -> RobertaConfig:
    return RobertaConfig(
        **common,
        intermediate_size=4 * common["hidden_size"],
        # RoBERTa counts positions from the padding id + 1.
        max_position_embeddings=max_length + tokenizer.pad_token_id + 1,
        type_vocab_size=1,
        # roberta-base's 0.02 at its width of 768, and the same spread of activations at other widths.
        initializer_range=0.02 * (768 / common["hidden_size"]) ** 0.5,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.1 if dropout is None else dropout,
        attention_probs_dropout_prob=0.0,
    )


def _modern(
    common: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int, dropout: float | None, qk_norm: bool
) -> PreTrainedConfig:
    width = common["hidden_size"]
    return (QkNormConfig if qk_norm else EuroBertConfig)(
        **common,
        intermediate_size=-(-8 * width // (3 * 64)) * 64,
        max_position_embeddings=max_length,
        initializer_range=0.02 * (768 / width) ** 0.5,  # as above
        rms_norm_eps=1e-6,
        attention_dropout=dropout or 0.0,
        tie_word_embeddings=True,
        mask_token_id=tokenizer.mask_token_id,
    )
