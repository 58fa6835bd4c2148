"""When noise leaves the places of a text that is being written: the times of places, step by step."""

import torch
from torch import Tensor

from ..sampling import log_probabilities
from ..unmasking import position_scores, take_highest, take_independent
from .noise import sampling_times, staggered_times

_SURE = 0.05  # entropy in nats, see `unmasking.take_independent`
_LAST = 1e6  # less than any entropy


class AsInTraining:
    """All rows go through the same times, and their places in a random order, or all at once without stagger.

    Args:
        to_fill (`torch.BoolTensor` of shape `(B, L)`), keys (`torch.Tensor` of shape `(B,)`): of the order.
        steps (`int`), stagger (`float`): see `noise.staggered_times`.
    """

    def __init__(self, to_fill: Tensor, keys: Tensor, steps: int, stagger: float) -> None:
        self._of_rows, self._index = sampling_times(steps).to(to_fill.device), 0
        self._to_fill, self._keys, self._stagger = to_fill, keys, stagger

    @property
    def times(self) -> Tensor:
        """Diffusion times of all places, `(B, L)` float64."""
        here = self._of_rows[self._index].expand(len(self._keys))
        return staggered_times(here, self._to_fill, self._keys, self._stagger)

    def advance(self, rows: Tensor, logits: Tensor) -> None:
        """Goes to the next step."""
        self._index += 1


class SurestFirst:
    """Noise leaves those places of which the model is sure; of the others one at a time.

    When all places that have begun are clear, there begin all of which the model is sure, the surest of the rest, and
    those that do not depend on it (`unmasking.take_independent`). A text of few decisions is done before its steps
    are. So that one of many is done with them, no more places may wait than `1 - t**3` of them when a share t of the
    steps at which one may begin has gone.

    (What hangs on a token is begun when that is clear, not when the model is sure of it on its way: of stories in 128
    steps, windows of 2, the grammar took 76 % so and 68 % the other way.)

    Args:
        to_fill (`torch.BoolTensor` of shape `(B, L)`), steps (`int`): see above.
        window (`int`): after so many steps a place that begins is clear.
        deferred_id (`int`, *optional*): where this token is the likeliest, a place waits while there are others.
    """

    def __init__(self, to_fill: Tensor, steps: int, window: int, deferred_id: int | None) -> None:
        self._window, self._starts, self._index, self._deferred_id = window, steps - window, 0, deferred_id
        self._age = torch.zeros_like(to_fill, dtype=torch.int64).masked_fill(~to_fill, window)
        self._num_places = to_fill.sum(-1)

    @property
    def times(self) -> Tensor:
        """Diffusion times of all places, `(B, L)` float64."""
        return 1 - self._age.double() / self._window

    def advance(self, rows: Tensor, logits: Tensor) -> None:
        """Goes to the next step.

        Args:
            rows (`torch.Tensor` of shape `(A,)`): which rows are still being written.
            logits (`torch.Tensor` of shape `(A, L, V)`): what the model says there.
        """
        age = self._age[rows]
        waits, moves = age == 0, (age > 0) & (age < self._window)
        self._index += 1
        if bool(waits.any()):
            moves = moves | self._begins(rows, waits, moves.any(-1), log_probabilities(logits[waits]))
        self._age[rows] = age + moves.long()

    def _begins(self, rows: Tensor, waits: Tensor, is_moving: Tensor, log_probs: Tensor) -> Tensor:
        surest = torch.zeros(waits.shape, dtype=torch.float64, device=waits.device)
        surest[waits] = position_scores("entropy", log_probs).double()  # the entropy with a minus
        words = waits
        if self._deferred_id is not None:
            words = waits.clone()
            words[waits] = log_probs.argmax(-1).ne(self._deferred_id)
        among = torch.where(words.any(-1, keepdim=True), words, waits)
        begins = take_independent(surest, among, waits, log_probs[among[waits]], _SURE) & ~is_moving[:, None]
        share = min(self._index / max(self._starts, 1), 1.0)
        most = (self._num_places[rows] * (1 - share**3) + 1e-6).long()
        missing = (waits.sum(-1) - begins.sum(-1) - most).clamp(min=0)
        return begins | take_highest(surest.where(words, surest - _LAST), waits & ~begins, missing)
