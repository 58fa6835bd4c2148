"""Keyed randomness: random numbers that are pure functions of a key.

Masks and samples must not depend on the batch size, on neighbouring rows, on workers, on the number of processes or on
what was drawn before. So nothing here has a state: a key goes in, numbers come out, the same on every device.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

_INCREMENT = -7046029254386353131  # 0x9E3779B97F4A7C15, the golden-ratio increment of SplitMix64, as a signed int64
_MULTIPLIER_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = -7723592293110705685  # 0x94D049BB133111EB


def make_key(*parts: int | str | bytes) -> int:
    """A signed 64-bit key from any mixture of integers, strings and bytes; equal parts give equal keys everywhere.

    Uses BLAKE2b, never `hash()`, whose salt differs from process to process.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)  # the length keeps ("ab", "c") apart from ("a", "bc")
    return int.from_bytes(digest.digest(), "little", signed=True)


def _logical_shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _finalize(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014) in wrapping int64 arithmetic."""
    x = (x ^ _logical_shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _logical_shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ _logical_shift_right(x, 31)


def _signed(x: int) -> int:
    """The signed 64-bit integer with the lowest 64 bits of `x`."""
    return (x + 2**63) % 2**64 - 2**63


def _finalize_number(x: int) -> int:
    """`_finalize` of one integer: as a tensor it would take a dozen operations, on a GPU as many kernels."""
    x %= 2**64
    x = (x ^ (x >> 30)) * (_MULTIPLIER_1 % 2**64) % 2**64
    x = (x ^ (x >> 27)) * (_MULTIPLIER_2 % 2**64) % 2**64
    return _signed(x ^ (x >> 31))


def fold_in(keys: Tensor | int, data: Tensor | int) -> Tensor:
    """New keys from `keys` and `data` (int64, broadcast against each other): one stream per row, step or position."""
    keys = torch.as_tensor(keys, dtype=torch.int64)
    if isinstance(data, int):
        return _finalize(keys + _signed(_finalize_number(data + _INCREMENT) * _MULTIPLIER_2 + _INCREMENT))
    if keys.device != data.device:
        keys, data = (keys.to(data.device), data) if keys.dim() == 0 else (keys, data.to(keys.device))
    return _finalize(keys + _finalize(data + _INCREMENT) * _MULTIPLIER_2 + _INCREMENT)


@lru_cache(maxsize=64)
def _counters(size: int, device: torch.device) -> Tensor:
    """What `fold_in` adds to a key for each of the numbers 0 to `size` - 1: the same in every step of every text."""
    return _finalize(torch.arange(size, device=device) + _INCREMENT) * _MULTIPLIER_2 + _INCREMENT


def uniform(keys: Tensor, size: int) -> Tensor:
    """Uniform numbers in [0, 1) on the grid of 2**-53.

    Args:
        keys (`torch.Tensor` of shape `(...)`, int64): one key per row, from `make_key` and `fold_in`.
        size (`int`): how many numbers each key gives.

    Returns:
        `torch.Tensor` of shape `(..., size)`, float64. The first numbers of a key do not depend on `size`.
    """
    bits = _finalize(keys.unsqueeze(-1) + _counters(size, keys.device))
    return _logical_shift_right(bits, 11).double() * 2.0**-53


def gumbel(keys: Tensor, size: int) -> Tensor:
    """Standard Gumbel noise, float64, of shape `(*keys.shape, size)`."""
    u = uniform(keys, size) + 2.0**-54  # never exactly 0
    return -torch.log(-torch.log(u))


def normal(keys: Tensor, size: int) -> Tensor:
    """Standard normal numbers, float64, of shape `(*keys.shape, size)`; the first ones do not depend on `size`."""
    return torch.special.ndtri(uniform(keys, size) + 2.0**-54)  # never exactly 0
