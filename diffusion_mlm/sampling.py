"""Sampling: from logits to a token. Which positions are revealed is not decided here (see `unmasking`).

Logits are `(rows, vocabulary)`, one row per position to fill. A filter returns the logits with what it drops at -inf,
and never drops all of them. Order of work: forbid ids, guidance, temperature, one truncation, one draw.

Every operation works on one row at a time, so a token does not depend on where in a batch its row stands.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

SamplingMethod = Literal["greedy", "topk", "nucleus", "min_p", "typical"]

LEAST_TEMPERATURE = 1e-4  # below it sampling is greedy: tempered probabilities would be 0 or 1 in float32 anyway


class NonFiniteLogitsError(ValueError):
    """Logits from which no token can be drawn: NaN, +inf, or a position where every token is at -inf."""


def forbid(logits: Tensor, token_ids: Tensor) -> Tensor:
    """`logits` with the columns `token_ids` at -inf, as a new tensor.

    Do this before anything is read from the logits: a mask token that wins an arg-max is never replaced, and one that
    holds probability lowers every confidence. Ids outside the vocabulary are ignored, they cannot be drawn.
    """
    inside = token_ids[(token_ids >= 0) & (token_ids < logits.shape[-1])]
    return logits.index_fill(-1, inside.to(logits.device), -math.inf)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: `unconditional + scale * (conditional - unconditional)`.

    The probabilities are then proportional to p(v | condition) ** scale * p(v) ** (1 - scale): 1 is the model itself,
    above 1 the condition weighs more than it does in the model, below 1 less, at 0 not at all. Where either is -inf
    the conditional logit stands, so that what the condition rules out stays ruled out and no row gets empty.

    Args:
        conditional, unconditional (`torch.Tensor` of shape `(rows, vocabulary)`): logits of the same positions, with
            the condition on the canvas and with masks in its place.
        scale (`float`): transformers' `guidance_scale`; 1 + w in the papers.

    Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6; of discrete diffusion: Schiff et al. 2024 (D-CFG),
    arXiv:2412.10193; with masks for the condition, so that nothing needs to be trained: Nie et al. 2024 (SMDM),
    arXiv:2410.18514.

    >>> guide(torch.tensor([[1.0, 0.0, -math.inf]]), torch.tensor([[0.0, 0.0, 0.0]]), scale=2.0)
    tensor([[2., 0., -inf]])
    """
    stands = conditional.isneginf() | unconditional.isneginf()
    return torch.where(stands, conditional, unconditional + scale * (conditional - unconditional))


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax in float32, of shape `(rows, vocabulary)`, in nats.

    Raises:
        NonFiniteLogitsError: if a row holds NaN or +inf, or only -inf. An arg-max would silently pick the NaN.
    """
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    bad = log_probs.amax(-1).isnan()  # NaN, +inf and all -inf each make the whole row NaN
    if bool(bad.any()):
        allowed = (logits != -math.inf).any(-1)
        cause = "NaN or infinite" if bool((bad & allowed).any()) else "-inf for every token (all tokens are forbidden)"
        remedy = "Check the model's weights and precision, or the tokens that are forbidden."
        raise NonFiniteLogitsError(f"`logits` are {cause} in {int(bad.sum())} of {len(bad)} positions. {remedy}")
    return log_probs


def temper(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """`logits` / `temperature`: below 1 sharper, above 1 flatter."""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The `k` largest logits, the rest at -inf. 0, or `k` not below the vocabulary, switches it off.

    Exactly `k` stay: of equal logits those with the lower ids. (transformers' `TopKLogitsWarper` keeps all that tie
    with the k-th, which makes k = 1 random where bfloat16 logits tie.)
    """
    if k == 0 or k >= logits.shape[-1]:
        return logits
    counts = torch.full((len(logits), 1), k, device=logits.device)
    return _keep_largest(logits, counts, threshold=logits.topk(k).values[:, -1:])


def keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """The smallest set of most probable tokens that holds at least `top_p` of the probability, the rest at -inf.

    The token that crosses `top_p` stays, so at least one does. 1 switches it off. Source: Holtzman et al. 2020,
    arXiv:1904.09751.
    """
    if top_p >= 1:
        return logits
    probs = torch.softmax(logits.float(), dim=-1)
    # Tokens below (1 - p) / V hold less than 1 - p together, so the nucleus ends before them: sort only the others.
    widths = (probs >= (1 - top_p) / logits.shape[-1]).sum(-1).tolist()
    largest, index = logits.topk(max([1, *widths]))  # sorted, largest first
    probs = probs.gather(-1, index).double()
    before = probs.cumsum(-1) - probs  # what the more probable tokens hold
    counts = (before < top_p).sum(-1, keepdim=True).clamp(min=1)
    return _keep_largest(logits, counts, threshold=largest.gather(-1, counts - 1))


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Tokens at least `min_p` times as probable as the most probable one, the rest at -inf. 0 switches it off.

    Source: Nguyen et al. 2024, arXiv:2407.01082.
    """
    probs = torch.softmax(logits.float(), dim=-1)
    return logits.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), -math.inf)


def keep_typical(logits: Tensor, mass: float) -> Tensor:
    """The smallest set of tokens of most typical surprise that holds at least `mass` of the probability.

    The surprise -log p of a token is typical if it is near its mean, the entropy. The most probable token may go. 1
    switches it off. Source: Meister et al. 2022, arXiv:2202.00666.
    """
    if mass >= 1:
        return logits
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(-1, keepdim=True)
    strangeness = (-log_probs - entropy).abs()
    ranking = strangeness.argsort(dim=-1, stable=True)
    ranked = probs.gather(-1, ranking).double()
    dropped = ranked.cumsum(-1) - ranked >= mass  # the less strange ones hold enough
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, ranking, dropped), -math.inf)


def _keep_largest(logits: Tensor, counts: Tensor, threshold: Tensor) -> Tensor:
    """The `counts` (rows, 1) largest logits per row, `threshold` (rows, 1) the last of them; ties by lower id."""
    above, tied = logits > threshold, logits == threshold
    room = counts - above.sum(-1, keepdim=True)
    return logits.masked_fill(~(above | (tied & (tied.cumsum(-1) <= room))), -math.inf)


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """One token per row by inverse CDF: the first id whose cumulative probability exceeds `u`.

    Probabilities are a float32 softmax, their cumulative sum is float64 and `u` has 53 random bits: on float32's
    grid of 2**-24 the rare tokens of a large vocabulary could never be drawn (Zheng et al. 2024, arXiv:2409.02908).

    Args:
        logits (`torch.Tensor` of shape `(rows, vocabulary)`): -inf where a token may not be drawn, else finite.
        u (`torch.Tensor` of shape `(rows,)`, float64): uniform in [0, 1).

    Returns:
        `torch.Tensor` of shape `(rows,)`, int64; never an id of probability 0.
    """
    cumulative = torch.softmax(logits.float(), dim=-1).double().cumsum(-1)
    u = u.to(cumulative).unsqueeze(-1) * cumulative[:, -1:]  # the sum is not exactly 1
    return torch.searchsorted(cumulative, u, right=True).squeeze(-1)  # right: u = 0 must pass over probability 0


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits.

    Args:
        method (`str`): `"greedy"` takes the most probable token, the others draw: `"topk"` from the `top_k` most
            probable, `"nucleus"` from the smallest set that holds `top_p` of the probability, `"min_p"` from those at
            least `min_p` times as probable as the best, `"typical"` from the most typical that hold `typical_p`.
        temperature (`float`): divides the logits before truncation; 0, or below 1e-4, is greedy.
        top_k (`int`): used by `topk`; 0 switches it off.
        top_p (`float`): used by `nucleus`, in (0, 1]; 1 switches it off.
        min_p (`float`): used by `min_p`, in [0, 1]; 0 switches it off.
        typical_p (`float`): used by `typical`, in (0, 1]; 1 switches it off.
        temperature_end (`float`, *optional*): the temperature falls, or rises, from `temperature` where everything is
            masked to this where nothing is, in proportion to the masked share.

    Raises:
        ValueError: at construction, if a value is impossible.

    >>> logits = torch.tensor([[2.0, 1.0, -math.inf, 0.0]]).expand(5, 4)
    >>> u = torch.tensor([0.0, 0.3, 0.7, 0.8, 0.999], dtype=torch.float64)
    >>> Sampling("topk", top_k=2).choose(logits, u)
    tensor([0, 0, 0, 1, 1])
    """

    method: SamplingMethod = "nucleus"
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.9
    min_p: float = 0.05
    typical_p: float = 0.9
    temperature_end: float | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(SamplingMethod):
            choices = ", ".join(get_args(SamplingMethod))
            raise ValueError(f"`sampling` must be one of {choices}, got {self.method!r}.")
        for name in ("temperature", "temperature_end"):
            value = getattr(self, name)
            if not (name == "temperature_end" and value is None) and not (_is_number(value) and 0 <= value < math.inf):
                raise ValueError(f"`{name}` must be a finite number of at least 0, got {value!r}.")
        if not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or self.top_k < 0:
            raise ValueError(f"`top_k` must be a whole number, 0 for off, got {self.top_k!r}.")
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 < value <= 1):
                raise ValueError(f"`{name}` must lie in (0, 1], 1 for off, got {value!r}.")
        if not (_is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise ValueError(f"`min_p` must lie in [0, 1], 0 for off, got {self.min_p!r}.")

    @property
    def is_greedy(self) -> bool:
        """Whether the token is always the most probable one, whatever the random number."""
        temperatures = [self.temperature] + ([] if self.temperature_end is None else [self.temperature_end])
        return self.method == "greedy" or max(temperatures) < LEAST_TEMPERATURE

    def filtered(self, logits: Tensor, masked_share: Tensor | None = None) -> Tensor:
        """The tempered logits of the tokens that may be drawn, the rest at -inf: what `choose` draws from.

        Args:
            logits (`torch.Tensor` of shape `(rows, vocabulary)`): forbidden ids at -inf.
            masked_share (`torch.Tensor` of shape `(rows,)`, *optional*): share of the row's canvas that is still
                masked, in [0, 1]; only read, and then needed, if `temperature_end` is set.

        Raises:
            NonFiniteLogitsError: if a row holds NaN or +inf, or only -inf.
        """
        return self._filtered(log_probabilities(logits), masked_share)

    def _filtered(self, logits: Tensor, masked_share: Tensor | None) -> Tensor:
        """`filtered` for log-probabilities: the largest is at most 0, so no temperature can overflow it."""
        if self.is_greedy:
            return keep_top_k(logits, 1)
        if self.temperature_end is None:
            logits = logits if self.temperature == 1 else temper(logits, self.temperature)
        else:
            if masked_share is None:
                raise ValueError("`temperature_end` needs `masked_share`: one share per row of logits.")
            start, end = self.temperature, self.temperature_end
            temperature = (end + (start - end) * masked_share.float()).unsqueeze(-1)
            cold = temperature < LEAST_TEMPERATURE
            logits = torch.where(cold, keep_top_k(logits, 1), temper(logits, temperature.clamp(min=LEAST_TEMPERATURE)))
        if self.method == "topk":
            return keep_top_k(logits, self.top_k)
        if self.method == "nucleus":
            return keep_nucleus(logits, self.top_p)
        if self.method == "min_p":
            return keep_min_p(logits, self.min_p)
        return keep_typical(logits, self.typical_p)

    def choose(self, logits: Tensor, u: Tensor, masked_share: Tensor | None = None) -> Tensor:
        """One token per row of `logits`.

        Args:
            logits, masked_share: see `filtered`.
            u (`torch.Tensor` of shape `(rows,)`, float64): uniform in [0, 1); greedy ignores it.

        Returns:
            `torch.Tensor` of shape `(rows,)`, int64. Among equally probable tokens greedy takes the lowest id.

        Raises:
            NonFiniteLogitsError: if a row holds NaN or +inf, or only -inf.
        """
        return self.choose_from(log_probabilities(logits), u, masked_share)

    def choose_from(self, log_probs: Tensor, u: Tensor | None = None, masked_share: Tensor | None = None) -> Tensor:
        """`choose` for `log_probabilities` instead of logits; greedy sampling needs no `u`."""
        if self.is_greedy:
            return log_probs.argmax(-1)
        if u is None:
            raise ValueError("`u` is missing: one number for each row of log-probabilities.")
        return draw(self._filtered(log_probs, masked_share), u)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
