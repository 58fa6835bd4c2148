"""What `train.py` trains: the model that is named or built, and its tokenizer."""

import logging
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import story_language
from ..canvas import is_gaussian_checkpoint
from ..checkpoints import STORIES_MLM
from ..embedding_diffusion.building import build_embedding_diffusion, embedding_diffusion_from
from ..embedding_diffusion.loading import load_embedding_diffusion
from ..embedding_diffusion.modeling import EmbeddingDiffusionConfig, EmbeddingDiffusionModel
from ..generation import load_tokenizer
from ..modeling import build_model, context_length, load_model, require_mask_token
from ..presets import preset_config
from ..tokenization import train_bpe, train_characters
from .train_arguments import ENCODER_SETTINGS, DataArguments, ModelArguments

logger = logging.getLogger("diffusion_mlm")


def make_model(
    model_args: ModelArguments, data_args: DataArguments, texts: Any, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int]:
    """The model, its tokenizer and the length of a row."""
    default_length = story_language.BLOCK_LENGTH if data_args.is_stories else 128
    if model_args.preset is None:
        name = model_args.model_name or STORIES_MLM
        if is_gaussian_checkpoint(name):
            if model_args.attention_dropout is not None or model_args.attn_implementation is not None:
                raise ValueError(
                    f"`--model-name` is {name!r}, a model of embedding diffusion, which keeps its attention: "
                    f"leave out `--attention-dropout` and `--attn-implementation`."
                )
            model: PreTrainedModel = load_embedding_diffusion(name, "--model-name")
        else:
            model = load_model(
                name,
                attn_implementation=model_args.attn_implementation,
                attention_dropout=model_args.attention_dropout,
                trust_remote_code=model_args.trust_remote_code,
            )
        tokenizer = load_tokenizer(name, trust_remote_code=model_args.trust_remote_code, argument="--model-name")
        if model_args.process == "gaussian" and not isinstance(model, EmbeddingDiffusionModel):
            settings = model_args.settings(model.config.vocab_size, model.config.hidden_size)
            model = embedding_diffusion_from(model, tokenizer.mask_token_id, seed, **settings)
        limit = context_length(model, tokenizer)
        max_length = data_args.max_length or min(default_length, limit)
        if max_length > limit:
            raise ValueError(
                f"`--max-length` is {max_length}, but {name} reads at most {limit} tokens. Use {limit} or less."
            )
        return model, tokenizer, max_length
    max_length = data_args.max_length or default_length
    tokenizer = make_tokenizer(model_args, data_args, texts, max_length)
    require_mask_token(tokenizer, "--tokenizer")
    settings = {name: getattr(model_args, name) for name in ENCODER_SETTINGS}
    config = preset_config(model_args.preset, tokenizer, max(max_length, 128), model_args.dropout, **settings)
    if model_args.process == "gaussian":
        gaussian = EmbeddingDiffusionConfig(
            encoder=config.to_dict(),
            mask_token_id=tokenizer.mask_token_id,
            attn_implementation=model_args.attn_implementation or "sdpa",
            **model_args.settings(config.vocab_size, config.hidden_size),
        )
        return build_embedding_diffusion(gaussian, seed), tokenizer, max_length
    model = build_model(config, seed, model_args.attn_implementation or "sdpa")
    return model, tokenizer, max_length


def make_tokenizer(
    model_args: ModelArguments, data_args: DataArguments, texts: Any, max_length: int
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model from scratch: trained on the texts, loaded, or that of the stories."""
    if model_args.tokenizer is None:
        if data_args.is_stories:
            return story_language.tokenizer()
        raise ValueError("`--preset` needs `--tokenizer`: bpe, char, a directory or a Hub id.")
    if model_args.tokenizer in ("bpe", "char"):
        columns = [name for name in ("prompt", "text", "response") if name in (texts.column_names or ["text"])]
        corpus = (row[name] for row in texts for name in columns)
        limit = max(max_length, 128)
        if model_args.tokenizer == "char":
            return train_characters(corpus, model_max_length=limit)
        tokenizer = train_bpe(corpus, vocab_size=model_args.vocab_size, model_max_length=limit)
        chosen = "by the size of the text" if model_args.vocab_size is None else "at most as asked for"
        logger.info("tokenizer: byte-level BPE of %s tokens, %s", f"{len(tokenizer):,}", chosen)
        return tokenizer
    trust_remote_code = model_args.trust_remote_code
    return load_tokenizer(model_args.tokenizer, trust_remote_code=trust_remote_code, argument="--tokenizer")
