"""Stories and their exact log-probabilities."""

from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

from ..randomness import fold_in, make_key, uniform
from .automaton import BOS_ID, EOS_ID, Automaton
from .grammar import SLOTS, STORY, VARIABLES

AUTOMATON = Automaton(STORY, SLOTS, VARIABLES)
BLOCK_LENGTH = AUTOMATON.length_range()[1] + 2  # the shortest row that holds `<s>`, any story and `</s>`


def _cumulative(rows: Sequence[Sequence[float]]) -> Tensor:
    """Rows of probabilities as cumulative sums, padded with 2 so that no uniform number reaches the padding."""
    table = torch.full((len(rows), max(map(len, rows))), 2.0, dtype=torch.float64)
    for row, probabilities in zip(table, rows, strict=True):
        row[: len(probabilities)] = torch.tensor(probabilities, dtype=torch.float64).cumsum(0)
        row[len(probabilities) - 1] = 2.0
    return table


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([list(row) + [0] * (width - len(row)) for row in rows])


@cache
def _sampling_tables() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Successors and their cumulative probabilities, words and theirs, and the variable of each state (-1: free)."""
    states = AUTOMATON.states
    successors = [list(edges) or [(AUTOMATON.end, 1.0)] for edges in AUTOMATON.successors]
    names = list(VARIABLES)
    words = []  # of a free state: its tokens; of a tied one: the token for each value of the variable
    for slot in states:
        tokens: Sequence[str] = slot.tokens
        if slot.variable:
            space = " " if slot.tokens[0].startswith(" ") else ""
            tokens = [space + value[slot.form] for value in VARIABLES[slot.variable]]
        words.append([AUTOMATON.id_of[token] for token in tokens])
    return (
        _padded([[target for target, _ in edges] for edges in successors]),
        _cumulative([[p for _, p in edges] for edges in successors]),
        _padded(words),
        _cumulative([slot.probabilities for slot in states]),
        torch.tensor([names.index(slot.variable) if slot.variable else -1 for slot in states]),
    )


def sample_ids(n: int, seed: int, first: int = 0) -> Tensor:
    """Stories `first` .. `first + n - 1` of the endless list that `seed` names, as ids of shape (n, L).

    Rows are `<s> story </s> </s> ...` of `BLOCK_LENGTH` tokens. Row k depends on (seed, k) only.
    """
    length = BLOCK_LENGTH
    targets, targets_cdf, words, words_cdf, variable_of = _sampling_tables()
    keys = fold_in(torch.tensor(make_key("story_language", seed)), torch.arange(first, first + n))
    numbers = uniform(keys, 2 * length + len(VARIABLES))
    sizes = torch.tensor([len(values) for values in VARIABLES.values()])
    values = (numbers[:, 2 * length :] * sizes).long()  # (n, variables)
    state = torch.zeros(n, dtype=torch.long)
    ids = torch.full((n, length), BOS_ID)
    for i in range(1, length):
        state = targets[state, (targets_cdf[state] <= numbers[:, 2 * i, None]).sum(1)]
        variable = variable_of[state]
        free = (words_cdf[state] <= numbers[:, 2 * i + 1, None]).sum(1)
        tied = values.gather(1, variable.clamp(min=0)[:, None])[:, 0]
        ids[:, i] = words[state, torch.where(variable < 0, free, tied)]
    return ids


def sample(n: int, seed: int) -> list[str]:
    """`n` stories drawn from the grammar. The same `seed` gives the same stories, whatever `n`.

    Raises:
        ValueError: if `n` is negative.
    """
    if n < 0:
        raise ValueError(f"`n` must be 0 or more, got {n}; ask for a number of stories.")
    vocabulary, stories = AUTOMATON.vocabulary, []
    for first in range(0, n, 8192):
        for row in sample_ids(min(8192, n - first), seed, first).tolist():
            stories.append("".join([vocabulary[i] for i in row[1 : row.index(EOS_ID)]])[1:])
    return stories


def log_prob(texts: Iterable[str]) -> Tensor:
    """Exact log-probability of whole stories, the end included.

    Args:
        texts: stories as `sample` writes them. What the grammar cannot produce, be it for one space, is refused.

    Returns:
        `torch.Tensor` of shape `(n,)`, float64, in nats per story; -inf for refused texts.

    Raises:
        ValueError: if `texts` is one string instead of a list of strings.
    """
    if isinstance(texts, str):
        raise ValueError(f"`texts` must be a list of stories, got the string {texts[:40]!r}; wrap it in a list.")
    return torch.tensor([AUTOMATON.log_prob(text) for text in texts], dtype=torch.float64)


def expected_tokens() -> float:
    """Mean number of tokens of a story, its one `</s>` included."""
    return AUTOMATON.expected_tokens()


def entropy_per_token() -> float:
    """Exact entropy in nats per token: entropy of a story divided by its expected tokens, one `</s>` included."""
    return AUTOMATON.entropy() / AUTOMATON.expected_tokens()


def number_of_stories() -> int:
    """How many different stories there are, exactly."""
    return AUTOMATON.number_of_stories()
