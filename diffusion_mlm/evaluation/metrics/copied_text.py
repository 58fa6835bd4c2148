"""What texts have word for word from the training text, as a metric of the evaluate library."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from diffusion_mlm.evaluation.longest_copy import copy_figures, longest_copies
from diffusion_mlm.evaluation.metrics import require_known_options

_DESCRIPTION = "The longest runs of characters that generated texts share with the training text."

_INPUTS = """
Args:
    predictions (`list[str]`): generated texts.

Settings, at construction or in `evaluate.load`:
    training_texts (sequence of `str`): what the generator was trained on, such as a column of a data set.

Returns:
    `dict`: longest_copy_characters (the greatest of all texts), copy_share (of texts that share 50 characters or
    more), copied_characters (of each text).

Example:
    >>> from diffusion_mlm.evaluation.metrics.copied_text import CopiedText
    >>> copied = CopiedText(training_texts=["the cat sat", "on the mat"], keep_in_memory=True)
    >>> copied.compute(predictions=["a cat sat here", "dig"])
    {'longest_copy_characters': 8, 'copy_share': 0.0, 'copied_characters': [8, 0]}
"""


class CopiedText(evaluate.Metric):
    __doc__ = _DESCRIPTION + "\n" + _INPUTS

    def __init__(self, config_name: str | None = None, *, training_texts: Sequence[str], **options: Any) -> None:
        require_known_options("CopiedText", options)
        super().__init__(config_name, **options)
        self.training_texts = training_texts

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict[str, Any]:
        copies = longest_copies(predictions, self.training_texts)
        return {**copy_figures(copies), "copied_characters": copies}
