"""Sums over the rows of some texts: batches go to an estimator, the nats of each text come back."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import NonFiniteLossError
from .interval import RatioEstimate, ratio_estimate
from .likelihood import count_tokens
from .likelihood_report import Estimate
from .text_rows import TextRows, row_batches

CONFIDENCE = 0.95


class TextSums:
    """Runs functions of batches over all rows and adds up the nats of each text.

    Args:
        rows (`TextRows`): of at least one text.
        never_scored (`torch.Tensor`): ids that are given wherever they stand.
        end_id (`int`): of `</s>` if it is scored, else -1; a run of it that fills a row counts as one token.
        device: that of the model.
        batch_size (`int`): rows per batch.
        progress (callable, *optional*): called with the number of batches done and that of all.

    Attributes:
        tokens (`torch.Tensor` of shape `(num_units,)`): scored tokens of each text (packed: of each row).

    Raises:
        ValueError: there is nothing to score.
    """

    def __init__(
        self,
        rows: TextRows,
        never_scored: Tensor,
        end_id: int,
        device: torch.device,
        batch_size: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.rows, self.never_scored, self.device = rows, never_scored, device
        self.batch_size, self.progress = batch_size, progress
        self.tokens = torch.zeros(rows.num_units, dtype=torch.int64)
        for ids, maskable, units in self._batches():
            self.tokens.index_add_(0, units, count_tokens(ids, maskable, end_id))
        if not self.tokens.any():
            raise ValueError(
                f"`texts` has no token that could be scored: its {rows.num_texts} texts are empty, or unknown to this "
                f"tokenizer."
            )
        self.done = self.planned = 0

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return row_batches(self.rows.rows, self.never_scored, self.batch_size)

    def prepare(self, passes: int) -> None:
        """Tells how many passes over all rows there will be."""
        self.planned = passes * math.ceil(len(self.rows.rows) / self.batch_size)

    def add(self, of_batch: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Nats of each text, `(num_units,)`, from a function of a batch's `input_ids` and `maskable`, `(B, L)`."""
        nats = torch.zeros(self.rows.num_units, dtype=torch.float64)
        for ids, maskable, units in self._batches():
            nats.index_add_(0, units, of_batch(ids.to(self.device), maskable.to(self.device)).cpu())
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.planned)
        return nats

    def estimate(self, nats: Tensor, **settings: Any) -> Estimate:
        """The figures of some estimates of the texts' nats.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        if not torch.isfinite(nats).all():
            what = "rows" if self.rows.num_units == len(self.rows.rows) else "texts"
            raise NonFiniteLossError(
                f"The likelihood of {int((~torch.isfinite(nats)).sum())} of {len(nats)} {what} is not finite: the "
                f"model answers NaN, or gives a token of the text probability 0. Take another checkpoint."
            )
        scored = self.tokens > 0
        ratio: RatioEstimate = ratio_estimate(nats[scored], self.tokens[scored], CONFIDENCE)
        num_bytes = self.rows.num_bytes
        return Estimate(
            nats_per_token=ratio.value,
            perplexity=math.exp(ratio.value),
            bits_per_byte=float(nats.sum()) / math.log(2) / num_bytes if num_bytes else None,
            standard_error=ratio.standard_error,
            confidence_interval=ratio.interval,
            settings=settings,
            nats=nats,
            tokens=self.tokens,
        )
