"""Generated texts beside real ones, every figure of both, as a metric of the evaluate library."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from diffusion_mlm.evaluation.judge import Judge
from diffusion_mlm.evaluation.metrics import require_known_options
from diffusion_mlm.evaluation.sample_quality import sample_quality
from diffusion_mlm.evaluation.words import WORD_PATTERN

_DESCRIPTION = "Perplexity under an outside model, entropy, diversity and copies of generated texts, and of real ones."

_INPUTS = """
Args:
    predictions (`list[str]`): generated texts, each up to its first end.
    references (`list[str]`): as many held-out real texts, at least as long; they are cut to the lengths of the others.
    finished (`list[bool]`, *optional*): whether each generated text ended by itself; ends are scored too then.

Settings, at construction or in `evaluate.load`, all optional:
    judge (`Judge` or `str`): a causal language model, a directory or a Hub id.
    training_texts (sequence of `str`): what the generator was trained on, to look for copies.
    mauve (`bool`): whether to compute MAUVE from the judge's features; needs the extra `mauve`.
    word_pattern (`str`): regular expression for a word.

Returns:
    `dict`: the figures of the generated texts by the names of `TextFigures`; those of the real ones by the same names
    behind `real_`; and `warnings`, a list of sentences.

Example:
    >>> from diffusion_mlm.evaluation.metrics.sample_quality import SampleQuality
    >>> quality = SampleQuality(keep_in_memory=True)
    >>> found = quality.compute(predictions=["the cat"] * 2, references=["once upon a time", "the end of it"])
    >>> found["self_bleu_4"], found["real_num_duplicates"], len(found["warnings"])
    (1.0, 0, 2)
"""


class SampleQuality(evaluate.Metric):
    __doc__ = _DESCRIPTION + "\n" + _INPUTS

    def __init__(
        self,
        config_name: str | None = None,
        *,
        judge: Judge | str | None = None,
        training_texts: Sequence[str] | None = None,
        mauve: bool = False,
        word_pattern: str = WORD_PATTERN,
        **options: Any,
    ) -> None:
        require_known_options("SampleQuality", options)
        super().__init__(config_name, **options)
        self.settings: dict[str, Any] = {
            "judge": Judge.from_pretrained(judge) if isinstance(judge, str) else judge,
            "training_texts": training_texts,
            "mauve": mauve,
            "word_pattern": word_pattern,
        }

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self, predictions: list[str], references: list[str], finished: Sequence[bool] | None = None
    ) -> dict[str, Any]:
        report = sample_quality(predictions, reference_texts=references, finished=finished, **self.settings)
        real = {f"real_{name}": value for name, value in report.real.to_dict().items()}
        return {**report.generated.to_dict(), **real, "warnings": list(report.warnings)}
