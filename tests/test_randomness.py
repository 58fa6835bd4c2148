"""Keyed randomness: pure functions of the key, uniform, and independent from key to key."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_mlm.randomness import fold_in, gumbel, make_key, uniform

int64 = st.integers(-(2**63), 2**63 - 1)
quietly = settings(deadline=None, derandomize=True, database=None, max_examples=200)


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum().double() / len(counts)
    return ((counts - expected) ** 2 / expected).sum().item()


def test_make_key_is_the_same_in_another_process():
    """Python's `hash` of a string is salted per process; a key must not be."""
    program = "from diffusion_mlm.randomness import make_key; print(make_key('train', 7, b'x'))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(printed) == make_key("train", 7, b"x")


def test_make_key_tells_parts_apart():
    keys = [
        make_key(*parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), (1,), ("1",), (b"x",), ("x",), (1, 1), ())
    ]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_neighbouring_keys_do_not_collide():
    keys = {make_key("seed", seed, row) for seed in range(40) for row in range(40)}
    assert len(keys) == 1600
    folded = fold_in(torch.arange(1000).unsqueeze(1), torch.arange(1000).unsqueeze(0))
    assert len(folded.unique()) == 1_000_000


@quietly
@given(int64, int64)
def test_fold_in_of_an_int_is_that_of_a_tensor(key, data):
    assert (
        fold_in(key, data)
        == fold_in(torch.tensor([key]), data)[0]
        == fold_in(torch.tensor(key), torch.tensor([data]))[0]
    )


@quietly
@given(int64, int64)
def test_fold_in_is_not_symmetric(key, data):
    assert key == data or fold_in(key, data) != fold_in(data, key)


@quietly
@given(st.lists(int64, min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 40))
def test_uniform_numbers_of_a_key_depend_on_nothing_else(keys, size, more):
    together = uniform(torch.tensor(keys), size + more)
    assert together.shape == (len(keys), size + more) and together.dtype == torch.float64
    assert ((together >= 0) & (together < 1)).all()
    for row, key in enumerate(keys):
        assert torch.equal(uniform(torch.tensor(key), size), together[row, :size])


@quietly
@given(int64)
def test_the_global_random_state_is_not_touched(key):
    before = torch.get_rng_state()
    uniform(torch.tensor([key]), 9)
    gumbel(torch.tensor([key]), 9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("keys", ["sequential", "folded", "one"])
def test_uniform_numbers_are_uniform(keys):
    """Chi-square over 100 cells and 10^6 numbers: mean 99, deviation 14. Also of the first number of each key."""
    rows = {
        "sequential": torch.arange(100_000),
        "folded": fold_in(fold_in(3, torch.arange(100_000)), 1),
        "one": torch.tensor([make_key("one")]),
    }[keys]
    u = uniform(rows, 1_000_000 // len(rows))
    assert 55 < chi_square((u.flatten() * 100).long().bincount(minlength=100)) < 165
    if len(rows) > 1:
        assert 55 < chi_square((u[:, 0] * 100).long().bincount(minlength=100)) < 165


def test_every_one_of_the_53_bits_is_fair():
    bits = (uniform(torch.arange(1000), 100).flatten() * 2**53).long()
    share = torch.stack([((bits >> bit) & 1).double().mean() for bit in range(53)])
    assert (share - 0.5).abs().max() < 5 * 0.5 / 100_000**0.5


def test_numbers_of_neighbouring_keys_steps_and_positions_are_uncorrelated():
    u = uniform(torch.arange(100_000), 2) - 0.5
    steps = uniform(fold_in(torch.arange(100_000), 0), 1)[:, 0] - 0.5
    later = uniform(fold_in(torch.arange(100_000), 1), 1)[:, 0] - 0.5
    for a, b in ((u[:-1, 0], u[1:, 0]), (u[:, 0], u[:, 1]), (steps, later), (u[:, 0], steps)):
        assert abs((a * b).mean().item() * 12) < 5 / 100_000**0.5


def test_gumbel_noise_has_its_mean_variance_and_no_infinities():
    noise = gumbel(torch.arange(1000), 200)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772157, abs=5 * 1.2825 / 200_000**0.5)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.04)
