"""How likely a causal language model finds texts, as a metric of the evaluate library."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from diffusion_mlm.evaluation.judge import Judge
from diffusion_mlm.evaluation.metrics import require_known_options

_DESCRIPTION = (
    "Perplexity and bits per character of texts under an outside causal language model (generative perplexity)."
)

_INPUTS = """
Args:
    predictions (`list[str]`): generated texts, each up to its first end.
    finished (`list[bool]`, *optional*): whether each ended by itself; the end is scored too then.

Settings, at construction or in `evaluate.load`:
    judge (`Judge` or `str`): a causal language model, a directory or a Hub id.

Returns:
    `dict`: judge_perplexity, judge_nats_per_token and its standard_error (all tokens of all texts together),
    judge_bits_per_character (which does not depend on the judge's tokenizer), judge_end_nats, judge_unknown_share.
    None where there is nothing to measure. Text that repeats itself has a low perplexity: look at the entropy too.

Example:
    >>> from diffusion_mlm.evaluation.metrics.judge_perplexity import JudgePerplexity
    >>> perplexity = JudgePerplexity(judge="openai-community/gpt2")  # doctest: +SKIP
    >>> perplexity.compute(predictions=["The cat sat on the mat."])["judge_bits_per_character"]  # doctest: +SKIP
"""


class JudgePerplexity(evaluate.Metric):
    __doc__ = _DESCRIPTION + "\n" + _INPUTS

    def __init__(self, config_name: str | None = None, *, judge: Judge | str, **options: Any) -> None:
        require_known_options("JudgePerplexity", options)
        super().__init__(config_name, **options)
        self.judge = Judge.from_pretrained(judge) if isinstance(judge, str) else judge

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], finished: Sequence[bool] | None = None) -> dict[str, Any]:
        return self.judge.score(predictions, finished).figures()
