"""New models of embedding diffusion: with fresh weights, or made of a masked language model."""

import copy
import math
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from ..initialization import start_at_neighbors, start_by_copying
from .modeling import EmbeddingDiffusionConfig, EmbeddingDiffusionModel


def build_embedding_diffusion(config: EmbeddingDiffusionConfig, seed: int = 0) -> EmbeddingDiffusionModel:
    """A model with fresh float32 weights, built on the CPU, that depend on `seed` alone.

    Embeddings are normal with the deviation `embedding_std`. A RoBERTa starts with attention that copies and sees its
    neighbours, as that of masked diffusion (`initialization`), and what is copied is predicted: its head starts as the
    identity. (With nothing predicted, so that the model starts as the lookup, 95 steps on the stories brought the
    cross-entropy at log-SNR -2 from 3.86 to 2.71 nats; with a head of half the identity 104 steps to 2.36.)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = EmbeddingDiffusionModel(copy.deepcopy(config))
        nn.init.normal_(model.embeddings.weight, std=config.embedding_std)
        with torch.no_grad():
            scale = float(config.initializer_range or 0.02) / math.sqrt(config.embedding_dim)
            nn.init.normal_(model.read_noisy.weight, std=scale)
            nn.init.zeros_(model.read_noisy.bias)
            nn.init.zeros_(model.read_level[2].weight)  # type: ignore[arg-type]  # of a linear layer
            nn.init.zeros_(model.read_level[2].bias)  # type: ignore[arg-type]  # as above
            if config.objective == "cross_entropy":
                nn.init.zeros_(model.given.weight)
                if model.read_previous is not None:
                    nn.init.zeros_(model.read_previous.weight)
            if (config.encoder or {}).get("model_type") == "roberta":
                start_by_copying(model.denoiser)
                start_at_neighbors(model.denoiser)
                half = config.encoder["hidden_size"] // config.encoder["num_attention_heads"] // 2  # type: ignore[index]
                model.read_noisy.weight[: 2 * half] = 0  # where positions are written, see `start_at_neighbors`
                if config.objective == "cross_entropy":
                    nn.init.eye_(model.denoiser.lm_head.dense.weight)
    return model


def embedding_diffusion_from(
    masked: PreTrainedModel, mask_token_id: int, seed: int = 0, **settings: Any
) -> EmbeddingDiffusionModel:
    """A masked language model made one of embedding diffusion, which starts out with what that knows.

    Clean tokens are read as before, and so is a token that noise hides: as the mask token. New are the embeddings that
    get noise and how noise, its level, what is given and a first prediction are read, the last four from nothing.

    Args:
        masked (`PreTrainedModel`): is copied, and stays as it is.
        mask_token_id (`int`): of its tokenizer.
        seed (`int`): of the embeddings.
        **settings: of `EmbeddingDiffusionConfig`, such as `embedding_dim`.

    Raises:
        ValueError: the objective is eps_mse, which predicts no tokens; a setting is impossible; or transformers has no
            class that reads embeddings in place of such a model's tokens.
    """
    encoder, kind = masked.config.to_dict(), masked.config.model_type
    if kind not in CONFIG_MAPPING or "vocab_size" not in encoder:
        raise ValueError(
            f"`masked` is a {type(masked).__name__} ({kind}), which is no architecture of transformers' own and does "
            f"not become a model of embedding diffusion: take another one, or start from scratch (`--preset`)."
        )
    config = EmbeddingDiffusionConfig(
        encoder=encoder,
        mask_token_id=mask_token_id,
        adds_unigram=False,
        attn_implementation=masked.config._attn_implementation,
        **settings,
    )
    if config.objective != "cross_entropy":
        raise ValueError(
            f"`objective` is {config.objective!r}, which predicts noise and has no use for a masked language model: "
            f"start from scratch (`--preset`)."
        )
    model = build_embedding_diffusion(config, seed)
    model.denoiser.load_state_dict(masked.state_dict())
    nn.init.zeros_(model.read_noisy.weight)
    return model
