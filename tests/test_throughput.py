"""Tokens a second: what is counted, over which time."""

import torch

from diffusion_mlm.throughput import Throughput


def test_tokens_are_counted_without_padding_over_the_time_between_two_logs():
    seconds = iter([10.0, 14.0, 14.0, 15.0, 15.0])  # at the first batch, at each log, and where it starts anew
    throughput = Throughput(lambda: next(seconds))
    throughput.add(torch.tensor([[1, 1, 0], [1, 1, 1]]))
    throughput.add(torch.tensor([[1, 1, 1]]))
    assert throughput.tokens_per_second() == 8 / 4
    throughput.add(torch.tensor([[1, 0]]))
    assert throughput.tokens_per_second(lambda count: 2 * count) == 2 / 1


def test_what_was_before_a_restart_does_not_count():
    seconds = iter([0.0, 100.0, 102.0, 102.0])
    throughput = Throughput(lambda: next(seconds))
    throughput.add(torch.ones(4, 4))
    throughput.restart()
    throughput.add(torch.ones(2, 4))
    assert throughput.tokens_per_second() == 8 / 2


def test_nothing_counted_is_no_rate():
    assert Throughput().tokens_per_second() is None
