"""`EmbeddingDiffusionTrainer`: `DiffusionTrainer` with Gaussian noise in place of masks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, has_length

from ..corruption import CorruptedBatch, ForwardProcess, prefix_lengths
from ..evaluation.likelihood import RowBounds
from ..modeling import unwrap
from ..objectives import token_negative_log_likelihood
from ..randomness import fold_in, uniform
from ..token_weights import token_counts
from ..trainer import DiffusionTrainer
from .likelihood import SELF_CONDITION_STREAM, row_noise
from .modeling import EmbeddingDiffusionModel
from .monitors import embedding_figures
from .noise import staggered_times
from .noise_warp import NoiseWarp


class EmbeddingDiffusionTrainer(DiffusionTrainer):
    """Trains an `EmbeddingDiffusionModel` with the guarantees of `DiffusionTrainer`.

    * Noise levels are stratified over the global batch and noise is drawn on the device, both keyed as masks are:
      workers, accumulation steps, processes, evaluation and resuming change nothing.
    * The prefix (`prefix_length`) is given: clean embeddings, no loss.
    * The loss of a row is the mean over its noised places: cross-entropy in nats, or with the model's objective
      eps_mse the squared error of the noise. It is logged by diffusion time as `loss_noise_time_0.1`, ...
    * With the noise schedule `warped` the model's own schedule follows what it has learnt (`NoiseWarp`), anew in each
      step.
    * `evaluate` reports the likelihood bound (`gaussian_bound_of_rows`) as `eval_loss`, the cross-entropy by diffusion
      time, and the distances of the embeddings.
    * The unigram law is counted at the start, unless the training set streams or the model knows one.

    Raises:
        ValueError: an argument says how to mask: there are no masks here; or the model is of another kind.
    """

    _bucket_name = "loss_noise_time_"
    _warp: NoiseWarp | None = None

    def __init__(self, model: nn.Module, args: Any, **kwargs: Any) -> None:
        if not isinstance(unwrap(model), EmbeddingDiffusionModel):
            raise ValueError(f"`model` must be an EmbeddingDiffusionModel, not {type(unwrap(model)).__name__}.")
        _require_no_masking(args)
        super().__init__(model, args, **kwargs)
        dataset = self.train_dataset
        if dataset is not None and has_length(dataset) and not self._gaussian.knows_unigram:
            counts = token_counts(dataset, self._gaussian.config.vocab_size)
            counts[self._forbidden] = 0
            self._gaussian.take_unigram(counts)

    @property
    def _gaussian(self) -> EmbeddingDiffusionModel:
        return unwrap(self.model)  # type: ignore[return-value]  # checked at the start

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        is_warped = self._gaussian.config.noise_schedule == "warped"
        self._warp = NoiseWarp(self._gaussian.noise_knots) if is_warped else None
        return super()._prepare_for_training(*args, **kwargs)

    def _learn_rates(self) -> None:
        if self._warp is None:
            return
        self._warp.update(lambda local: self.accelerator.reduce(local.to(self.args.device), "sum"))
        knots = self._warp.knots()
        if knots is not None:
            self._gaussian.noise_knots.copy_(knots)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As there; the schedule ends with what the last step has shown, as in a checkpoint of that step."""
        output = super().train(*args, **kwargs)
        if self.state.best_model_checkpoint is None or not self.args.load_best_model_at_end:
            self._learn_rates()
        return output

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._learn_rates()  # the model that is saved has the schedule
        super()._save_checkpoint(*args, **kwargs)

    def _run_state(self) -> dict[str, Any]:
        state = super()._run_state()
        return state if self._warp is None else {**state, "noise_schedule": self._warp}

    def _look_at_model(self) -> None:
        """Nothing to find out: the logits are wanted wherever there is noise, which is nearly everywhere."""

    def _corrupt(self, batch: dict[str, Any], keys: Tensor, t: Tensor) -> CorruptedBatch:
        maskable = batch.pop("labels").to(keys.device).ne(-100)
        input_ids, attention_mask = (batch[name].to(keys.device) for name in ("input_ids", "attention_mask"))
        input_ids, batch["attention_mask"], maskable = self.data_collator.cut(
            input_ids, attention_mask, maskable, keys
        )
        prefix = prefix_lengths(self._process.prefix_length, maskable, keys, self._process.no_prefix_share)
        is_noised = maskable & (maskable.cumsum(-1) > prefix[:, None])
        config = self._gaussian.config
        corrupted = CorruptedBatch(
            input_ids=input_ids,
            targets=input_ids,
            is_masked=is_noised,
            maskable=is_noised,
            mask_rate=t,
            weight=torch.ones_like(t),
        )
        self.data_collator.report_unmaskable(corrupted)
        batch["input_ids"] = input_ids
        times = staggered_times(t, is_noised, keys, config.stagger or 0.0)
        batch["log_snr"] = self._gaussian.schedule.log_snr(times)
        batch["noise"] = row_noise(keys, input_ids.shape[1], config.embedding_dim)
        batch["self_condition"] = uniform(fold_in(keys, SELF_CONDITION_STREAM), 1)[:, 0] < (
            config.self_conditioning or 0.0
        )
        return corrupted

    def _score(
        self, model: nn.Module, inputs: dict[str, Any], corrupted: CorruptedBatch, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        output = model(**inputs, is_noised=corrupted.is_masked)
        if self._gaussian.config.objective == "eps_mse":
            return output.eps[rows], (output.eps[rows] - inputs["noise"][rows]).square().mean(-1)
        logits, forbidden = output.logits[rows], self._forbidden.to(output.logits.device)
        nats = token_negative_log_likelihood(logits, corrupted.targets[rows], forbidden)
        if self._warp is not None:
            self._warp.collect(inputs["log_snr"][rows], nats)
        return logits, nats

    def _bound_of_batch(self, model: nn.Module, batch: dict[str, Tensor]) -> RowBounds:
        return self._gaussian.bound_of_rows(
            batch["input_ids"],
            batch["attention_mask"],
            batch["labels"].ne(-100),
            end_id=self._end_id if self._generates_end else -1,
            forbidden_ids=self._forbidden.to(batch["input_ids"].device),
            draws=self.args.eval_draws,
            seed=self.args.seed,
        )

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As there, of the bound of Gaussian diffusion, and `embedding_figures`."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        figures = embedding_figures(self._gaussian.clean_embeddings())
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        return output


def _require_no_masking(args: Any) -> None:
    usual = ForwardProcess(mask_id=0)
    for name, unmoved in (
        ("schedule", "linear"),
        ("masking", usual.masking),
        ("span_length", 1.0),
        ("rate_distribution", "uniform"),
        ("token_weights", None),
    ):
        if getattr(args, name) != unmoved:
            raise ValueError(
                f"`{name}` is {getattr(args, name)!r}, which says how to mask, but Gaussian diffusion has no masks: "
                f"leave it out."
            )
