"""The collator: rows of token ids go in, a batch with a variable share of its tokens masked comes out."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .corruption import GUIDE_LEVELS, CorruptedBatch, ForwardProcess, batch_key
from .modeling import end_token_id, require_mask_token
from .randomness import fold_in
from .rate_distributions import Density, ImportanceRates
from .row_lengths import cut_rows
from .tokenization import special_token_ids

logger = logging.getLogger(__name__)

LABEL_POSITIONS = ("masked", "maskable")


@dataclass
class DataCollatorForMaskedDiffusion:
    """Masks each row at a rate of its own and keeps a prefix; for any `Trainer` and any masked language model.

    Rows are dictionaries with `input_ids`; `prompt_length`, if there is a prompt that is given and never masked
    (leading tokens, the start token included); and `attention_mask`, if they were padded before: that padding is taken
    off. Other columns are ignored. The batch holds

    * `input_ids` (`torch.Tensor` of shape `(B, L)`): with `<mask>` where tokens were masked, padded on the right,
    * `attention_mask` (`torch.Tensor` of shape `(B, L)`),
    * `labels` (`torch.Tensor` of shape `(B, L)`): the clean token where it was masked, -100 elsewhere; with
      `label_positions="maskable"` the clean token wherever it could have been masked,
    * `mask_rate` (`torch.Tensor` of shape `(B,)`), only with `return_mask_rate=True`.

    Masks are a pure function of (`seed`, content of the batch): workers and resuming change nothing, a reshuffled
    epoch brings new masks, and a sequential sampler repeats them. Rates are stratified over the batch. Special tokens
    and padding are never masked, and a row with any maskable token loses at least one. A row without any is reported
    once and adds nothing; a batch of nothing else has no mean, and the plain `Trainer` makes NaN of it (its gradient
    is 0).

    Under the plain `Trainer` the loss is one mean over all labels, the `simple` objective, or `full` with
    `label_positions="maskable"`; set
    `model.accepts_loss_kwargs = False` there if you accumulate gradients, or it grows with the number of steps. The
    `elbo` objective and exact accumulation are what `DiffusionTrainer` is for: it asks for clean rows (`mask=False`)
    and masks on the device.

    Args:
        tokenizer: needs a mask token and a padding token.
        schedule, masking, levels, levels_per, prefix_length, no_prefix_share, span_length, rate_distribution,
            rate_parameters, max_mask_rate, stratified_times, token_weights: see `corruption.ForwardProcess`. The rate
            distribution `importance` learns from the loss and so needs `DiffusionTrainer`.
        mask_end_token (`bool`): treat `</s>` as a real token, so that the model learns where text ends; right for rows
            that hold one text filled with `</s>`, wrong for packed blocks.
        random_length_share (`float`): share of the rows that are cut to a random length, see `row_lengths.cut_rows`.
        label_positions (`"masked"` or `"maskable"`): whether visible tokens have labels too; under `DiffusionTrainer`
            the objective says what is scored.
        seed (`int`): part of every key.
        return_mask_rate (`bool`): add `mask_rate` to the batch.
        mask (`bool`): with False the rows stay clean and `labels` mark every maskable token.
        pad_to_multiple_of (`int`, *optional*): pads the batch to a multiple of this length.

    Raises:
        ValueError: the tokenizer has no mask or padding token, or a setting is out of range.

    Example:
        >>> from diffusion_mlm import DataCollatorForMaskedDiffusion, story_language
        >>> tokenizer = story_language.tokenizer()
        >>> collator = DataCollatorForMaskedDiffusion(tokenizer, prefix_length=2, return_mask_rate=True)
        >>> texts = story_language.sample(4, seed=0)
        >>> batch = collator([{"input_ids": tokenizer(text)["input_ids"]} for text in texts])
        >>> bool((batch["input_ids"][:, :3] == tokenizer.mask_token_id).any())   # <s> and the prefix are never masked
        False
        >>> sorted(batch)
        ['attention_mask', 'input_ids', 'labels', 'mask_rate']
    """

    tokenizer: PreTrainedTokenizerBase
    schedule: str = "linear"
    masking: str = "exact"
    levels: tuple[float, ...] = GUIDE_LEVELS
    levels_per: str = "row"
    prefix_length: int | str = "random"
    no_prefix_share: float = 0.3
    span_length: float = 1.0
    rate_distribution: str | Density = "uniform"
    rate_parameters: tuple[float, ...] = ()
    max_mask_rate: float = 1.0
    stratified_times: bool = True
    token_weights: Tensor | Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    random_length_share: float = 0.0
    label_positions: str = "masked"
    mask_end_token: bool = False
    seed: int = 0
    return_mask_rate: bool = False
    mask: bool = True
    pad_to_multiple_of: int | None = None
    process: ForwardProcess = field(init=False, repr=False)
    _never_masked: Tensor = field(init=False, repr=False)
    _reported_unmaskable: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        mask_id = require_mask_token(self.tokenizer, "tokenizer")
        if self.tokenizer.pad_token_id is None:
            raise ValueError("`tokenizer` has no padding token: set `tokenizer.pad_token` before it comes here.")
        self.process = ForwardProcess(
            mask_id=mask_id,
            schedule=self.schedule,
            masking=self.masking,
            levels=tuple(self.levels),
            levels_per=self.levels_per,
            prefix_length=self.prefix_length,
            no_prefix_share=self.no_prefix_share,
            span_length=self.span_length,
            rate_distribution=self.rate_distribution,
            rate_parameters=tuple(self.rate_parameters),
            max_mask_rate=self.max_mask_rate,
            stratified_times=self.stratified_times,
            token_weights=self.token_weights,
        )
        if isinstance(self.token_weights, Tensor) and len(self.token_weights) < len(self.tokenizer):
            raise ValueError(
                f"`token_weights` must hold a weight for each of the {len(self.tokenizer)} tokens, not "
                f"{len(self.token_weights)} weights."
            )
        if not 0 <= self.random_length_share <= 1:
            raise ValueError(f"`random_length_share` must lie in [0, 1], not {self.random_length_share!r}.")
        if self.label_positions not in LABEL_POSITIONS:
            raise ValueError(
                f"`label_positions` must be one of {', '.join(LABEL_POSITIONS)}, not {self.label_positions!r}."
            )
        special = set(special_token_ids(self.tokenizer))
        if self.mask_end_token:
            special.discard(end_token_id(self.tokenizer))
        self._never_masked = torch.tensor(sorted(special))

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        input_ids, attention_mask, maskable = self.pad(features)
        if not self.mask:
            return self._batch(input_ids, attention_mask, input_ids.masked_fill(~maskable, -100))
        if isinstance(self.process.rates, ImportanceRates):
            raise ValueError(
                "`rate_distribution` is 'importance', which learns from the loss of each row, but this trainer tells "
                "none: use `DiffusionTrainer`, or another distribution."
            )
        key = batch_key(self.seed, input_ids)
        rows = torch.arange(len(input_ids))
        keys, times = fold_in(key, rows), self.process.times(key, rows, size=len(input_ids))
        input_ids, attention_mask, maskable = self.cut(input_ids, attention_mask, maskable, keys)
        corrupted = self.process(input_ids, maskable, keys, times)
        self.report_unmaskable(corrupted)
        labels = corrupted.labels
        if self.label_positions == "maskable":
            labels = corrupted.targets.masked_fill(~corrupted.maskable, -100)
        batch = self._batch(corrupted.input_ids, attention_mask, labels)
        if self.return_mask_rate:
            batch["mask_rate"] = corrupted.mask_rate.float()
        return batch

    @staticmethod
    def _batch(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def pad(self, features: list[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, attention mask and maskable positions of some rows, each of shape `(B, L)`."""
        rows = [_without_padding(feature) for feature in features]
        lengths = torch.tensor([len(row) for row in rows])
        width = max(int(lengths.max()), 1)
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        input_ids = torch.full((len(rows), width), int(self.tokenizer.pad_token_id))
        for place, row in zip(input_ids, rows, strict=True):
            place[: len(row)] = row
        columns = torch.arange(width)
        given = torch.tensor([int(feature.get("prompt_length") or 0) for feature in features])[:, None]
        is_text = (columns >= given) & (columns < lengths[:, None])
        maskable = is_text & ~torch.isin(input_ids, self._never_masked)
        # An empty row attends to its first padding: attention over nothing is 0/0 in some kernels.
        attention_mask = columns < lengths.clamp(min=1)[:, None]
        return input_ids, attention_mask.long(), maskable

    def cut(
        self, input_ids: Tensor, attention_mask: Tensor, maskable: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`row_lengths.cut_rows` with the settings of this collator."""
        pad_id = int(self.tokenizer.pad_token_id)
        return cut_rows(input_ids, attention_mask, maskable, keys, self.random_length_share, pad_id)

    def report_unmaskable(self, corrupted: CorruptedBatch) -> None:
        """Says once that some rows have nothing to mask; they add nothing to the loss."""
        if self._reported_unmaskable:
            return
        empty = int((~corrupted.maskable.any(-1)).sum())
        if empty:
            self._reported_unmaskable = True
            logger.warning(
                "%d of the %d rows of a batch have nothing to mask (shorter than the prefix, or special tokens only). "
                "They add nothing to the loss; this is said once.",
                empty,
                len(corrupted.maskable),
            )


def _without_padding(feature: dict[str, Any]) -> Tensor:
    """The token ids of a row, int64, without what its attention mask leaves out."""
    row = torch.as_tensor(feature["input_ids"], dtype=torch.int64)
    attended = feature.get("attention_mask")
    return row if attended is None else row[torch.as_tensor(attended, dtype=torch.bool)]
