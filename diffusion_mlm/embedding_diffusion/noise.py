"""Gaussian noise on embeddings: log-SNR algebra, noise schedules, and the best decoder that knows no language.

An embedding e becomes `z = alpha e + sigma eps` with `alpha^2 + sigma^2 = 1`. The log-SNR is `log(alpha^2 / sigma^2)`,
so `alpha^2 = sigmoid(log_snr)`; it falls with the diffusion time t, from clean at t = 0 to noise at t = 1. Source:
Variational Diffusion Models, arXiv:2107.00630, section 3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..randomness import fold_in, make_key, normal, uniform

NOISE_SCHEDULES = ("warped", "informative", "cosine", "sqrt")

ORDER_STREAM = 13

_NUM_KNOTS = 129
_CLEANEST, _NOISIEST = 10.0, -10.0  # log-SNR at which the named schedules are cut off
_BELOW_THE_LOOKUP = 2.5  # in log-SNR, where a warped schedule ends
_SHARES_OF_ENTROPY = (0.002, 0.998)  # where an informative schedule ends, as shares of what the lookup can learn
_CELLS_AT_ONCE = 2**25  # of the table tokens x vocabulary of `lookup_figures`


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of signal and noise, computed in float64 and given in float32.

    >>> alpha, sigma = alpha_sigma(torch.tensor([0.0]))
    >>> round(float(alpha**2), 6), round(float(alpha**2 + sigma**2), 6)
    (0.5, 1.0)
    """
    log_snr = log_snr.double()
    return torch.sigmoid(log_snr).sqrt().float(), torch.sigmoid(-log_snr).sqrt().float()


def per_place(of_rows: Tensor) -> Tensor:
    """Levels or factors of rows `(B,)` or of places `(B, L)` as `(B, 1 or L, 1)`, to go with embeddings."""
    return of_rows.reshape(len(of_rows), -1, 1)


def add_noise(clean: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    """`alpha clean + sigma noise`; embeddings and noise are `(B, L, d)`, `log_snr` is `(B,)` or `(B, L)`."""
    alpha, sigma = map(per_place, alpha_sigma(log_snr))
    return alpha * clean + sigma * noise


def noise_log_likelihood(z: Tensor, log_snr: Tensor, embeddings: Tensor) -> Tensor:
    """log p(z | token) of every token, up to what is the same for all: `(alpha z.e - alpha^2 |e|^2 / 2) / sigma^2`.

    With `log p(token)` added it is all that a noisy embedding says by itself. In a text
    `p(token i | all z) = p(z_i | token i) p(token i | all other z)`, because noise is independent from place to place.

    Args:
        z (`torch.Tensor` of shape `(B, L, d)`), log_snr (`torch.Tensor` of shape `(B,)` or `(B, L)`),
        embeddings (`torch.Tensor` of shape `(V, d)`).

    Returns:
        `torch.Tensor` of shape `(B, L, V)`, float32, whatever autocast says: its terms are large and cancel.
    """
    with torch.autocast(z.device.type, enabled=False):
        alpha, sigma = map(per_place, alpha_sigma(log_snr))
        table = embeddings.float()
        return (alpha * (z.float() @ table.T) - alpha**2 * table.square().sum(-1) / 2) / sigma**2


def expected_embedding(logits: Tensor, embeddings: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean embedding under a distribution over tokens, `(..., V)` to `(..., d)`; at 0 the likeliest."""
    if temperature == 0:
        return embeddings.float()[logits.argmax(-1)]
    return torch.softmax(logits.float() / temperature, -1) @ embeddings.float()


def ddim_step(z: Tensor, x0: Tensor, log_snr: Tensor, next_log_snr: Tensor) -> Tensor:
    """From one noise level to a cleaner one without chance (DDIM, arXiv:2010.02502, eq. 12 with sigma = 0).

    Args:
        z, x0 (`torch.Tensor` of shape `(B, L, d)`): where we are, and the prediction of the clean embeddings.
        log_snr, next_log_snr (`torch.Tensor` of shape `(B,)` or `(B, L)`).
    """
    alpha, sigma = map(per_place, alpha_sigma(log_snr))
    return add_noise(x0, (z - alpha * x0) / sigma, next_log_snr)


def ddpm_step(z: Tensor, x0: Tensor, log_snr: Tensor, next_log_snr: Tensor, noise: Tensor) -> Tensor:
    """A draw of q(z at the next level | z, x0): ancestral sampling (DDPM, arXiv:2006.11239, eq. 7)."""
    alpha_t, sigma_t = (per_place(factor).double() for factor in alpha_sigma(log_snr))
    alpha_s, sigma_s = (per_place(factor).double() for factor in alpha_sigma(next_log_snr))
    a = alpha_t / alpha_s
    v = -per_place(torch.expm1(log_snr - next_log_snr).double()) * sigma_t**2  # sigma_t^2 - a^2 sigma_s^2, exactly
    mean = (a * sigma_s**2 * z + alpha_s * v * x0) / sigma_t**2
    return (mean + (v.clamp(min=0) * sigma_s**2 / sigma_t**2).sqrt() * noise).float()


@dataclass(frozen=True)
class NoiseSchedule:
    """log-SNR against diffusion time, linear between knots at equal times.

    Args:
        knots (`torch.Tensor` of shape `(K,)`): log-SNR at t = 0, ..., 1, falling.
    """

    knots: Tensor

    def log_snr(self, t: Tensor) -> Tensor:
        """log-SNR at times in [0, 1], float64."""
        knots, place, index = self._at(t)
        return torch.lerp(knots[index], knots[index + 1], place - index)

    def slope(self, t: Tensor) -> Tensor:
        """How fast the log-SNR falls at times in [0, 1]: its derivative without the minus, float64."""
        knots, _, index = self._at(t)
        return (knots[index] - knots[index + 1]) * (len(knots) - 1)

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        knots = self.knots.double()
        place = t.double() * (len(knots) - 1)
        return knots, place, place.long().clamp(0, len(knots) - 2)


def sampling_times(steps: int) -> Tensor:
    """The diffusion times at which a sampler predicts, from 1 to 0 and equally far apart, `(steps,)` float64.

    At the last one, 0, the model's schedule is not free of noise: tokens are read from the prediction there.
    """
    return torch.linspace(1, 0, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)


def staggered_times(t: Tensor, is_noised: Tensor, keys: Tensor, stagger: float) -> Tensor:
    """Times of places whose noise goes away one after another, in a random order of each row.

    Every place has its own window of the row's time, of length 1 / (1 + stagger), in which its time falls from 1 to 0;
    windows begin evenly spaced. At 0 all have the time of the row; much above it one place after another becomes
    clear, as in masked diffusion. A noise schedule may differ from place to place: MuLAN, arXiv:2312.13236.

    Args:
        t (`torch.Tensor` of shape `(B,)`): times of rows.
        is_noised (`torch.BoolTensor` of shape `(B, L)`), keys (`torch.Tensor` of shape `(B,)`): of the order.
        stagger (`float`): 0 or more.

    Returns:
        `torch.Tensor` of shape `(B, L)`, float64; 0, as clear as can be, where there is no noise.
    """
    times = t.double()[:, None].expand(is_noised.shape)
    if stagger:
        drawn = uniform(fold_in(keys, ORDER_STREAM), is_noised.shape[1]).masked_fill(~is_noised, torch.inf)
        begins = (drawn.argsort(-1).argsort(-1) + 0.5) / is_noised.sum(-1, keepdim=True).clamp(min=1)
        times = ((1 + stagger) * times - stagger * begins).clamp(0, 1)
    return times.where(is_noised, 0.0)


def cosine_knots(offset: float = 0.008) -> Tensor:
    """The squared cosine of Improved DDPM (arXiv:2102.09672, eq. 17), cut off at log-SNR 10 and -10."""
    t = torch.linspace(0, 1, _NUM_KNOTS, dtype=torch.float64)
    start = math.cos(offset / (1 + offset) * math.pi / 2) ** 2
    signal = (torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2 / start).clamp(1e-12, 1 - 1e-12)
    return torch.logit(signal).clamp(_NOISIEST, _CLEANEST)


def sqrt_knots() -> Tensor:
    """`alpha^2 = 1 - sqrt(t + 1e-4)` of Diffusion-LM (arXiv:2205.14217, appendix A), cut off at log-SNR -10."""
    t = torch.linspace(0, 1, _NUM_KNOTS, dtype=torch.float64)
    return torch.logit((1 - (t + 1e-4).sqrt()).clamp(1e-12, 1 - 1e-12)).clamp(_NOISIEST, _CLEANEST)


@dataclass(frozen=True)
class LookupFigures:
    """The lookup at some noise levels; tensors of shape `(G,)`, float64.

    Attributes:
        cross_entropy: nats per token; accuracy: share of tokens it finds; eps_mse: mean squared error per dimension of
            the noise that its expected embedding leaves, `exp(log_snr)` times that of the embedding.
    """

    cross_entropy: Tensor
    accuracy: Tensor
    eps_mse: Tensor


@torch.no_grad()
def lookup_figures(
    log_unigram: Tensor, embeddings: Tensor, log_snr: Tensor, num_tokens: int = 4096, seed: int = 0
) -> LookupFigures:
    """What the best decoder without context reaches: it knows the unigram law and the noise level, nothing else.

    No model that looks at each place by itself has a lower cross-entropy. It is estimated on tokens drawn evenly from
    the unigram law, with the same noise at every level.

    Args:
        log_unigram (`torch.Tensor` of shape `(V,)`): log-probabilities.
        embeddings (`torch.Tensor` of shape `(V, d)`), log_snr (`torch.Tensor` of shape `(G,)`).
        num_tokens (`int`): tokens at each level.
    """
    device, dim = embeddings.device, embeddings.shape[1]
    key = torch.tensor(make_key("lookup", seed))
    evenly = (torch.arange(num_tokens) + uniform(fold_in(key, 0), 1)) / num_tokens
    cumulative = torch.softmax(log_unigram.double().cpu(), -1).cumsum(-1)
    tokens = torch.searchsorted(cumulative, evenly).clamp(max=len(embeddings) - 1).to(device)
    noise = normal(fold_in(fold_in(key, 1), torch.arange(num_tokens)), dim).float().to(device)
    log_unigram, embeddings = log_unigram.to(device).float(), embeddings.float()
    size = max(_CELLS_AT_ONCE // len(embeddings), 1)
    sums = torch.zeros(3, len(log_snr), dtype=torch.float64, device=device)
    for place, level in enumerate(log_snr.to(device)):
        for first in range(0, num_tokens, size):
            target, eps = tokens[first : first + size], noise[None, first : first + size]
            z = add_noise(embeddings[target][None], eps, level[None])
            logits = noise_log_likelihood(z, level[None], embeddings)[0] + log_unigram
            found = torch.log_softmax(logits, -1).gather(-1, target[:, None])
            error = (expected_embedding(logits, embeddings) - embeddings[target]).square().mean(-1)
            sums[0, place] -= found.double().sum()
            sums[1, place] += logits.argmax(-1).eq(target).sum()
            sums[2, place] += error.double().sum() * level.double().exp()
    return LookupFigures(*(sums / num_tokens).cpu())


def informative_knots(log_unigram: Tensor, embeddings: Tensor, even_share: float = 0.5) -> Tensor:
    """A schedule that spends its time where noise hides some of the tokens, for this vocabulary and these embeddings.

    It reaches from where the lookup knows next to nothing to where it knows next to all. One half of the time goes
    by the lookup's cross-entropy, in equal steps of nats (the time warping of CDCD, arXiv:2211.15089, section 3.3, for
    a model without context); the other half goes evenly by log-SNR, because context moves the band to lower ones.

    Args:
        log_unigram (`torch.Tensor` of shape `(V,)`), embeddings (`torch.Tensor` of shape `(V, d)`).
        even_share (`float`): share of the time that goes evenly by log-SNR.

    Returns:
        `torch.Tensor` of shape `(129,)`, float64.
    """
    grid = torch.linspace(-16, 16, 65, dtype=torch.float64)
    nats = lookup_figures(log_unigram, embeddings, grid, num_tokens=1024).cross_entropy
    hidden = (nats / nats[0]).cummin(0).values.clamp(min=0)  # 1 where all is noise, 0 where all is clear
    least, most = _SHARES_OF_ENTROPY
    low = max(int((hidden >= most).sum()) - 1, 0)
    high = max(min(int((hidden > least).sum()), len(grid) - 1), low + 1)
    return knots_by_nats(grid[low : high + 1], nats[low : high + 1], even_share)


def knots_by_nats(log_snr: Tensor, nats: Tensor, even_share: float) -> Tensor:
    """A schedule whose time goes by a cross-entropy that was measured, and in part evenly by log-SNR.

    Args:
        log_snr (`torch.Tensor` of shape `(G,)`): rising levels. nats (`torch.Tensor` of shape `(G,)`): the
            cross-entropy there, which falls but for chance. Both float64.
        even_share (`float`): share of the time that goes evenly by log-SNR.

    Returns:
        `torch.Tensor` of shape `(129,)`, float64.
    """
    grid, falling = log_snr.double(), nats.double().cummin(0).values
    known = (falling[0] - falling) / (falling[0] - falling[-1]).clamp(min=1e-12)  # 0 in noise, 1 where all is clear
    even = (grid - grid[0]) / (grid[-1] - grid[0])
    progress = (1 - even_share) * known + even_share * even
    wanted = torch.linspace(1, 0, _NUM_KNOTS, dtype=torch.float64)
    right = torch.searchsorted(progress, wanted).clamp(1, len(grid) - 1)
    span = (progress[right] - progress[right - 1]).clamp(min=1e-12)
    return torch.lerp(grid[right - 1], grid[right], ((wanted - progress[right - 1]) / span).clamp(0, 1))


def make_knots(name: str, log_unigram: Tensor, embeddings: Tensor) -> Tensor:
    """The knots of the noise schedule of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in NOISE_SCHEDULES:
        raise ValueError(f"`noise_schedule` must be one of {', '.join(NOISE_SCHEDULES)}, not {name!r}.")
    if name == "cosine":
        return cosine_knots()
    if name == "sqrt":
        return sqrt_knots()
    knots = informative_knots(log_unigram, embeddings)
    if name == "warped":  # context tells something of a text below what the lookup can learn, and samplers start there
        knots = knots[0] + (knots - knots[0]) * (1 + _BELOW_THE_LOOKUP / (knots[0] - knots[-1]))
    return knots
