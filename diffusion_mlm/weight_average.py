"""A running mean of the weights in training: what is evaluated and kept in the place of the last weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from .modeling import unwrap


class WeightAverage(TrainerCallback):
    """`torch.optim.swa_utils.AveragedModel` with an exponential mean, updated after every optimizer step.

    After the first step the average is the weights of that step; each later one moves it by a share `1 - decay`
    towards the new weights. So it looks back on about `1 / (1 - decay)` steps: training should be several times as
    long.

    Args:
        model (`torch.nn.Module`): the weights at the beginning; it is copied.
        decay (`float`): in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.averaged.requires_grad_(False)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.averaged.update_parameters(unwrap(model))

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """Puts the average into `model` for a while; the weights come back bit for bit."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    def _exchange(self, model: nn.Module) -> None:
        for average, weight in zip(self.averaged.module.parameters(), model.parameters(), strict=True):
            average.data, weight.data = weight.data, average.data

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrites the weights of `model` with the average; before the first step there is none."""
        if self.averaged.n_averaged > 0:
            for average, weight in zip(self.averaged.module.parameters(), model.parameters(), strict=True):
                weight.copy_(average)

    def restart(self) -> None:
        """Forgets the average: the next step begins it anew."""
        self.averaged.n_averaged.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The average by name of the weight, each tied weight once, and the number of steps in it."""
        weights = {f"weights.{name}": weight.data for name, weight in self.averaged.module.named_parameters()}
        return {**weights, "num_steps": self.averaged.n_averaged}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state_dict` gave.

        Raises:
            KeyError: a weight is missing.
        """
        for name, average in self.averaged.module.named_parameters():
            average.copy_(state[f"weights.{name}"])
        self.averaged.n_averaged.copy_(state["num_steps"])
