"""The likelihood bound of Gaussian diffusion on embeddings, in nats, comparable with that of masked diffusion."""

import torch
from torch import Tensor

from ..evaluation.likelihood import NUM_BUCKETS, RowBounds, bucket_of, count_tokens, row_keys
from ..objectives import row_means, token_negative_log_likelihood
from ..randomness import fold_in, normal, uniform
from .modeling import EmbeddingDiffusionModel
from .noise import alpha_sigma, expected_embedding, staggered_times

NOISE_STREAM, SELF_CONDITION_STREAM, TOKEN_STREAM = 11, 12, 14


def row_noise(keys: Tensor, length: int, dim: int) -> Tensor:
    """Standard normal noise for rows, `(B, L, d)` float32; that of a place does not depend on the row's length."""
    return normal(fold_in(keys, NOISE_STREAM), length * dim).float().view(len(keys), length, dim)


@torch.no_grad()
def gaussian_bound_of_rows(
    model: EmbeddingDiffusionModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    is_noised: Tensor,
    *,
    end_id: int = -1,
    forbidden_ids: Tensor | None = None,
    draws: int = 8,
    seed: int = 0,
    keys: Tensor | None = None,
) -> RowBounds:
    """Estimates the negative ELBO of each row with `draws` noise levels, stratified over diffusion time.

    With a forward process of variance 1 it is, for each row,

        sum over noised places of  1/2 integral of e^lambda |e - e_hat(z_lambda)|^2 d lambda
                                   + cross-entropy at the cleanest level + KL(q(z at the noisiest level) || N(0, I))

    (Variational Diffusion Models, arXiv:2107.00630, eqs. 11 and 17, with a decoder that predicts the token). The
    integral runs over the levels of the model's noise schedule, and e_hat is the mean embedding under the logits, or
    what the model predicts instead. Where noise leaves the places one after another (`stagger`), so do the integrals
    of the places, in an order that is drawn with the row's noise. Self-conditioning is off: a first prediction would
    be part of no such process.

    Args:
        model: in evaluation mode.
        input_ids, attention_mask (`torch.Tensor` of shape `(B, L)`), is_noised (`torch.BoolTensor` of shape `(B, L)`).
        end_id (`int`), forbidden_ids (`torch.Tensor`, *optional*): see `evaluation.likelihood.bound_of_rows`.
        draws (`int`): noise levels per row, beside the cleanest one. seed (`int`).
        keys (`torch.Tensor` of shape `(B,)`, *optional*): of the noise of each row; by default its content and `seed`.

    Returns:
        `RowBounds`, whose buckets go by diffusion time and hold cross-entropies.
    """
    if keys is None:
        keys = row_keys(seed, input_ids, is_noised)
    offset = uniform(fold_in(keys, -1), 1)[:, 0]
    table = model.clean_embeddings()
    stagger = model.config.stagger or 0.0
    clean, schedule, dim = table[input_ids], model.schedule, table.shape[1]
    total = is_noised.sum(-1)
    bucket_nats = torch.zeros(len(input_ids), NUM_BUCKETS, dtype=torch.float64, device=input_ids.device)
    bucket_counts = torch.zeros_like(bucket_nats)

    def look(log_snr: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of each row, and the squared errors of its places `(B, L)` summed over dimensions."""
        noise = row_noise(fold_in(keys, draw), input_ids.shape[1], dim)
        output = model(input_ids, attention_mask, is_noised, log_snr, noise)
        logits = output.logits
        if forbidden_ids is not None and forbidden_ids.numel():
            logits = logits.index_fill(-1, forbidden_ids, -torch.inf)
        found = output.embedding if output.embedding is not None else expected_embedding(logits, table)
        error = (found - clean).double().square().sum(-1).where(is_noised, 0.0)
        nats = row_means(token_negative_log_likelihood(logits[is_noised], input_ids[is_noised]), is_noised)
        return torch.where(total > 0, nats, torch.zeros_like(nats)), error

    nats = torch.zeros(len(input_ids), dtype=torch.float64, device=input_ids.device)
    for draw in range(draws):
        t = 1 - torch.frac(offset + draw / draws)
        times = staggered_times(t, is_noised, keys, stagger)
        log_snr = schedule.log_snr(times)
        mean, error = look(log_snr, draw)
        passing = (1 + stagger) * ((times > 0) & (times < 1))  # how fast the time of a place goes
        nats += (0.5 * log_snr.exp() * error * schedule.slope(times) * passing).sum(-1) / draws
        bucket = bucket_of(t)[:, None]
        bucket_nats.scatter_add_(1, bucket, mean[:, None])
        bucket_counts.scatter_add_(1, bucket, (total > 0).double()[:, None])
    ends = schedule.log_snr(torch.tensor([0.0, 1.0], device=nats.device))
    mean, _ = look(ends[:1].expand(len(input_ids)), draws)
    alpha, sigma = (factor.double() for factor in alpha_sigma(ends[1:]))
    squares = clean.double().square().sum(-1).where(is_noised, 0.0).sum(-1)
    prior = 0.5 * (alpha**2 * squares + total * dim * (sigma**2 - 1 - 2 * sigma.log()))
    nats = nats + mean * total + prior
    return RowBounds(nats, count_tokens(input_ids, is_noised, end_id), bucket_nats, bucket_counts)
