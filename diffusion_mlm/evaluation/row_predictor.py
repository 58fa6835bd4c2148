"""A model as the estimators see it: rows of token ids go in, logits at chosen positions come out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..canvas import is_gaussian, padding_id, training_facts
from ..modeling import end_token_id, forbidden_token_ids, logits_at, require_mask_token, unwrap
from ..tokenization import special_token_ids
from .likelihood import RowBounds, bound_of_rows

PADDING = -1  # no token: a tokenizer's padding may be its end token too, which stands in text


@dataclass(frozen=True)
class RowPredictor:
    """Predicts the masked tokens of rows that are padded with -1; what the estimators call `predict_logits`.

    Attributes:
        model (`torch.nn.Module`): a masked language model, in evaluation mode, or `ExactDenoiser`.
        mask_id, padding_id (`int`): `padding_id` is what the model gets, unattended, where a row holds -1.
        end_id (`int`): of `</s>` if it is scored like any token, else -1.
        never_scored (`torch.Tensor`): ids that are never masked: special tokens.
        forbidden_ids (`torch.Tensor`): ids that get probability 0, on the model's device.
    """

    model: nn.Module
    mask_id: int
    padding_id: int
    end_id: int
    never_scored: Tensor
    forbidden_ids: Tensor

    @property
    def device(self) -> torch.device:
        return self.forbidden_ids.device

    def __call__(self, input_ids: Tensor, rows: Tensor) -> Tensor:
        """Logits of shape `(N, V)` at the N positions where `rows` `(B, L)` is True; `input_ids` `(B, L)`."""
        return logits_at(self.model, rows, **self._inputs(input_ids))

    def bound_of_rows(self, input_ids: Tensor, maskable: Tensor, **options: Any) -> RowBounds:
        """The likelihood bound of rows, of masked or of Gaussian diffusion, as the model is.

        Args:
            input_ids, maskable (`torch.Tensor` of shape `(B, L)`), **options: `draws`, and `seed` or `keys`, as of
                `likelihood.bound_of_rows`.
        """
        options |= {"end_id": self.end_id, "forbidden_ids": self.forbidden_ids}
        if not is_gaussian(self.model):
            return bound_of_rows(self, input_ids, maskable, mask_id=self.mask_id, **options)
        gaussian: Any = unwrap(self.model)
        return gaussian.bound_of_rows(*self._inputs(input_ids).values(), maskable, **options)

    def require_masks(self, argument: str, value: object) -> None:
        """Raises ValueError if the model reads noisy embeddings and this asks it for tokens under masks."""
        if is_gaussian(self.model):
            raise ValueError(
                f"`{argument}` is {value!r}, which asks for tokens under masks, but this is a model of embedding "
                f"diffusion: its likelihood bound alone can be measured."
            )

    def _inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        attended = input_ids.ne(PADDING)
        return {"input_ids": input_ids.masked_fill(~attended, self.padding_id), "attention_mask": attended.long()}


def writes_ends(model: nn.Module) -> bool:
    """Whether the model was trained to predict where a text ends; `config.json` says so."""
    return bool(training_facts(model).get("generates_end"))


def make_predictor(model: nn.Module, tokenizer: PreTrainedTokenizerBase, scores_end: bool) -> RowPredictor:
    """The predictor of a model, on the device the model is on.

    Args:
        model, tokenizer: a masked language model, or anything called like one, and its tokenizer.
        scores_end (`bool`): whether `</s>` is a token like any other; if not, it is given and has probability 0
            elsewhere.

    Raises:
        ValueError: the tokenizer has no mask token.
    """
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else getattr(model, "device", None)
    vocab_size = getattr(getattr(unwrap(model), "config", None), "vocab_size", len(tokenizer))
    end_id = end_token_id(tokenizer) if scores_end else -1
    return RowPredictor(
        model=model,
        mask_id=require_mask_token(tokenizer, "tokenizer"),
        padding_id=padding_id(tokenizer),
        end_id=end_id,
        never_scored=torch.tensor(sorted(set(special_token_ids(tokenizer)) - {end_id})),
        forbidden_ids=torch.tensor(forbidden_token_ids(tokenizer, scores_end, vocab_size), device=device),
    )
