"""When noise leaves the places of a text that is being written by Gaussian diffusion."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_mlm.embedding_diffusion.clearing import SurestFirst


@settings(max_examples=50, deadline=None)
@given(window=st.integers(1, 9), starts=st.integers(1, 40), seed=st.integers(0, 10_000), deferred=st.booleans())
def test_every_place_is_clear_when_the_steps_are_over_whatever_the_model_says(window, starts, seed, deferred):
    generator = torch.Generator().manual_seed(seed)
    to_fill = torch.rand(3, 12, generator=generator) < 0.7
    clearing = SurestFirst(to_fill, window + starts, window, 2 if deferred else None)
    rows = torch.arange(3)
    for _ in range(window + starts - 1):
        before = clearing.times
        assert torch.equal(before[~to_fill], torch.zeros_like(before[~to_fill]))
        clearing.advance(rows, torch.log_softmax(8 * torch.randn(3, 12, 5, generator=generator), -1))
        assert bool((clearing.times <= before).all())
    assert not clearing.times.any()


def test_sure_places_go_at_once_and_of_unsure_neighbours_one_until_it_is_clear():
    words = torch.tensor([[[1.0, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 1]]])  # the last expects the token 2
    said = torch.log(words / words.sum(-1, keepdim=True))
    clearing = SurestFirst(torch.ones(1, 4, dtype=torch.bool), 40, 2, deferred_id=2)
    for expected in ([0.5, 0.5, 1, 1], [0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 0, 1], [0, 0, 0, 0.5], [0, 0, 0, 0]):
        clearing.advance(torch.tensor([0]), said)
        assert clearing.times.tolist() == [expected]


def test_ends_wait_for_words_when_many_must_begin():
    """Ten unsure words and ten ends, of which the model is surer."""
    words = torch.tensor([[[5.0, 5, 1], [1, 1, 9]]]).repeat(1, 10, 1)
    clearing = SurestFirst(torch.ones(1, 20, dtype=torch.bool), 8, 1, deferred_id=2)
    for _ in range(7):
        clearing.advance(torch.tensor([0]), torch.log(words))
        has_begun = clearing.times < 1
        assert not has_begun[0, 1::2].any() or has_begun[0, 0::2].all()
    assert has_begun.all()


def test_independent_unsure_places_go_together():
    unsure, other, sure = [1.0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]
    clearing = SurestFirst(torch.ones(1, 13, dtype=torch.bool), 40, 1, None)
    said = torch.log(torch.tensor([[unsure, *[sure] * 6, unsure, *[sure] * 4, [2.0, 1, 0, 0, 0]]]))
    clearing.advance(torch.tensor([0]), said)
    assert (clearing.times < 1).logical_not().nonzero()[:, 1].tolist() == [0, 7]
    said[0, 7], said[0, 12] = torch.log(torch.tensor([other, sure]))
    clearing.advance(torch.tensor([0]), said)
    assert (clearing.times < 1).all()
