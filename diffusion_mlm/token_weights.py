"""Which tokens training masks more often: weights by vocabulary id from the frequencies of a training set."""

from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import has_length

TOKEN_WEIGHTS = ("rare",)
RARE_POWER = 0.5


def token_counts(dataset: Any, vocab_size: int) -> Tensor:
    """How often each token stands in the column `input_ids`, float64 of shape `(vocab_size,)`.

    Args:
        dataset: rows, a list or a data set of the datasets library that does not stream.
        vocab_size (`int`): above every id.

    Raises:
        ValueError: the data set streams.
    """
    if not has_length(dataset):
        raise ValueError(
            "`token_weights` are counted before training, which a data set that streams does not allow: leave "
            "`streaming` off, or pass weights to the collator."
        )
    counts = torch.zeros(vocab_size, dtype=torch.float64)
    for first in range(0, len(dataset), 1000):
        # A slice of a data set is a dictionary of columns, a slice of a list is a list of rows.
        rows = dataset[first : first + 1000]
        columns = rows["input_ids"] if isinstance(rows, dict) else [row["input_ids"] for row in rows]
        counts += torch.bincount(torch.cat([torch.as_tensor(ids).long() for ids in columns]), minlength=vocab_size)
    return counts


def rare_token_weights(counts: Tensor, power: float = RARE_POWER) -> Tensor:
    """Weights `(count + 1) ** -power`: with 1/2 a token four times as rare is drawn twice as readily.

    Args:
        counts (`torch.Tensor` of shape `(V,)`): occurrences of each token in the training set.
        power (`float`): 0 masks all tokens alike, 1 masks each *kind* of token about as often as any other.

    Returns:
        `torch.Tensor` of shape `(V,)`, float64, at most 1. Only ratios matter.
    """
    return (counts.double() + 1) ** -power
