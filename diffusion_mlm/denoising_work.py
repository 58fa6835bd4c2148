"""What one step of the loop behind `denoising.denoise` works on."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from .randomness import fold_in

# Every use of chance inside a step has a stream of its own, so that switching one on does not move the others.
TOKEN_STREAM, ORDER_STREAM, NOISE_STREAM, REMASK_STREAM = range(4)


@dataclass
class Work:
    """The A rows that one step works on, and where: tensors are `(A, ...)`."""

    index: int
    rows: Tensor
    canvas: Tensor
    masked: Tensor  # all that is masked
    fill: Tensor  # the generated positions of the block that the step works on
    num_visible: Tensor  # how many of them shall be visible after the step
    t: Tensor
    row_keys: Tensor
    is_rest: Tensor  # whether the step reveals all that is left in the row

    @cached_property
    def keys(self) -> Tensor:
        """The keys of the rows in this step; not every step has a use for them."""
        return fold_in(self.row_keys, self.index)

    @property
    def open(self) -> Tensor:
        """The masked positions of the block."""
        return self.fill & self.masked

    @property
    def visible(self) -> Tensor:
        """The revealed positions of the block."""
        return self.fill & ~self.masked
