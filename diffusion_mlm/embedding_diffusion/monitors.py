"""What shows whether a model of embedding diffusion works: does it use context, do its embeddings stay apart?"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..modeling import unwrap
from ..objectives import token_negative_log_likelihood
from ..randomness import fold_in, make_key, uniform
from .likelihood import row_noise
from .modeling import EmbeddingDiffusionModel
from .noise import expected_embedding, lookup_figures, staggered_times
from .noise_warp import NoiseWarp

_ROWS_AT_ONCE = 64


@torch.no_grad()
def embedding_figures(embeddings: Tensor) -> dict[str, float]:
    """How far apart the embeddings stand: 0 means that they have collapsed.

    Returns:
        `embedding_norm`, the mean norm; `nearest_neighbor`, the mean distance to the nearest other embedding, as a
        share of the mean norm: about 1 for random directions in few dimensions, 0.058 in a collapsed Plaid.

    Args:
        embeddings (`torch.Tensor` of shape `(V, d)`).
    """
    table = embeddings.double()
    norm = float(table.norm(dim=-1).mean())
    nearest = torch.cat([_nearest(table, first) for first in range(0, len(table), 1024)])
    return {"embedding_norm": norm, "nearest_neighbor": float(nearest.mean()) / max(norm, 1e-12)}


def _nearest(table: Tensor, first: int) -> Tensor:
    distance = torch.cdist(table[first : first + 1024], table)
    rows = torch.arange(len(distance), device=table.device)
    distance[rows, rows + first] = torch.inf
    return distance.min(-1).values


@torch.no_grad()
def loss_by_noise(
    model: EmbeddingDiffusionModel,
    input_ids: Tensor,
    is_noised: Tensor,
    log_snr: Tensor,
    *,
    forbidden_ids: Tensor | None = None,
    seed: int = 0,
    self_condition: bool = False,
) -> dict[str, list[float]]:
    """What the model and the lookup reach at given noise levels, on the same rows with the same noise.

    The lookup (`noise.lookup_figures`) is the best decoder without context, with the unigram law of the training text
    and the model's own embeddings. Where the model is below it, it uses context; where they are equal it only rounds.

    Args:
        model: in evaluation mode; one with objective eps_mse is scored too, by `noise + nearest embedding`.
        input_ids (`torch.Tensor` of shape `(B, L)`): clean rows without padding.
        is_noised (`torch.BoolTensor` of shape `(B, L)`), log_snr (`torch.Tensor` of shape `(G,)`).
        self_condition (`bool`): whether the model sees a first prediction of its own, as in sampling.

    Returns:
        Lists of G: `log_snr`; `cross_entropy`, `lookup_cross_entropy` in nats per token; `accuracy`,
        `lookup_accuracy`, shares of tokens; `eps_mse`, `lookup_eps_mse`.
    """
    model = unwrap(model)  # type: ignore[assignment]
    of_model = _of_model(model, input_ids, is_noised, log_snr, forbidden_ids, seed, self_condition)
    lookup = lookup_figures(model.log_unigram, model.clean_embeddings(), log_snr)
    return {
        "log_snr": log_snr.tolist(),
        "cross_entropy": of_model[:, 0].tolist(),
        "lookup_cross_entropy": lookup.cross_entropy.tolist(),
        "accuracy": of_model[:, 1].tolist(),
        "lookup_accuracy": lookup.accuracy.tolist(),
        "eps_mse": of_model[:, 2].tolist(),
        "lookup_eps_mse": lookup.eps_mse.tolist(),
    }


def _of_model(
    model: EmbeddingDiffusionModel,
    input_ids: Tensor,
    is_noised: Tensor,
    log_snr: Tensor,
    forbidden_ids: Tensor | None = None,
    seed: int = 0,
    self_condition: bool = False,
) -> Tensor:
    """Cross-entropy, accuracy and squared error of the noise at each level, `(G, 3)` float64."""
    table = model.clean_embeddings()
    keys = fold_in(torch.tensor(make_key("loss_by_noise", seed)), torch.arange(len(input_ids)))
    sums = torch.zeros(len(log_snr), 4, dtype=torch.float64)
    for first in range(0, len(input_ids), _ROWS_AT_ONCE):
        ids, noised = (rows[first : first + _ROWS_AT_ONCE].to(table.device) for rows in (input_ids, is_noised))
        noise = row_noise(keys[first : first + _ROWS_AT_ONCE].to(table.device), ids.shape[1], table.shape[1])
        chosen = torch.full((len(ids),), self_condition, device=table.device)
        for place, level in enumerate(log_snr.tolist()):
            levels = torch.full((len(ids),), level, dtype=torch.float64, device=table.device)
            output = model(ids, None, noised, levels, noise, chosen)
            logits = output.logits[noised].float()
            if forbidden_ids is not None and forbidden_ids.numel():
                logits = logits.index_fill(-1, forbidden_ids.to(table.device), -torch.inf)
            found = output.embedding[noised] if output.embedding is not None else expected_embedding(logits, table)
            target = ids[noised]
            nats = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
            error = (found - table[target]).double().square().mean(-1).sum() * math.exp(level)
            hits = logits.argmax(-1).eq(target).sum()
            sums[place] += torch.stack([nats.double(), hits.double(), error, noised.sum().double()]).cpu()
    return sums[:, :3] / sums[:, 3:]


def middle_band(curve: dict[str, list[float]], entropy: float) -> list[int]:
    """The places of a curve at which the lookup's cross-entropy lies between 5 % and 95 % of the unigram entropy."""
    return [at for at, nats in enumerate(curve["lookup_cross_entropy"]) if 0.05 * entropy <= nats <= 0.95 * entropy]


def unigram_entropy(tokens: Sequence[Any]) -> float:
    """Entropy in nats of the frequencies of tokens, of samples or of real text: low is collapse, high is noise.

    >>> round(unigram_entropy("abab"), 4)
    0.6931
    """
    counts = Counter(tokens)
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values()) if total else 0.0


@torch.no_grad()
def fit_noise_schedule(
    model: EmbeddingDiffusionModel, input_ids: Tensor, is_noised: Tensor, draws: int = 128, seed: int = 0
) -> None:
    """Gives the model the schedule that `NoiseWarp` makes of what the model, with context, knows of these rows.

    Of the schedule that it was trained with nothing but the ends is left; but it reads log-SNRs, not times, and so
    needs no more training. A sampler then makes steps of about equal nats.

    Args:
        model: in evaluation mode. input_ids (`torch.Tensor` of shape `(B, L)`), is_noised (`torch.BoolTensor` of shape
        `(B, L)`): rows to measure on. draws (`int`): noise levels for each row. seed (`int`): of the noise.

    Raises:
        ValueError: the rows are too few to know the loss at every level.
    """
    warp, device = NoiseWarp(model.noise_knots), model.noise_knots.device
    keys = fold_in(torch.tensor(make_key("fit_noise_schedule", seed)), torch.arange(len(input_ids)))
    for first in range(0, len(input_ids), _ROWS_AT_ONCE):
        ids, noised, of = (x[first : first + _ROWS_AT_ONCE].to(device) for x in (input_ids, is_noised, keys))
        for draw in range(draws):
            drawn = fold_in(of, draw)
            times = staggered_times(uniform(drawn, 1)[:, 0], noised, drawn, model.config.stagger or 0.0)
            log_snr = model.schedule.log_snr(times)
            noise = row_noise(drawn, ids.shape[1], model.config.embedding_dim)
            logits = model(ids, None, noised, log_snr, noise).logits
            warp.collect(log_snr[noised], token_negative_log_likelihood(logits[noised], ids[noised]))
    warp.update()
    knots = warp.knots()
    if knots is None:
        raise ValueError(
            f"`input_ids` has {len(input_ids)} rows, too few for a schedule with `draws` {draws}: pass more of either."
        )
    model.noise_knots.copy_(knots)
