"""Repetition: what stands on the canvas becomes less likely, and n-grams that stand there do not come again.

Text that forms in any order repeats in any order: what stands to the right counts as what stands to the left, and a
token may close an n-gram from either side or in its middle.

Below `text` is the canvas of each row of logits, `(N, L)` int64, with -1 for all that is no token of a text: masks,
padding, special tokens, ends. Each row is treated by itself.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_CELLS_AT_ONCE = 2**22  # pairs of a position and a place, so that long rows do not need gigabytes


@dataclass(frozen=True)
class Repetition:
    """Two ways, off by default, to keep a text from repeating itself.

    Args:
        penalty (`float`): transformers' `repetition_penalty`: the logit of every token that stands somewhere on the
            canvas is divided by it if above 0, else multiplied. Above 1 such tokens become less likely, below 1 more
            likely; 1 is off. Keskar et al. 2019 (CTRL), arXiv:1909.05858, section 4.1. A tendency, no guarantee;
            tokens drawn in one step do not count for one another.
        ngram_size (`int`): transformers' `no_repeat_ngram_size`: no n-gram of so many tokens comes twice; 0 is off. It
            is one that nothing is missing from, wherever it stands; overlapping ones count.

    Raises:
        ValueError: at construction, if a value is impossible.

    Two words, and a place between an "a" and another "a" where "a" would make "a a" come twice:

    >>> Repetition(ngram_size=2).ban(torch.zeros(1, 2), torch.tensor([[0, -1, 0]]), torch.tensor([1]))
    tensor([[-inf, 0.]])
    """

    penalty: float = 1.0
    ngram_size: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.penalty, (int, float)) and not isinstance(self.penalty, bool)
        if not number or not 0 < self.penalty < math.inf:
            raise ValueError(f"`repetition_penalty` must be a finite number above 0, 1 for off, got {self.penalty!r}.")
        whole = isinstance(self.ngram_size, int) and not isinstance(self.ngram_size, bool)
        if not whole or self.ngram_size < 0:
            raise ValueError(f"`no_repeat_ngram_size` must be a whole number, 0 for off, got {self.ngram_size!r}.")

    @property
    def bans(self) -> bool:
        """Whether there are tokens that may not come."""
        return self.ngram_size > 0

    def penalize(self, logits: Tensor, text: Tensor) -> Tensor:
        """`logits` `(N, V)` with the tokens of the row's text penalized."""
        if self.penalty == 1:
            return logits
        row, place = (text >= 0).nonzero().unbind(-1)
        token = text[row, place]
        logit = logits[row, token]
        penalized = logits.clone()
        penalized[row, token] = torch.where(logit > 0, logit / self.penalty, logit * self.penalty)
        return penalized

    def ban(self, logits: Tensor, text: Tensor, position: Tensor) -> Tensor:
        """`logits` `(N, V)` with -inf for tokens that would repeat an n-gram if they stood at `position`, `(N,)`.

        Where this would leave nothing, nothing is banned: a text that can only go on by repeating goes on.
        """
        if not self.bans:
            return logits
        banned = logits.clone()
        for rows in torch.arange(len(text), device=text.device).split(max(_CELLS_AT_ONCE // text.shape[1], 1)):
            row, place = self._repeats(text[rows], position[rows]).nonzero().unbind(-1)
            banned[rows[row], text[rows[row], place]] = -math.inf
        stuck = banned.isneginf().all(-1)
        banned[stuck] = logits[stuck]
        return banned

    def _repeats(self, text: Tensor, position: Tensor) -> Tensor:
        """Whether the token of each place, put at `position`, closes an n-gram that stands around that place, (N, L).

        It does if the text around the position is the same as the text around the place, over a run of n tokens that
        includes the two.
        """
        beyond = self.ngram_size - 1
        padded = functional.pad(text, (beyond, beyond), value=-1)
        places = torch.arange(text.shape[1], device=text.device)
        run = torch.ones_like(text)
        for direction in (-1, 1):
            matches = text >= 0
            for offset in (direction * distance for distance in range(1, self.ngram_size)):
                here = padded.gather(1, (position + beyond + offset).unsqueeze(-1))  # (N, 1)
                there = padded[:, beyond + offset : beyond + offset + text.shape[1]]  # (N, L)
                # Two n-grams that overlap: the place sees the position itself, and what shall stand there.
                there = torch.where(places + offset == position.unsqueeze(-1), text, there)
                matches = matches & here.ge(0) & here.eq(there)
                run += matches
        return (text >= 0) & (run >= self.ngram_size)
