"""First weights of an encoder from scratch: what every trained one has found out, given at the start.

A masked model of text must move words (a name that recurs fills a blank) and must know what stands beside a blank.
With the usual random start it finds out neither for thousands of steps, and until then predicts word frequencies.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@torch.no_grad()
def start_by_copying(model: PreTrainedModel) -> None:
    """Starts every attention layer by adding what it attends to, unchanged: value, then output, is the identity.

    Trained language models come to look like this (Trockman and Kolter 2023, arXiv:2305.09828, section 3).
    """
    for layer in model.base_model.encoder.layer:  # type: ignore[union-attr]  # RoBERTa's, which mypy does not know
        value, output = layer.attention.self.value.weight, layer.attention.output.dense.weight
        nn.init.orthogonal_(value)
        output.copy_(value.T)


@torch.no_grad()
def start_undecided(model: PreTrainedModel) -> None:
    """Starts a RoBERTa by predicting all tokens nearly alike, so that its first loss is the logarithm of their number.

    The usual start is off by half the variance of the logits, which the norm before the vocabulary sets.
    """
    _make_logits_small(model.lm_head.layer_norm.weight, model.config)  # type: ignore[union-attr, arg-type]  # as above


def _make_logits_small(last_norm: Tensor, config: Any) -> None:
    """Gives the logits a spread of 0.2, where a product of normed states and embeddings makes them."""
    last_norm.fill_(0.2 / (config.initializer_range * math.sqrt(config.hidden_size)))


@torch.no_grad()
def start_at_neighbors(model: PreTrainedModel, peak: float = 10.0) -> None:
    """Starts the heads of the first layer by attending one place to the left, one to the right, two to the left, ...

    Those of a decoder, which sees nothing to its right, attend one place to the left, two, three, ...

    Position i is embedded as the sines and cosines of `w_k i` in the first dimensions, as many as a head has, where
    words start at 0. There the key is the identity and the query of a head turns each pair by `w_k` times its offset,
    so that a score is `sum_k cos(w_k (i + offset - j))`: high at j = i + offset alone, because the frequencies `w_k`
    are spread over (0, pi), one drawn from each of K equal parts (even spacing would repeat the peak every 2 K
    places). Sinusoids are those of Vaswani et al. 2017, section 3.5, where it is said that a linear map shifts them.

    Args:
        model: a RoBERTa, with the usual start.
        peak (`float`): the score of a head's place before the softmax; the others have 0 on average.
    """
    config, embeddings = model.config, model.base_model.embeddings  # type: ignore[union-attr]  # as above
    table, words = embeddings.position_embeddings.weight, embeddings.word_embeddings.weight  # type: ignore[union-attr]  # as above
    width = config.hidden_size // config.num_attention_heads
    half = width // 2
    sharpness = math.sqrt(peak / math.sqrt(half / 2))  # a score is a sum over `half` pairs, divided by sqrt(2 half)
    frequency = math.pi * (torch.arange(half) + torch.rand(half)).double() / half
    angle = torch.arange(len(table)).double().unsqueeze(-1) * frequency
    table.zero_()
    table[:, : 2 * half] = math.sqrt(2) * config.initializer_range * torch.cat([angle.sin(), angle.cos()], -1).float()
    table[config.pad_token_id] = 0
    words[:, : 2 * half] = 0
    attention = model.base_model.encoder.layer[0].attention.self  # type: ignore[union-attr, index]  # as above
    for head in range(config.num_attention_heads):
        offset = -(head + 1) if config.is_decoder else (head // 2 + 1) * (1 if head % 2 else -1)
        cos, sin = ((f(frequency * offset)).float().diag() for f in (torch.cos, torch.sin))
        turn = torch.cat([torch.cat([cos, sin], -1), torch.cat([-sin, cos], -1)])  # sin(a + b), cos(a + b)
        rows = slice(head * width, head * width + 2 * half)
        attention.query.weight[rows, : 2 * half] = sharpness * turn
        attention.key.weight[rows, : 2 * half] = sharpness * torch.eye(2 * half)


@torch.no_grad()
def start_rotary(model: PreTrainedModel, peak: float = 5.0) -> None:
    """The same two starts for a EuroBERT, whose positions turn queries and keys and whose projections have no bias.

    Every token embedding gets the same first number. Where the head is tied to the embeddings, it moves all logits
    alike, which changes no probability; in the first layer it is the bias that queries and keys lack. There the key is
    (1, 0) in each pair of dimensions that positions turn by `w_k` per place, and the query of a head is turned by
    `w_k` times the head's offset, so that a score is `sum_k cos(w_k (i + offset - j))` for the pairs that turn fast.

    The values of every layer are copied at the size of an embedding, since here norms stand before the layers and not
    behind them. The last norm starts as small as that of `start_undecided`.

    Args:
        model: a EuroBERT with as many keys as queries, with or without norms of them, with the usual start.
        peak (`float`): by how much the score of a head's place, before the softmax, exceeds that of the places beside
            it.
    """
    config, encoder = model.config, model.base_model
    table, last_norm, attention = encoder.embed_tokens.weight, encoder.norm.weight, encoder.layers[0].self_attn  # type: ignore[union-attr, index]  # EuroBERT's, which mypy does not know
    width, spread = config.head_dim, config.initializer_range
    constant = 4 * spread  # well above the other numbers, and still a small part of what words have in common
    table[:, 0] = constant
    table[config.pad_token_id] = 0
    size = math.sqrt(spread**2 + constant**2 / config.hidden_size)  # root mean square of an embedding
    frequency = encoder.rotary_emb.inv_freq.double()  # type: ignore[union-attr]  # as above
    turns = frequency > 0.05
    sharpness = peak * math.sqrt(width) / float((1 - frequency[turns].cos()).sum())
    length = math.sqrt(sharpness) * turns * size / constant  # the norm before the layer divides by the size
    for head in range(config.num_attention_heads):
        angle = frequency * (head // 2 + 1) * (1 if head % 2 else -1)
        rows = slice(head * width, (head + 1) * width)
        attention.q_proj.weight[rows, 0] = torch.cat([length * angle.cos(), length * angle.sin()]).float()
        attention.k_proj.weight[rows, 0] = torch.cat([length, torch.zeros_like(length)]).float()
    if hasattr(attention, "q_norm"):  # brings the root mean square to 1, so that its weight is what it was
        weight = math.sqrt(sharpness * int(turns.sum()) / width)
        attention.q_norm.weight.fill_(weight)
        attention.k_norm.weight.fill_(weight)
    for layer in encoder.layers:  # type: ignore[union-attr]  # as above
        value, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        nn.init.orthogonal_(value)
        output.copy_(size * value.T)
    _make_logits_small(last_norm, config)  # type: ignore[arg-type]  # as above
