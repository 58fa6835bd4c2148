"""How varied a set of texts is, as a metric of the evaluate library."""

from typing import Any

import datasets
import evaluate

from diffusion_mlm.evaluation.diversity import diversity_figures
from diffusion_mlm.evaluation.metrics import require_known_options
from diffusion_mlm.evaluation.words import WORD_PATTERN, require_texts, split_words

_DESCRIPTION = "Entropy of words, distinct and repeated n-grams, and self-BLEU of generated texts, without references."

_INPUTS = r"""
Args:
    predictions (`list[str]`): generated texts.

Settings, at construction or in `evaluate.load`:
    word_pattern (`str`): regular expression for a word, by default `\S+`: what stands between spaces.

Returns:
    `dict`: num_texts, num_empty, num_duplicates, words_per_text, word_entropy_nats and its standard error (mean over
    texts), distinct_1, distinct_2, distinct_3 (over all texts), rep_4 (mean over texts), self_bleu_4. None where there
    is nothing to measure. All depend on the length of texts, those of all texts also on their number.

Example:
    >>> from diffusion_mlm.evaluation.metrics.text_diversity import TextDiversity
    >>> diversity = TextDiversity(keep_in_memory=True)
    >>> diversity.compute(predictions=["the cat sat", "the cat ran"])["distinct_2"]
    0.75
"""


class TextDiversity(evaluate.Metric):
    __doc__ = _DESCRIPTION + "\n" + _INPUTS

    def __init__(self, config_name: str | None = None, *, word_pattern: str = WORD_PATTERN, **options: Any) -> None:
        require_known_options("TextDiversity", options)
        super().__init__(config_name, **options)
        self.word_pattern = word_pattern

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=[
                "https://arxiv.org/abs/1510.03055",
                "https://arxiv.org/abs/1802.01886",
                "https://arxiv.org/abs/1908.04319",
            ],
        )

    def _compute(self, predictions: list[str]) -> dict[str, Any]:
        return diversity_figures(
            [split_words(text, self.word_pattern) for text in require_texts(predictions, "predictions")]
        )
