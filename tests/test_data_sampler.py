"""The order of training rows: a permutation by (seed, epoch), cut to whole global batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_mlm.data_sampler import WholeBatchSampler


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(num_rows=st.integers(1, 300), global_batch=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_is_whole_batches_of_different_rows(num_rows, global_batch, seed):
    if num_rows < global_batch:
        with pytest.raises(ValueError, match=f"{num_rows} rows, fewer than one global batch of {global_batch}"):
            WholeBatchSampler(num_rows, global_batch, seed)
        return
    sampler = WholeBatchSampler(num_rows, global_batch, seed)
    rows = list(sampler)
    assert len(rows) == len(sampler) == num_rows // global_batch * global_batch
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(num_rows))
    assert sampler.num_left_out == num_rows - len(rows)


def test_the_order_depends_on_seed_and_epoch_alone():
    def epoch(seed, number):
        sampler = WholeBatchSampler(50, 4, seed)
        sampler.set_epoch(number)
        return list(sampler)

    torch.manual_seed(1)
    first = epoch(7, 3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert epoch(7, 3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert epoch(7, 4) != first and epoch(8, 3) != first


def test_an_order_does_not_change_while_it_is_read():
    sampler = WholeBatchSampler(50, 4, seed=0)
    assert list(sampler) == list(sampler)


def test_each_epoch_leaves_out_other_rows():
    sampler, left_out = WholeBatchSampler(10, 4, seed=0), set()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        left_out |= set(range(10)) - set(sampler)
    assert left_out == set(range(10))


def test_without_shuffling_the_rows_stay_in_order():
    assert list(WholeBatchSampler(10, 4, seed=0, shuffle=False)) == list(range(8))
