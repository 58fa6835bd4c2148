"""The exact denoiser: what a perfectly trained model of the stories would answer, with the interface of a model."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from .automaton import BOS_ID, MASK_ID
from .inference import Inference
from .language import AUTOMATON, BLOCK_LENGTH


class ExactDenoiser(nn.Module):
    """p(token | visible tokens) for every masked position, a drop-in for a trained `RobertaForMaskedLM`.

    Rows are `<s> story </s> </s> ...` in the ids of `tokenizer()`, with any tokens replaced by `<mask>`. A row may
    have any length: it is then the beginning of such a sequence. Rows whose visible tokens contradict the grammar
    answer with the unigram law of the stories, and `impossible_contexts` counts them.

    Args:
        finished (`bool`, default False): demand that the story ends within the row (its last position is `</s>`).
            By default a row too short for a story holds the beginning of one.
        dtype (`torch.dtype`, default `torch.float32`): of the logits. The computation is in float64 whatever it says.
    """

    def __init__(self, finished: bool = False, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.inference = Inference(AUTOMATON)
        # What `generate` reads of a model: these rows end with `</s>` and are filled with it.
        facts = {"generates_end": True, "row_length": BLOCK_LENGTH}
        self.config = SimpleNamespace(vocab_size=self.inference.vocab_size, diffusion=facts)
        self.finished = finished
        self.dtype = dtype
        self.impossible_contexts = 0

    @property
    def device(self) -> torch.device:
        return self.inference.transition.device

    def _apply(self, fn: Any, recurse: bool = True) -> "ExactDenoiser":
        """Moves the tables but keeps them in float64: `.half()` must not round the grammar's probabilities."""
        device = fn(torch.zeros(1, device=self.device)).device
        return super()._apply(lambda tensor: tensor.to(device), recurse)

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **ignored: Any) -> MaskedLMOutput:
        """Log-probabilities as logits.

        Args:
            input_ids (`torch.Tensor` of shape `(B, L)`): rows that start with `<s>` (or its mask).
            attention_mask (`torch.Tensor` of shape `(B, L)`, optional): positions with 0 count as unknown.

        Returns:
            `MaskedLMOutput` with `logits` of shape `(B, L, V)`: natural logarithms of probabilities, -inf for what the
            grammar excludes; at a visible position all mass is on the token that stands there.

        Raises:
            ValueError: if `input_ids` is not of shape (B, L), holds an id outside the vocabulary, or a row does not
                start with `<s>`.
        """
        ids = self._checked(input_ids)
        known = ids if attention_mask is None else ids.masked_fill(attention_mask == 0, MASK_ID)
        probabilities, impossible = self.inference.posterior(known, self.finished)
        self.impossible_contexts += int(impossible.sum())
        logits = torch.full((*ids.shape, self.inference.vocab_size), -torch.inf, dtype=self.dtype, device=ids.device)
        logits.scatter_(2, ids[..., None], 0.0)
        logits[known.eq(MASK_ID)] = probabilities.log().to(self.dtype)
        return MaskedLMOutput(logits=logits)

    def log_prob_ids(self, input_ids: Tensor) -> Tensor:
        """log p(visible tokens) of rows of ids in nats, float64 of shape (B,); masks are summed out.

        So the log-probability of any completion is `log_prob_ids(filled) - log_prob_ids(masked)`. Unlike `log_prob`
        this does not ask that the story ends within the row.
        """
        return self.inference.log_prob(self._checked(input_ids))

    def _checked(self, input_ids: Tensor) -> Tensor:
        if input_ids.dim() != 2 or input_ids.size(1) == 0:
            raise ValueError(f"`input_ids` must have shape (rows, length), got {tuple(input_ids.shape)}; add a row.")
        size = self.inference.vocab_size
        if input_ids.numel() and (int(input_ids.min()) < 0 or int(input_ids.max()) >= size):
            raise ValueError(
                f"`input_ids` must lie in 0..{size - 1}, got {int(input_ids.min())}..{int(input_ids.max())}; "
                "encode the text with `story_language.tokenizer()`."
            )
        first = input_ids[:, 0]
        wrong = first[(first != BOS_ID) & (first != MASK_ID)]
        if wrong.numel():
            raise ValueError(
                f"`input_ids` must start with <s> ({BOS_ID}) in every row, got {int(wrong[0])}; prepend it."
            )
        return input_ids.long()
