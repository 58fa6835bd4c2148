"""What is reported of one checkpoint or several, masked or causal, on the same texts: figures as plain values."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import __version__

FORMAT = "diffusion-mlm report 1"


@dataclass(frozen=True)
class CheckpointReport:
    """Figures of one checkpoint, as JSON has them.

    Attributes:
        name (`str`): its label in the report.
        kind (`str`): `masked` or `causal`.
        parameters (`int`)
        likelihood (`dict`): nats per token, perplexity and bits per byte with their intervals; `is_exact` tells -log p
            from a bound. `others` has the other estimators.
        difference (`dict`, *optional*): by how much nats per token and bits per byte lie above those of the first
            checkpoint, with an interval in pairs where rows or texts are the same; None for the first itself.
        loss_by_mask_rate (`list`): [upper end of a tenth of the mask rates, nats per masked token].
        calibration (`list[dict]`): see `Calibration`; the last is of all mask rates.
        by_forwards (`list[dict]`): `steps` (None: a token a step), `forwards` per row, and the likelihood of writing
            with them.
        samples (`dict`, *optional*): see `SampleMeasures.of_checkpoint`.
        seconds (`float`): that likelihood and calibration took.
    """

    name: str
    kind: str
    parameters: int
    likelihood: dict[str, Any]
    difference: dict[str, Any] | None
    loss_by_mask_rate: list[list[float]]
    calibration: list[dict[str, Any]]
    by_forwards: list[dict[str, Any]]
    samples: dict[str, Any] | None
    seconds: float


@dataclass(frozen=True)
class EvaluationReport:
    """What `evaluation_report` returns. It goes to JSON and back without loss.

    Attributes:
        checkpoints (`list[CheckpointReport]`)
        settings (`dict`): all that decides the figures, but texts and checkpoints.
        exact (`dict`, *optional*): of built-in stories: their exact `nats_per_token`, and `loss_by_mask_rate` of the
            exact denoiser.
        device (`str`), version (`str`): where, and of this package.
        source (`dict`): what is known of the `text`, the `judge` and the `training_text`, and what was `left_out`.
    """

    checkpoints: list[CheckpointReport]
    settings: dict[str, Any]
    exact: dict[str, Any] | None
    device: str
    version: str = __version__
    source: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT

    @property
    def warnings(self) -> list[str]:
        """What the figures of samples should not be taken for, with the name of the checkpoint."""
        return [f"{of.name}: {text}" for of in self.checkpoints if of.samples for text in of.samples["warnings"]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self, indent: int | None = None) -> str:
        """Strict JSON, in ASCII."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> "EvaluationReport":
        """The report that `to_json` wrote.

        Raises:
            ValueError: `text` is something else.
        """
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"`text` is no report: {FORMAT!r} does not stand in it as `format`.")
        return cls(**found | {"checkpoints": [CheckpointReport(**of) for of in found["checkpoints"]]})
