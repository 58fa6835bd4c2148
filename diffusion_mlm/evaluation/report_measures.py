"""Measures checkpoints, masked or causal, on the same texts, for a report."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from .. import story_language
from ..causal_peer import is_causal
from ..generation import generate_each
from ..modeling import unwrap
from .calibration import evaluate_calibration
from .causal_likelihood import evaluate_causal_texts
from .judge import Judge
from .likelihood_report import LikelihoodReport
from .report import CheckpointReport, EvaluationReport
from .report_likelihood import figures_by_forwards, likelihood_figures, paired_difference
from .report_samples import SampleMeasures, evenly_cut
from .row_predictor import writes_ends
from .text_likelihood import default_row_length, evaluate_texts, require_row_length
from .written_texts import WrittenTexts, causal_prefix, write_by_diffusion, write_causally

Progress = Callable[[str, int, int], None]  # what is being done, how far, and of how much
Model = tuple[nn.Module, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class ReportOptions:
    """How `evaluation_report` measures; those of `evaluate_texts`, and some for samples.

    Attributes:
        packing (`str`, *optional*): `one_per_row` by default if a model was trained to write ends, else `packed`.
        max_length (`int`, *optional*): tokens of a row; by default the fewest of the models' defaults.
        estimators (sequence of `str`): beside the bound and that of `steps`; `chain` and so on, for masked models.
        num_samples (`int`): texts of each checkpoint, and for each number of `steps`; 0 is none.
        prefix (`str`): begins each of them.
        stories (`bool`): the texts are stories of the built-in language.
    """

    packing: str | None = None
    max_length: int | None = None
    separate_texts: bool = True
    estimators: Sequence[str] = ()
    draws: int = 32
    steps: Sequence[int] = (8, 16, 32, 64)
    schedule: str = "linear"
    order: str = "left_to_right"
    orders: int = 8
    batch_size: int = 32
    seed: int = 0
    num_samples: int = 0
    prefix: str = ""
    stories: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.num_samples, bool) or not isinstance(self.num_samples, int) or self.num_samples < 0:
            raise ValueError(f"`num_samples` must be a whole number of at least 0 (none), not {self.num_samples!r}.")


def evaluation_report(
    checkpoints: Mapping[str, Model],
    texts: Sequence[str],
    options: ReportOptions | None = None,
    *,
    judge: Judge | None = None,
    training_texts: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Measures checkpoints on the same texts: likelihood, loss by mask rate, calibration, samples, and their price.

    A checkpoint's figures do not depend on the others, but for the length of rows and whether ends are scored: these
    are common to all.

    Args:
        checkpoints (mapping of pairs): model and tokenizer of each, by name; causal models among them.
        texts (sequence of `str`): held-out, not blank.
        judge (`Judge`, *optional*), training_texts (sequence of `str`, *optional*): of samples, see `sample_quality`.
        progress (callable, *optional*): called with what is being done, how far, and of how much.

    Raises:
        ValueError: an argument is impossible, or there is too little text to compare samples with.
        NonFiniteLossError: a model answers NaN, or gives a token of the texts probability 0.

    Example:
        >>> from diffusion_mlm import story_language
        >>> exact, tokenizer = story_language.ExactDenoiser(), story_language.tokenizer()
        >>> options = ReportOptions(draws=2, steps=[2])
        >>> report = evaluation_report({"exact": (exact, tokenizer)}, story_language.sample(2, seed=0), options)
        >>> [point["forwards"] for point in report.checkpoints[0].by_forwards]
        [2, 71.0]
    """
    if not checkpoints:
        raise ValueError("`checkpoints` is empty: name at least one model.")
    return _Report(checkpoints, texts, options or ReportOptions(), judge, training_texts, progress).make()


class _Report:
    """What the measurements of all checkpoints have in common."""

    def __init__(
        self,
        checkpoints: Mapping[str, Model],
        texts: Sequence[str],
        options: ReportOptions,
        judge: Judge | None,
        training_texts: Sequence[str] | None,
        progress: Progress | None,
    ) -> None:
        self.checkpoints, self.texts, self.options, self.progress = checkpoints, list(texts), options, progress
        self.causal = {name for name, (model, _) in checkpoints.items() if is_causal(_config(model))}
        ends = any(writes_ends(model) for name, (model, _) in checkpoints.items() if name not in self.causal)
        self.packing = options.packing or ("one_per_row" if ends else "packed")
        self.scores_end = ends and self.packing == "one_per_row"  # of causal models, who have no say in it
        self.max_length = options.max_length or min(default_row_length(*of) for of in checkpoints.values())
        self.exact = self._exact_value()
        self.samples: SampleMeasures | None = None
        for model, tokenizer in checkpoints.values():
            require_row_length(model, tokenizer, self.max_length)
        if options.num_samples:
            self._require_writable()
            stories = options.stories and self.packing == "one_per_row"
            training = None if training_texts is None else list(training_texts)
            real = self._real_texts()
            self.samples = SampleMeasures(
                options.num_samples, real, judge, training, stories, self.scores_end, options.seed
            )

    def _require_writable(self) -> None:
        """Finds a prefix or a number of steps that is impossible for one model before another is measured."""
        for name, (model, tokenizer) in self.checkpoints.items():
            if name in self.causal:
                causal_prefix(model, tokenizer, self.options.prefix, self.max_length, self.scores_end)
                continue
            for steps in (None, *self.options.steps):
                given: dict[str, Any] = {} if steps is None else {"steps": steps}
                generate_each(model, tokenizer, self.options.prefix, seed=0, **given)  # checks, and writes nothing yet

    def _real_texts(self) -> list[str]:
        number = self.options.num_samples
        if self.packing != "one_per_row":
            return evenly_cut(self.texts, number)
        if len(self.texts) < number:
            raise ValueError(
                f"`num_samples` is {number}, and there are {len(self.texts)} held-out texts to compare samples with: "
                f"name more text, or ask for fewer samples."
            )
        return self.texts

    def make(self) -> EvaluationReport:
        reports: list[CheckpointReport] = []
        first: LikelihoodReport | None = None
        for name, (model, tokenizer) in self.checkpoints.items():
            start = time.perf_counter()
            likelihood, calibration = self._measure(name, model, tokenizer)
            seconds = time.perf_counter() - start
            difference = None if first is None else paired_difference(first, likelihood, self.texts)
            first = likelihood if first is None else first
            reports.append(
                CheckpointReport(
                    name=name,
                    kind="causal" if name in self.causal else "masked",
                    parameters=sum(parameter.numel() for parameter in model.parameters()),
                    likelihood=likelihood_figures(likelihood, name in self.causal),
                    difference=difference,
                    loss_by_mask_rate=[list(point) for point in likelihood.loss_by_mask_rate],
                    calibration=calibration,
                    by_forwards=figures_by_forwards(likelihood),
                    samples=self._sample(name, model, tokenizer),
                    seconds=seconds,
                )
            )
        settings = asdict(self.options) | {
            "packing": self.packing,
            "max_length": self.max_length,
            "estimators": list(self.options.estimators),
            "steps": list(self.options.steps),
            "num_texts": len(self.texts),
            "confidence": first.settings["confidence"] if first else None,
            "interval_over": first.settings["interval_over"] if first else None,
        }
        return EvaluationReport(
            reports, settings, self._of_oracle(), _device_of(next(iter(self.checkpoints.values()))[0])
        )

    def _measure(
        self, name: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[LikelihoodReport, list[dict[str, Any]]]:
        options = self.options
        common: dict[str, Any] = {
            "packing": self.packing,
            "max_length": self.max_length,
            "separate_texts": options.separate_texts,
            "batch_size": options.batch_size,
        }
        if name in self.causal:
            ends = self.scores_end
            likelihood = evaluate_causal_texts(
                model, tokenizer, self.texts, scores_end=ends, progress=self._tell(name, "likelihood"), **common
            )
            return likelihood, []
        common["seed"] = options.seed
        likelihood = evaluate_texts(
            model,
            tokenizer,
            self.texts,
            estimators=sorted({*options.estimators, *(["steps"] if options.steps else [])}),
            draws=options.draws,
            steps=options.steps,
            schedule=options.schedule,
            order=options.order,
            orders=options.orders,
            progress=self._tell(name, "likelihood"),
            **common,
        )
        of_rates = evaluate_calibration(
            model, tokenizer, self.texts, progress=self._tell(name, "calibration"), **common
        )
        return likelihood, [figures.to_dict() for figures in of_rates]

    def _sample(self, name: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
        if self.samples is None:
            return None
        options = self.options
        common: dict[str, Any] = {
            "prefix": options.prefix,
            "batch_size": options.batch_size,
            "seed": options.seed,
        }

        def by_diffusion(steps: int | None) -> WrittenTexts:
            what = "samples" if steps is None else f"samples in {steps} steps"
            number = options.num_samples
            return write_by_diffusion(model, tokenizer, number, steps=steps, progress=self._tell(name, what), **common)

        def causally(_: int | None) -> WrittenTexts:
            rows: dict[str, Any] = {"max_length": self.max_length, "may_end": self.scores_end}
            number = options.num_samples
            return write_causally(model, tokenizer, number, progress=self._tell(name, "samples"), **rows, **common)

        if name in self.causal:
            return self.samples.of_checkpoint(causally, ())
        fewest = min(options.steps, default=None)
        write_by_diffusion(model, tokenizer, 1, steps=fewest, **common)  # prepares the kernels, so that times compare
        return self.samples.of_checkpoint(by_diffusion, options.steps)

    def _exact_value(self) -> dict[str, Any] | None:
        """What the built-in language says of its stories."""
        if not self.options.stories:
            return None
        log_p = story_language.log_prob(self.texts)
        if not log_p.isfinite().all():
            raise ValueError("`stories` is True, but the built-in language does not know all of the texts.")
        tokens = sum(len(story_language.automaton.split_text(text)) + 1 for text in self.texts)
        return {"nats_per_token": -float(log_p.sum()) / tokens, "num_tokens": tokens}

    def _of_oracle(self) -> dict[str, Any] | None:
        """The exact value, and with it the loss of the denoiser that no model can beat, if rows hold whole stories."""
        if self.exact is None or not self.scores_end or self.max_length < story_language.BLOCK_LENGTH:
            return self.exact
        oracle = evaluate_texts(
            story_language.ExactDenoiser(),
            story_language.tokenizer(),
            self.texts,
            packing=self.packing,
            max_length=self.max_length,
            draws=self.options.draws,
            seed=self.options.seed,
            progress=self._tell("exact denoiser", "loss by mask rate"),
        )
        return self.exact | {"loss_by_mask_rate": [list(point) for point in oracle.loss_by_mask_rate]}

    def _tell(self, name: str, what: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda done, planned: progress(f"{name}: {what}", done, planned)


def _config(model: nn.Module) -> Any:
    return getattr(unwrap(model), "config", None)


def _device_of(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device.type == "cuda":
        return torch.cuda.get_device_name(parameter.device)
    return f"cpu, {torch.get_num_threads()} threads"
