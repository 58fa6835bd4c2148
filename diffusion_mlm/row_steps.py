"""Steps of single rows: a callback is asked about each text of a batch by itself, as if there were no other."""

from collections.abc import Callable

import torch
from torch import Tensor

from .denoising_step import DenoisingStep

# DenoisingStep of one text, tensors (1, L) -> None to go on, a canvas (1, L) to go on with, or "finish"
OnTextStep = Callable[[DenoisingStep], "Tensor | str | None"]


class RowSteps:
    """An `on_step` of `denoise` that asks another one row by row, in the order of the rows.

    Args:
        on_step (`Callable`): gets what the loop would show it of the row alone, see `step_of_row`.
        lengths (`list[int]`): positions of each row, without what stands behind a shorter one.
    """

    def __init__(self, on_step: OnTextStep, lengths: list[int]) -> None:
        self.on_step, self.lengths = on_step, lengths
        self.num_forwards = [0] * len(lengths)

    def __call__(self, step: DenoisingStep) -> tuple[Tensor, Tensor]:
        canvas, finish = step.canvas.clone(), torch.zeros(len(step.canvas), dtype=torch.bool)
        before, self.num_forwards = self.num_forwards, step.num_forwards.tolist()
        for row, length in enumerate(self.lengths):
            if self.num_forwards[row] == before[row]:  # this step was none of the row
                continue
            answer = self.on_step(step_of_row(step, row, length))
            if isinstance(answer, str) and answer == "finish":
                finish[row] = True
            elif isinstance(answer, Tensor) and answer.shape == (1, length) and not answer.is_floating_point():
                canvas[row, :length] = answer[0]
            elif answer is not None:
                shown = f"{answer.dtype} {tuple(answer.shape)}" if isinstance(answer, Tensor) else repr(answer)
                raise ValueError(
                    f"`on_step` must return None, token ids shaped like the canvas (1, {length}), or 'finish', got "
                    f"{shown}."
                )
        return canvas, finish


def step_of_row(step: DenoisingStep, row: int, length: int) -> DenoisingStep:
    """The step of one row, tensors of shape `(1, length)`, numbered by the forwards of that row."""
    return DenoisingStep(
        index=int(step.num_forwards[row]) - 1,
        canvas=step.canvas[row : row + 1, :length].clone(),
        revealed=step.revealed[row : row + 1, :length],
        remasked=step.remasked[row : row + 1, :length],
        confidence=step.confidence[row : row + 1, :length],
        is_masked=step.is_masked[row : row + 1, :length],
        num_forwards=step.num_forwards[row : row + 1],
    )
