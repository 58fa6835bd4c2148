"""Reading: a few rows at a time give what all rows together give."""

import math

import pytest
import torch

from diffusion_mlm import reading
from diffusion_mlm.reading import draw_tokens, read_distributions, rows_at_once
from diffusion_mlm.sampling import NonFiniteLogitsError, Sampling, log_probabilities
from diffusion_mlm.unmasking import AdaptiveCount, position_scores

VOCABULARY, END = 11, 3


@pytest.fixture(params=[1, 2 * VOCABULARY, 1000])
def at_once(request, monkeypatch):
    monkeypatch.setattr(reading, "_AT_ONCE", request.param)


def logits_of(rows, dtype=torch.float32):
    logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, 0] = -math.inf
    return logits.to(dtype)


def test_every_row_is_in_one_slice_and_an_empty_tensor_has_one(at_once):
    for rows in (0, 1, 2, 5):
        logits = logits_of(rows)
        slices = list(rows_at_once(logits))
        assert slices
        assert torch.equal(torch.cat([logits[some] for some in slices]), logits)


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("deferred_id", [None, END])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_those_of_all_rows_together(at_once, order, deferred_id, dtype):
    logits = logits_of(5, dtype)
    kept = logits.clone()
    log_probs = log_probabilities(logits)
    if deferred_id is not None:
        log_probs[:, deferred_id] = -math.inf
    found = read_distributions(logits, order, None, deferred_id)
    assert torch.equal(found.score, position_scores(order, log_probs))
    assert (found.confidence, found.entropy, found.log_probs) == (None, None, None)
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("deferred_id", [None, END])
def test_the_adaptive_rules_see_ends_whatever_the_order_sees(at_once, deferred_id):
    logits = logits_of(5)
    log_probs = log_probabilities(logits)
    found = read_distributions(logits, "entropy", AdaptiveCount("threshold", 0.9), deferred_id)
    assert torch.equal(found.confidence, log_probs.amax(-1).exp())
    assert torch.equal(found.entropy, -position_scores("entropy", log_probs))
    assert found.log_probs is None
    found = read_distributions(logits, "entropy", AdaptiveCount("independent", 0.1), deferred_id)
    assert torch.equal(found.log_probs, log_probs)


def test_nothing_is_read_where_nobody_asks():
    assert read_distributions(torch.full((2, 3), math.nan), None, None, None) == reading.Reading()


@pytest.mark.parametrize(
    "sampling",
    [Sampling("greedy"), Sampling(top_p=0.8), Sampling(temperature=0.5, temperature_end=2.0), Sampling("topk", 0.7)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_those_of_all_rows_together_and_their_probabilities_the_untempered_ones(at_once, sampling, dtype):
    logits = logits_of(5, dtype)
    generator = torch.Generator().manual_seed(1)
    u, share = (torch.rand(5, generator=generator, dtype=torch.float64) for _ in range(2))
    tokens, log_prob = draw_tokens(sampling, logits, u, share)
    assert torch.equal(tokens, sampling.choose(logits, u, share))
    assert torch.equal(log_prob, log_probabilities(logits).gather(-1, tokens[:, None])[:, 0])


def test_a_bad_row_is_found_wherever_it_stands(at_once):
    for bad in range(5):
        logits = logits_of(5)
        logits[bad, 5] = math.nan
        with pytest.raises(NonFiniteLogitsError):
            read_distributions(logits, "confidence", None, None)
        with pytest.raises(NonFiniteLogitsError):
            draw_tokens(Sampling("greedy"), logits, torch.zeros(5, dtype=torch.float64), torch.ones(5))
