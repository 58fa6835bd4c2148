"""Shared fixtures: real classes at toy size, built once and copied for each test."""

import copy
import logging

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from diffusion_mlm import DiffusionGenerationConfig, story_language
from diffusion_mlm.modeling import build_model


@pytest.fixture(autouse=True)
def logging_as_at_first() -> None:
    """Undoes what commands do to the package's loggers, and libraries to all: a test may look at what is said."""
    logging.disable(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.split(".")[0] == "diffusion_mlm" and isinstance(logger, logging.Logger):
            logger.setLevel(logging.NOTSET)
            logger.handlers, logger.propagate, logger.disabled = [], True, False


@pytest.fixture(scope="session")
def story_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of the built-in stories."""
    return story_language.tokenizer()


@pytest.fixture(scope="session")
def shared_roberta(story_tokenizer: PreTrainedTokenizerFast) -> RobertaForMaskedLM:
    config = RobertaConfig(
        vocab_size=len(story_tokenizer),
        num_hidden_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=34,  # 32 tokens: RoBERTa counts positions from the padding id + 1
        type_vocab_size=1,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.5,  # logits that differ: with 0.02 every token would be about as likely
        bos_token_id=story_tokenizer.bos_token_id,
        eos_token_id=story_tokenizer.eos_token_id,
        pad_token_id=story_tokenizer.pad_token_id,
    )
    return build_model(config, seed=0).eval()


@pytest.fixture(scope="session")
def shared_llama(story_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A causal model of 2 layers and width 16 with random weights that reads 16 story tokens."""
    config = LlamaConfig(
        vocab_size=len(story_tokenizer),
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_roberta(shared_roberta: RobertaForMaskedLM) -> RobertaForMaskedLM:
    """A RoBERTa of 1 layer and width 16 with random weights that reads 32 story tokens; yours to change."""
    return copy.deepcopy(shared_roberta)


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory,
    shared_roberta: RobertaForMaskedLM,
    story_tokenizer: PreTrainedTokenizerFast,
) -> str:
    """A tiny generator of 32 story tokens in a directory."""
    directory = tmp_path_factory.mktemp("checkpoint")
    shared_roberta.save_pretrained(directory)
    story_tokenizer.save_pretrained(directory)
    DiffusionGenerationConfig(max_new_tokens=5).save_pretrained(directory)
    return str(directory)
