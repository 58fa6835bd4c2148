"""How many tokens a second training reads."""

import time
from collections.abc import Callable

from torch import Tensor


class Throughput:
    """Counts tokens on the device, so that no step waits for the count, and divides by the time at each log.

    What is between two logs counts, waiting for data included, but not evaluating and saving: `restart` after them.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._tokens: Tensor | None = None
        self._start: float | None = None

    def add(self, attention_mask: Tensor) -> None:
        """Counts the tokens of a batch that are no padding; the first call starts the clock.

        Args:
            attention_mask (`torch.Tensor` of shape `(B, L)`): 1 where a token is.
        """
        if self._start is None:
            self._start = self._clock()
        count = attention_mask.sum()
        self._tokens = count if self._tokens is None else self._tokens + count

    def restart(self) -> None:
        """Forgets what was counted and begins now."""
        self._tokens, self._start = None, self._clock()

    def tokens_per_second(self, reduce: Callable[[Tensor], Tensor] = lambda tokens: tokens) -> float | None:
        """Tokens a second since the last call or restart, or None if there were none; and starts anew.

        Args:
            reduce: sums a count over the processes, which all must ask.
        """
        rate = None
        if self._tokens is not None and self._start is not None:
            tokens = int(reduce(self._tokens))  # waits for the device
            rate = tokens / max(self._clock() - self._start, 1e-9)
        self.restart()
        return rate
