"""What the benchmark of training says of memory, where the answer is known."""

import gc

import pytest

from benchmarks import training


@pytest.mark.skipif(not training._CLEAR.exists(), reason="only Linux tells the most memory since a moment")
def test_memory_that_was_taken_for_a_moment_is_seen_and_what_was_there_before_is_not() -> None:
    gc.collect()  # what other tests left would be freed meanwhile
    kept = b"x" * (80 << 20)
    for mib in (0, 48):
        found = training.peak_above_start(lambda mib=mib: len(b"x" * (mib << 20)))
        assert found is not None and mib - 1 <= found / 2**20 < mib + 8
    assert len(kept) == 80 << 20
