"""Remasking: which revealed positions a step sends back to mask, so that the model can revise them.

With r positions remasked a step reveals r more of those that were masked when it began, so remasking changes which
positions are visible after a step, never how many. What is visible after step k is planned: n_k of L positions, a
share alpha that rises from 0 to 1. In the notation of Wang et al. 2025 (ReMDM, arXiv:2503.00307, equation 7) a step
goes from alpha_t to alpha_s and remasks each visible position with probability

    sigma <= sigma_max = min(1, (1 - alpha_s) / alpha_t),

for which the marginals stay those of the plan. sigma_max is 0 at the last step, so every rule ends by itself.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .randomness import uniform
from .schedules import Schedule, get_schedule, unmask_counts, unmask_counts_with_remasking
from .unmasking import take_highest

REMASKS = ("none", "renoise", "low_confidence", "remdm_cap", "remdm_rescale", "remdm_conf", "remdm_loop")

_DEFAULT_ETA = {"remdm_cap": 0.04, "remdm_rescale": 0.015, "remdm_conf": 1.0, "remdm_loop": 0.02}


@dataclass(frozen=True)
class Remasking:
    """Which revealed positions return to mask.

    | rule | sigma, or what stays | source |
    |---|---|---|
    | `none` | 0 | |
    | `renoise` | n_k positions, uniformly random among all that are generated, stay: sigma = 1 - alpha_s | |
    | `low_confidence` | a token is drawn everywhere; the n_k most confident stay | P2, arXiv:2502.03540 |
    | `remdm_cap` | min(eta, sigma_max) | ReMDM |
    | `remdm_rescale` | eta sigma_max | ReMDM |
    | `remdm_conf` | eta sigma_max softmax(-confidence when revealed), over the visible tokens | ReMDM |
    | `remdm_loop` | eta between the times `t_on` and `t_off`, where `alpha_on` stays visible; else 0 | ReMDM |

    `low_confidence` draws tokens before it chooses places, a hidden low temperature (see `denoising`).

    Args:
        rule (`str`): one of the above.
        eta (`float`, *optional*): strength in [0, 1] of the remdm rules; by default 0.04 for `remdm_cap`, 0.015 for
            `remdm_rescale`, 1 for `remdm_conf`, 0.02 for `remdm_loop`.
        t_on, t_off, alpha_on (`float`): of `remdm_loop`, with 0 < t_off < t_on < 1 and 0 < alpha_on < 1.

    Raises:
        ValueError: at construction, if a value is impossible.
    """

    rule: str = "none"
    eta: float | None = None
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def __post_init__(self) -> None:
        if self.rule not in REMASKS:
            raise ValueError(f"`remask` must be one of {', '.join(REMASKS)}, got {self.rule!r}.")
        if self.eta is not None and not (_is_number(self.eta) and 0 <= self.eta <= 1):
            raise ValueError(f"`remask_eta` must lie in [0, 1], got {self.eta!r}.")
        if not (_is_number(self.t_on) and _is_number(self.t_off) and 0 < self.t_off < self.t_on < 1):
            raise ValueError(
                f"`remask_t_off` and `remask_t_on` must satisfy 0 < t_off < t_on < 1, got {self.t_off!r} and "
                f"{self.t_on!r}."
            )
        if not (_is_number(self.alpha_on) and 0 < self.alpha_on < 1):
            raise ValueError(f"`remask_alpha_on` must lie between 0 and 1, got {self.alpha_on!r}.")
        if self.rule == "remdm_loop" and self.strength > (1 - self.alpha_on) / self.alpha_on:
            raise ValueError(
                f"`remask_eta` of `remdm_loop` must be at most (1 - alpha_on) / alpha_on = "
                f"{(1 - self.alpha_on) / self.alpha_on:.3g}, got {self.strength!r}."
            )

    @property
    def strength(self) -> float:
        """`eta`, or the rule's own."""
        return _DEFAULT_ETA.get(self.rule, 0.0) if self.eta is None else float(self.eta)

    @property
    def revises(self) -> bool:
        """Whether anything can be remasked: then more steps than positions make sense, else they change nothing."""
        return self.rule in ("renoise", "low_confidence") or (self.rule.startswith("remdm") and self.strength > 0)

    def counts(self, schedule: str | Schedule, num_masked: int, steps: int) -> list[int]:
        """By how much the number of visible positions grows in each step; it sums to `num_masked`.

        Without remasking min(steps, num_masked) counts of at least 1, see `schedules.unmask_counts`; with it exactly
        `steps`, some of which may be 0.

        Raises:
            ValueError: see `schedules.unmask_counts`.
        """
        if not self.revises:
            return unmask_counts(schedule, num_masked, steps)
        if self.rule != "remdm_loop":
            return unmask_counts_with_remasking(schedule, num_masked, steps)
        unmask_counts(schedule, num_masked, steps)  # refuses what is impossible
        t = torch.arange(steps - 1, -1, -1, dtype=torch.float64) / steps  # after each step
        mask_rate = get_schedule(schedule).mask_rate
        rising = self.alpha_on * (1 - mask_rate(((t - self.t_on) / (1 - self.t_on)).clamp(0, 1)))
        closing = (1 - self.alpha_on) * (1 - mask_rate((t / self.t_off).clamp(0, 1)))
        visible = torch.round(num_masked * (rising + closing)).long()
        return torch.diff(visible, prepend=torch.zeros(1, dtype=torch.int64)).tolist()

    def probability(self, visible_before: Tensor, visible_after: Tensor, total: Tensor, t: Tensor) -> Tensor:
        """sigma of the remdm rules, `torch.Tensor` of shape `(batch,)`, float64.

        Args:
            visible_before, visible_after (`torch.Tensor` of shape `(batch,)`): visible generated positions before the
                step, and planned after it; total (`torch.Tensor` of shape `(batch,)`): generated positions.
            t (`torch.Tensor` of shape `(batch,)`): time after the step, 1 - k / K.
        """
        hidden, visible = (total - visible_after).double(), visible_before.double()
        largest = (hidden / visible.clamp(min=1)).clamp(max=1)
        if self.rule == "remdm_cap":
            return largest.clamp(max=self.strength)
        if self.rule == "remdm_loop":
            return largest.clamp(max=self.strength) * ((t >= self.t_off) & (t < self.t_on))
        return largest * self.strength

    def select(
        self,
        to_fill: Tensor,
        is_masked: Tensor,
        num_visible: Tensor,
        confidence: Tensor,
        t: Tensor,
        keys: Tensor,
    ) -> Tensor:
        """Visible generated positions that this step sends back to mask, before the model is asked.

        Never more than stay hidden after the step, so that enough masked positions are left to be revealed instead.
        `low_confidence`, which needs the model's answer, selects nothing here.

        Args:
            to_fill, is_masked (`torch.Tensor` of shape `(batch, length)`, bool): positions that are generated, and
                those of them that are masked now.
            num_visible (`torch.Tensor` of shape `(batch,)`, int64): how many shall be visible after the step.
            confidence (`torch.Tensor` of shape `(batch, length)`): probability of each token when it was revealed.
            t (`torch.Tensor` of shape `(batch,)`): time after the step.
            keys (`torch.Tensor` of shape `(batch,)`, int64): one key per row.

        Returns:
            `torch.Tensor` of shape `(batch, length)`, bool: a part of `to_fill & ~is_masked`.
        """
        visible = to_fill & ~is_masked
        if not self.revises or self.rule == "low_confidence":
            return torch.zeros_like(to_fill)
        if self.rule == "renoise":
            return visible & ~take_highest(uniform(keys, to_fill.shape[-1]), to_fill, num_visible)
        total = to_fill.sum(-1)
        sigma = self.probability(visible.sum(-1), num_visible, total, t).unsqueeze(-1)
        if self.rule == "remdm_conf":
            sigma = sigma * torch.softmax((-confidence.double()).masked_fill(~visible, -math.inf), -1).nan_to_num(0.0)
        u = uniform(keys, to_fill.shape[-1])
        wanted = visible & (u < sigma)
        return take_highest(-u, wanted, torch.minimum(wanted.sum(-1), total - num_visible))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
