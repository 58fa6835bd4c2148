"""Unmasking: which masked positions a step reveals, and how many if the model's own sureness decides.

An order gives every masked position a score, higher is earlier; `take_highest` turns scores into positions. The scores
look at the distribution over tokens, never at a token drawn from it: with an exact model and one position per step,
every such order samples the true distribution, and ranking by the drawn token does not.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .randomness import uniform

ORDERS = ("random", "confidence", "margin", "entropy", "left_to_right")
ORDERS_BEFORE_LOGITS = ("random", "left_to_right")  # need no forward to choose, so the forward can skip the other rows
# Masks, positions and share of probability of `take_independent`.
_GAP, _APART, _COMMON = 2, 3, 0.02
ADAPTIVE_RULES = ("threshold", "factor", "entropy_bound", "independent")


def position_scores(order: str, log_probs: Tensor) -> Tensor:
    """Score of each position from the model's distribution there; higher is revealed earlier.

    | order | score | source |
    |---|---|---|
    | `confidence` | log max p | Chang et al. 2022, arXiv:2202.04200 |
    | `margin` | p1 - p2, the two largest | Kim et al. 2025, arXiv:2502.06768 |
    | `entropy` | sum of p log p: the surest first | Ben-Hamu et al. 2025, arXiv:2505.24857 |

    Args:
        order (`str`): one of the above.
        log_probs (`torch.Tensor` of shape `(rows, vocabulary)`): log-probabilities in nats, neither tempered nor
            truncated (truncation inflates max p), forbidden ids at -inf.

    Returns:
        `torch.Tensor` of shape `(rows,)`.
    """
    if order == "confidence":
        return log_probs.amax(-1)
    if order == "margin":
        largest = torch.softmax(log_probs, dim=-1).topk(min(2, log_probs.shape[-1])).values
        return largest[:, 0] - largest[:, 1:].sum(-1)
    if order == "entropy":
        return (torch.softmax(log_probs, dim=-1) * log_probs.masked_fill(log_probs.isneginf(), 0.0)).sum(-1)
    raise ValueError(f"`order` must be one of confidence, margin, entropy to be read from logits, got {order!r}.")


def scores_before_logits(order: str, keys: Tensor, length: int) -> Tensor:
    """Score of each position for the orders that do not look at the model.

    Args:
        order (`str`): `"random"`, uniformly random and keyed, or `"left_to_right"`.
        keys (`torch.Tensor` of shape `(batch,)`, int64): one key per row.
        length (`int`): positions per row.

    Returns:
        `torch.Tensor` of shape `(batch, length)`, float64.
    """
    if order == "random":
        return uniform(keys, length)
    if order == "left_to_right":
        return -torch.arange(length, dtype=torch.float64, device=keys.device).expand(len(keys), -1)
    raise ValueError(f"`order` must be one of {', '.join(ORDERS_BEFORE_LOGITS)} without logits, got {order!r}.")


def take_highest(scores: Tensor, eligible: Tensor, counts: Tensor) -> Tensor:
    """The `counts` highest-scoring eligible positions of each row; equal scores go by position, first the left.

    Args:
        scores (`torch.Tensor` of shape `(batch, length)`): anywhere, also where not eligible.
        eligible (`torch.Tensor` of shape `(batch, length)`, bool): positions that may be taken.
        counts (`torch.Tensor` of shape `(batch,)`, int64): how many to take; more than eligible takes them all.

    Returns:
        `torch.Tensor` of shape `(batch, length)`, bool, with exactly min(count, eligible) per row.

    >>> scores, eligible = torch.tensor([[0.3, 0.9, 0.3, 0.7]]), torch.tensor([[True, False, True, True]])
    >>> take_highest(scores, eligible, counts=torch.tensor([2]))
    tensor([[ True, False, False,  True]])
    """
    ranking = scores.argsort(dim=-1, descending=True, stable=True)
    ranked = eligible.gather(-1, ranking)
    taken = ranked & (ranked.cumsum(-1) <= counts.unsqueeze(-1))
    return torch.zeros_like(eligible).scatter(-1, ranking, taken)


def take_spread(scores: Tensor, eligible: Tensor, counts: Tensor, min_gap: int) -> Tensor:
    """The highest-scoring eligible positions, no two of them within `min_gap` of one another while there are such.

    Tokens drawn in one step do not see each other, and neighbours depend on each other the most. Greedy: the best
    position first, then the best of those far enough from all that are taken. If a row's count asks for more than can
    be spread, the best of the rest fill it up. Other arguments as `take_highest`, which this is for `min_gap` 0.

    >>> scores, eligible = torch.tensor([[9.0, 8.0, 1.0, 7.0]]), torch.ones(1, 4, dtype=torch.bool)
    >>> take_spread(scores, eligible, torch.tensor([2]), min_gap=1)
    tensor([[ True, False, False,  True]])
    """
    if min_gap == 0:
        return take_highest(scores, eligible, counts)
    position = torch.arange(scores.shape[-1], device=scores.device)
    one = torch.ones_like(counts)
    taken, near = torch.zeros_like(eligible), torch.zeros_like(eligible)
    for index in range(int(counts.max()) if counts.numel() else 0):
        free = eligible & ~taken
        spread = free & ~near
        best = take_highest(scores, torch.where(spread.any(-1, keepdim=True), spread, free), one * (index < counts))
        taken |= best
        place = best.long().argmax(-1, keepdim=True)  # 0 where nothing was taken any more, and then without effect
        near |= (position - place).abs().le(min_gap) & best.any(-1, keepdim=True)
    return taken


def take_independent(
    scores: Tensor, eligible: Tensor, masked: Tensor, log_probs: Tensor, bound: float, most: int | None = None
) -> Tensor:
    """The positions that a step may reveal together because hardly any depends on another.

    First all that the model is sure of, each of entropy <= `bound`, and the best of the others. If no more than one
    unsure mask adjoins that one, so that it is clear how many words come there, further unsure positions join it, best
    first, which

    * lie in gaps of one or two unsure masks like it,
    * are more than 3 positions from every unsure one that is taken, and
    * hold less than 2 % of their probability in common with each of them. Two blanks that expect the same words are
      often one choice, such as a name that comes twice: it is made at the first, and the second is then sure.

    The rule is this project's own; what it costs and saves stands in `results/generation_grid.md`.

    Args:
        scores, eligible: as for `take_highest`, of shape `(batch, length)`.
        masked (`torch.Tensor` of shape `(batch, length)`, bool): all that is masked, whether eligible or not.
        log_probs (`torch.Tensor` of shape `(N, vocabulary)`): of the N eligible positions, in row-major order; on any
            device.
        bound (`float`): in nats; most (`int`, *optional*): at most so many positions.

    Returns:
        `torch.Tensor` of shape `(batch, length)`, bool; at least one position where any is eligible.

    Four blanks between visible words, unsure of other words each, but the last of the same as the first:

    >>> masked = torch.tensor([[True, False, False, True, True, False, True, False, False, True]])
    >>> words = [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 0, 1], [1, 1, 0, 0, 0]]
    >>> probs = torch.nn.functional.normalize(torch.tensor(words, dtype=torch.float32), p=1, dim=-1)
    >>> scores = -torch.arange(10.0)[None]
    >>> take_independent(scores, masked, masked, probs.log(), bound=0.1).nonzero()[:, 1]
    tensor([0, 3, 4])
    """
    entropy = torch.zeros(eligible.shape, dtype=torch.float64, device=eligible.device)
    entropy[eligible] = -position_scores("entropy", log_probs).to(entropy)
    sure = eligible & (entropy <= bound)
    gap = _run_lengths(masked & ~sure)
    one = torch.ones_like(scores[:, 0], dtype=torch.int64)
    taken = best = take_highest(scores, eligible & ~sure, one)
    candidates = eligible & (gap > 0) & (gap <= _GAP)
    candidates &= (best & candidates).any(-1, keepdim=True)
    while bool(best.any()):
        candidates = candidates & ~_within(best, _APART)
        row, _ = candidates.nonzero().unbind(-1)
        of_best = log_probs.new_full((len(scores), log_probs.shape[-1]), -math.inf)
        of_best[best.any(-1)] = log_probs[best[eligible]]
        common = torch.minimum(log_probs[candidates[eligible]], of_best[row]).exp().sum(-1)
        candidates[candidates.clone()] = common.to(candidates.device) < _COMMON
        best = take_highest(scores, candidates, one)
        taken = taken | best
    chosen = sure | taken
    if most is None:
        return chosen
    return take_highest(scores, chosen, torch.full_like(scores[:, 0], most, dtype=torch.int64))


def _run_lengths(positions: Tensor) -> Tensor:
    """How many `positions` (batch, length), bool, stand together where each of them is; 0 elsewhere."""
    length = positions.shape[-1]
    place = torch.arange(length, device=positions.device).expand_as(positions)
    before = place.masked_fill(positions, -1).cummax(-1).values
    after = place.masked_fill(positions, length).flip(-1).cummin(-1).values.flip(-1)
    return (after - before - 1).masked_fill(~positions, 0)


def _within(positions: Tensor, reach: int) -> Tensor:
    """Where one of the `positions` (batch, length), bool, is at most `reach` away."""
    near = positions.clone()
    for shift in range(1, min(reach, positions.shape[-1] - 1) + 1):
        near[:, shift:] |= positions[:, :-shift]
        near[:, :-shift] |= positions[:, shift:]
    return near


@dataclass(frozen=True)
class AdaptiveCount:
    """How many positions a step reveals, decided by how sure the model is.

    Positions are ranked by the order; the step reveals the longest run from the top that the rule accepts, at least
    one position and at most `most`.

    | rule | accepts the n best positions if | source |
    |---|---|---|
    | `threshold` | each has max p >= bound | Wu et al. 2025 (Fast-dLLM), arXiv:2505.22618 |
    | `factor` | (n + 1) (1 - max p of the n-th) <= bound | the same, section 3.3 |
    | `entropy_bound` | the sum of their entropies less the largest is <= bound, in nats | arXiv:2505.24857 |
    | `independent` | each has an entropy <= bound; besides, unsure ones that stand apart: see `take_independent` | |

    Args:
        rule (`str`): one of the above.
        bound (`float`): a probability in (0, 1] for `threshold`, above 0 for `factor`, at least 0 for the others.
        most (`int`, *optional*): the most positions one step may reveal; unlimited by default.

    Raises:
        ValueError: at construction, if a value is impossible.
    """

    rule: str
    bound: float
    most: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in ADAPTIVE_RULES:
            raise ValueError(f"`adaptive` must be one of {', '.join(ADAPTIVE_RULES)}, got {self.rule!r}.")
        highest = 1.0 if self.rule == "threshold" else math.inf
        may_be_0 = self.rule in ("entropy_bound", "independent")
        number = isinstance(self.bound, (int, float)) and not isinstance(self.bound, bool)
        if not (number and 0 <= self.bound <= highest) or (self.bound == 0 and not may_be_0):
            span = "in (0, 1]" if self.rule == "threshold" else "at least 0"
            raise ValueError(
                f"`adaptive_bound` of the rule {self.rule!r} must be a number {span}, got {self.bound!r}."
            )
        if self.most is not None and (not isinstance(self.most, int) or isinstance(self.most, bool) or self.most < 1):
            raise ValueError(f"`max_reveal` must be a whole number of at least 1, got {self.most!r}.")

    def counts(self, scores: Tensor, eligible: Tensor, confidence: Tensor, entropy: Tensor) -> Tensor:
        """How many positions each row reveals, `torch.Tensor` of shape `(batch,)`, int64; 0 where none is eligible.

        Not for `independent`, which takes no run from the top: see `take_independent`.

        Args:
            scores, eligible: as for `take_highest`, all of shape `(batch, length)`.
            confidence, entropy (`torch.Tensor`): max p, and the entropy in nats, of the model's distribution there.
        """
        if self.rule == "independent":
            raise ValueError("`independent` takes no run from the top of the ranking: call `take_independent`.")
        ranking = scores.masked_fill(~eligible, -math.inf).argsort(dim=-1, descending=True, stable=True)
        ranked = eligible.gather(-1, ranking)
        sure = confidence.gather(-1, ranking)
        if self.rule == "threshold":
            accepted = sure >= self.bound
        elif self.rule == "factor":
            rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
            accepted = (rank + 1) * (1 - sure) <= self.bound
        else:
            nats = entropy.gather(-1, ranking).masked_fill(~ranked, 0.0).double()
            accepted = nats.cumsum(-1) - nats.cummax(-1).values <= self.bound
        counts = (accepted & ranked).long().cumprod(-1).sum(-1).clamp(min=1, max=self.most)
        return torch.minimum(counts, eligible.sum(-1))
