"""Short stories from a small grammar whose exact probabilities, and whose exact denoiser, are known.

What a trained model learns can be compared with the truth: `log_prob` is the forward algorithm, `ExactDenoiser` is
forward-backward with masks as wildcards, `entropy_per_token` is the loss that no model can beat.
Source: hidden Markov models (Rabiner 1989). The stories are in `grammar.py`, a page to read first.
"""

from .denoiser import ExactDenoiser
from .language import (
    AUTOMATON,
    BLOCK_LENGTH,
    entropy_per_token,
    expected_tokens,
    log_prob,
    number_of_stories,
    sample,
    sample_ids,
)
from .tokenization import tokenizer

__all__ = [
    "AUTOMATON",
    "BLOCK_LENGTH",
    "ExactDenoiser",
    "entropy_per_token",
    "expected_tokens",
    "log_prob",
    "number_of_stories",
    "sample",
    "sample_ids",
    "tokenizer",
]
