"""What an evaluation of likelihood reports: estimates with intervals, and what they are about."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .text_rows import TextRows


@dataclass(frozen=True)
class Estimate:
    """One estimate of the likelihood of all texts.

    Attributes:
        nats_per_token (`float`): of a text's `</s>`, if it is scored, one counts as a token.
        perplexity (`float`): `exp(nats_per_token)`; comparable within one tokenizer and one packing only.
        bits_per_byte (`float`, *optional*): of the texts' UTF-8 bytes; None if these cannot be counted.
        standard_error (`float`, *optional*), confidence_interval (*optional*): of `nats_per_token`, over texts
            (packed: over rows); None for a single one.
        settings (`dict`): of the estimator.
        nats (`torch.Tensor`, *optional*): of each text (packed: of each row) in order, float64; with those of another
            model of the same rows it makes a comparison in pairs, see `interval.ratio_estimate`.
        tokens (`torch.Tensor`, *optional*): scored tokens of each, int64.
    """

    nats_per_token: float
    perplexity: float
    bits_per_byte: float | None
    standard_error: float | None
    confidence_interval: tuple[float, float] | None
    settings: dict[str, Any] = field(default_factory=dict)
    nats: Tensor | None = field(default=None, repr=False, compare=False)
    tokens: Tensor | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, the settings in line with the figures; without those of single texts."""
        figures = {name: value for name, value in vars(self).items() if name not in ("settings", "nats", "tokens")}
        return {**self.settings, **figures}


@dataclass(frozen=True)
class LikelihoodReport:
    """What `evaluate_texts` returns.

    Attributes:
        bound (`Estimate`): the negative ELBO: -log p of the random-order sampler is no larger.
        loss_by_mask_rate (`list`): (upper end of a tenth of the mask rates, nats per masked token).
        others (`dict[str, Estimate | list[Estimate]]`): by estimator; `steps` has one for each number of steps.
        curve (`list`, *optional*): (mask rate, nats per masked token) of the estimator `curve`.
        rows (`TextRows`): how the texts were cut, and what was left out.
        num_tokens (`int`): scored; a run of `</s>` that fills a row counts once.
        settings (`dict`): draws, seed, packing, length of a row, whether ends are scored, what intervals are over.
    """

    bound: Estimate
    loss_by_mask_rate: list[tuple[float, float]]
    others: dict[str, Any]
    curve: list[tuple[float, float]] | None
    rows: TextRows
    num_tokens: int
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The figures as one JSON object."""
        rows = self.rows
        found: dict[str, Any] = {
            "nelbo_nats_per_token": self.bound.nats_per_token,
            "perplexity": self.bound.perplexity,
            "bits_per_byte": self.bound.bits_per_byte,
            "confidence_interval": self.bound.confidence_interval,
            "standard_error": self.bound.standard_error,
            "num_tokens": self.num_tokens,
            "num_bytes": rows.num_bytes,
            "num_texts": rows.num_texts,
            "num_rows": len(rows.rows),
            **self.settings,
            "loss_by_mask_rate": self.loss_by_mask_rate,
        }
        for name, estimates in self.others.items():
            found[name] = [of_steps.to_dict() for of_steps in estimates] if name == "steps" else estimates.to_dict()
        if self.curve is not None:
            found["curve"]["loss_by_mask_rate"] = self.curve
        found["left_out"] = {
            "unknown_tokens": rows.num_unknown,
            "unknown_bytes": rows.num_unknown_bytes,
            "separators": rows.num_separators,
            "texts_without_tokens": rows.num_without_tokens,
        }
        found["texts_in_windows"] = rows.num_split
        found["texts_altered_by_tokenizer"] = rows.num_altered
        return found
