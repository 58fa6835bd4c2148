"""What one denoising step reports, and the callables that take part in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

# (canvas (B, L) int64, needed (B, L) bool) -> logits (needed.sum(), V), in the row-major order of `needed`, in any
# floating dtype. They are a tensor of their own: what may not be generated is set to -inf in it.
PredictLogits = Callable[[Tensor, Tensor], Tensor]
# (canvas (N, L) of each row of logits, logits (N, V)) -> logits (N, V): what a LogitsProcessorList is, which declares
# its arguments as the narrower LongTensor and FloatTensor, so the arguments are left open here
EditLogits = Callable[..., Tensor]
# (canvas (N, L), position (N,), logits (N, V)) -> logits (N, V), asked only where a token is about to be drawn
GuideLogits = Callable[[Tensor, Tensor, Tensor], Tensor]

# DenoisingStep -> None to go on, a canvas (batch, length) to go on with, "finish", or a canvas and which rows finish,
# (batch,) bool
OnStep = Callable[["DenoisingStep"], "Tensor | str | tuple[Tensor, Tensor] | None"]


class Constraint(Protocol):
    """What the finished text of a row must satisfy. `row` is its place in the batch that was passed to `denoise`."""

    def allowed(self, row: int, canvas: Tensor, is_masked: Tensor) -> Tensor:
        """Tokens that leave the row completable, `(is_masked.sum(), V)` bool; canvas and is_masked are `(L,)`."""

    def draw(self, row: int, canvas: Tensor, is_masked: Tensor, reveal: Tensor, logits: Tensor, u: Tensor) -> Tensor:
        """Tokens `(n,)` for the n positions `reveal` that leave the row completable together.

        `logits` `(2, n, V)`: as truncated for sampling, and, for where that leaves nothing possible, untruncated.
        """


@dataclass(frozen=True)
class DenoisingStep:
    """What one step did. Tensors are `(batch, length)` and belong to whoever receives them.

    Args:
        index (`int`): 0-based number of the step.
        canvas (`torch.Tensor`, int64): token ids after the step.
        revealed (`torch.Tensor`, bool): positions that this step unmasked.
        remasked (`torch.Tensor`, bool): positions that this step sent back to mask.
        confidence (`torch.Tensor`, float32): probability that the model, untempered and untruncated, gave the token
            standing there when it was revealed; NaN where none was.
        is_masked (`torch.Tensor`, bool): positions still to be revealed after the step.
        num_forwards (`torch.Tensor` of shape `(batch,)`, int64): forwards of the model so far on each row,
            those without the condition of guidance included.
    """

    index: int
    canvas: Tensor
    revealed: Tensor
    remasked: Tensor
    confidence: Tensor
    is_masked: Tensor
    num_forwards: Tensor
