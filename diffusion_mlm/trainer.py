"""`DiffusionTrainer`: the Trainer of transformers with the loss, the masks and the evaluation of masked diffusion."""

import copy
import dataclasses
import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from .averaging_trainer import AveragingTrainer
from .batch_fingerprint import bad_rows, name_rows, row_fingerprint, rows_of_step
from .corruption import CorruptedBatch
from .cpu_training import fast_step
from .data_collator import DataCollatorForMaskedDiffusion
from .durable_trainer import DurableTrainer
from .errors import NonFiniteLossError
from .evaluation.likelihood import NUM_BUCKETS, RowBounds, bound_of_rows
from .hub_training import PushingTrainer
from .loss_buckets import BY_MASK_RATE, LossBuckets, bucket_logs
from .modeling import end_token_id, forbidden_token_ids, logits_at, selects_rows, unwrap
from .objectives import objective_sum, objective_units, row_means, scored_positions, token_negative_log_likelihood
from .optimizers import MuonWithAdamW
from .packed_linear import unpack_linears
from .parallel_trainer import ParallelTrainer
from .randomness import fold_in, make_key
from .rate_distributions import ImportanceRates
from .run_facts import masking_words
from .sharding import all_finite
from .throughput import Throughput
from .token_weights import rare_token_weights, token_counts
from .training_args import DiffusionTrainingArguments

logger = logging.getLogger(__name__)

_CORRUPTED, _UNITS, _PLACES = "corrupted", "units", "places"


class DiffusionTrainer(ParallelTrainer, AveragingTrainer, DurableTrainer, PushingTrainer):
    """Trains any masked language model as a masked diffusion model.

    What differs from `Trainer`, beside what `ParallelTrainer` does for several processes and `DurableTrainer` for runs
    that are killed or stopped:

    * Masks are drawn on the device, keyed by (seed, "train", optimizer step, place of the row in the global batch),
      with rates stratified over the global batch. Workers, accumulation steps, processes, evaluation and resuming
      change nothing.
    * The loss of a micro-batch is its sum over units divided by the units of the global batch (see `objectives`). The
      stock loss of RoBERTa grows with the number of accumulation steps.
    * Only the logits that are scored are computed, where the model allows it, and the loss is computed in float32.
    * `evaluate` reports the likelihood bound in nats per token as `eval_loss`, with masks keyed by content.
    * With `ema_decay` a running mean of the weights is what `evaluate` looks at, in training too, and what `train`
      leaves in the model (see `averaging_trainer`).
    * Training stops with `NonFiniteLossError` when the loss, the bound or, before anything is saved, a weight or an
      average of the optimizer is NaN or infinite; the error names the rows.
    * `push_to_hub` pushes what generation needs and nothing private, see `PushingTrainer`.

    Args:
        model (`PreTrainedModel`): a masked language model.
        args (`DiffusionTrainingArguments`).
        processing_class (`PreTrainedTokenizerBase`): the tokenizer; required unless `data_collator` has it.
        data_collator (`DataCollatorForMaskedDiffusion`, *optional*): made from `args` by default.

    Raises:
        ValueError: no tokenizer or one with more tokens than the model, a collator of another kind, several devices
            without a launcher, or too little data.
    """

    # The loss is divided by the units of the whole accumulated batch here, so the Trainer must not divide again.
    loss_is_scaled_for_ga = True
    _bucket_name = BY_MASK_RATE

    def __init__(
        self,
        model: nn.Module,
        args: DiffusionTrainingArguments,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: DataCollatorForMaskedDiffusion | None = None,
        **kwargs: Any,
    ) -> None:
        tokenizer = processing_class or getattr(data_collator, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("`processing_class` must be the tokenizer: the masks and the forbidden tokens need it.")
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs, which `DataParallel` would split in a way that changes the "
                f"loss. Start with `torchrun --nproc-per-node {args.n_gpu}`, or set CUDA_VISIBLE_DEVICES to one."
            )
        if data_collator is None:
            data_collator = DataCollatorForMaskedDiffusion(
                tokenizer,
                **args.masking_settings(),
                random_length_share=args.random_length_share,
                mask_end_token=args.mask_end_token,
                seed=args.seed,
            )
        if not isinstance(data_collator, DataCollatorForMaskedDiffusion):
            raise ValueError(
                f"`data_collator` must be a DataCollatorForMaskedDiffusion, not {type(data_collator).__name__}; use "
                f"the plain `Trainer` for another one."
            )
        data_collator = copy.copy(data_collator)
        data_collator.mask = False  # clean rows: this class masks them on the device
        self._process = dataclasses.replace(data_collator.process)  # rates that are learnt are this run's own
        if isinstance(self._process.rates, ImportanceRates) and args.objective != "elbo":
            raise ValueError(f"`rate_distribution` 'importance' needs the objective elbo, not {args.objective!r}.")
        self._generates_end = data_collator.mask_end_token
        self._end_id = end_token_id(tokenizer)
        config: Any = unwrap(model).config
        vocab_size = int(config.vocab_size)
        if len(tokenizer) > vocab_size:
            raise ValueError(
                f"`processing_class` has {len(tokenizer)} tokens, but the model knows {vocab_size}. Pass the model's "
                f"own tokenizer, or call `model.resize_token_embeddings({len(tokenizer)})`."
            )
        self._forbidden = torch.tensor(forbidden_token_ids(tokenizer, self._generates_end, vocab_size))
        self._forget()
        unpack_linears(model)
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            data_collator=data_collator,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the Trainer need not count tokens: the stock loss is not used
        if args.token_weights == "rare" and self.train_dataset is not None:
            weights = rare_token_weights(token_counts(self.train_dataset, vocab_size))
            self._process = dataclasses.replace(self._process, token_weights=weights)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self._look_at_model()

    def _look_at_model(self) -> None:
        selects_rows(unwrap(self.model))

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return super()._prepare_for_training(*args, **kwargs)

    def _forget(self) -> None:
        """Nothing is left of steps that a run before, or one that ran out of memory, has made."""
        if isinstance(self._process.rates, ImportanceRates):
            self._process = dataclasses.replace(self._process)
        self._buckets = LossBuckets(self._bucket_name)
        self._first_bad_step, self._throughput = torch.tensor(-1), Throughput()

    # Data

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """Fetches the micro-batches of one optimizer step and masks them as one global batch."""
        if 0 < self.state.max_steps <= self.state.global_step:  # resumed from its last: the Trainer makes one more
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._require_rows(len(batches) == num_batches, device)
        if len(batches) < num_batches:  # the end of a stream of known length; the Trainer would add to the next step
            return [], None
        self._learn_rates()
        key = make_key(self.args.seed, "train", self.state.global_step)
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        global_batch = processes * sum(len(batch["input_ids"]) for batch in batches)
        start, units = 0, torch.zeros((), dtype=torch.float64, device=device)
        for batch in batches:
            size = len(batch["input_ids"])
            # accelerate deals micro-batches in turn: rank r holds rows r * size ... of each round.
            rows = start + rank * size + torch.arange(size, device=device)
            start += processes * size
            corrupted = self._corrupt(batch, fold_in(key, rows), self._process.times(key, rows, global_batch))
            batch[_CORRUPTED], batch[_PLACES] = corrupted, rows
            self._throughput.add(batch["attention_mask"])
            units += objective_units(self.args.objective, corrupted)
        units = self.accelerator.reduce(units, reduction="sum")
        for batch in batches:
            batch[_UNITS] = units
        return batches, None

    def _corrupt(self, batch: dict[str, Any], keys: Tensor, t: Tensor) -> CorruptedBatch:
        maskable = batch.pop("labels").to(keys.device).ne(-100)  # clean tokens where maskable, -100 elsewhere
        input_ids, attention_mask = (batch[name].to(keys.device) for name in ("input_ids", "attention_mask"))
        input_ids, batch["attention_mask"], maskable = self.data_collator.cut(
            input_ids, attention_mask, maskable, keys
        )
        corrupted = self._process(input_ids, maskable, keys, t)
        self.data_collator.report_unmaskable(corrupted)
        batch["input_ids"] = corrupted.input_ids
        if self._process.masking == "bernoulli" and getattr(unwrap(self.model), "takes_timesteps", False):
            expected = corrupted.mask_rate * corrupted.maskable.sum(-1)  # elsewhere the ids tell it exactly
            batch["timesteps"] = (expected / batch["attention_mask"].sum(-1).clamp(min=1)).float()
        return corrupted

    def _learn_rates(self) -> None:
        """Takes up the losses of the steps before, of all processes; a second time it has nothing to take."""
        if isinstance(self._process.rates, ImportanceRates):
            self._process.rates.update(lambda local: self.accelerator.reduce(local.to(self.args.device), "sum"))

    def _run_state(self) -> dict[str, Any]:
        self._learn_rates()
        rates = self._process.rates
        return {**super()._run_state(), **({"rate_distribution": rates} if isinstance(rates, ImportanceRates) else {})}

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, or Muon with AdamW for `optim="muon"`."""
        if self.args.optim == "muon" and getattr(self, "optimizer", None) is None:
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            muon = MuonWithAdamW(
                model or self.model, self.args.learning_rate, self.args.weight_decay, betas, self.args.adam_epsilon
            )
            self.optimizer = muon
            return muon
        return super().create_optimizer(model)

    def run_facts(self) -> dict[str, Any]:
        """As in `DurableTrainer`, and how the rows are masked, which a collator may say otherwise than `args`."""
        multiple = self.data_collator.pad_to_multiple_of
        masking = f"{masking_words(self._process)}, end token {self._generates_end}, multiple of {multiple}"
        if self.data_collator.random_length_share != self.args.random_length_share:
            masking += f", random length share {self.data_collator.random_length_share}"
        return {**super().run_facts(), "masking process": masking}

    # Loss

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """That of the Trainer: loss and gradients of a micro-batch. `model` is the one that may be compiled."""
        with fast_step(model):
            return super().training_step(model, *args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of this micro-batch as its share of the global batch's loss.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite (checked here on CPU, at each logging step on a GPU).
        """
        corrupted: CorruptedBatch = inputs.pop(_CORRUPTED)
        units: Tensor = inputs.pop(_UNITS)
        places: Tensor = inputs.pop(_PLACES)
        rows = scored_positions(self.args.objective, corrupted)
        logits, token_nll = self._score(model, inputs, corrupted, rows)
        self._count_buckets(token_nll, rows, corrupted)
        loss = objective_sum(self.args.objective, token_nll, corrupted) / units.clamp(min=1).to(token_nll.dtype)
        loss = loss * self.accelerator.num_processes  # gradients are averaged over processes afterwards
        if not corrupted.is_masked.any():
            loss = loss + logits[:0].sum()  # every parameter needs a gradient, if only 0
        if loss.device.type != "cpu":  # the device need not wait: `log` looks at it
            first = (self._first_bad_step.to(loss.device) < 0) & ~torch.isfinite(loss.detach())
            self._first_bad_step = torch.where(first, self.state.global_step, self._first_bad_step.to(loss.device))
        elif not math.isfinite(loss.detach()):
            bad = bad_rows(token_nll, rows)
            lengths = inputs["attention_mask"].sum(-1)
            prints = [row_fingerprint(corrupted.targets[row, : lengths[row]]) for row in bad]
            self._stop_at(float(loss.detach()), self.state.global_step, places[bad].tolist(), prints)
        return (loss, {"logits": logits}) if return_outputs else loss

    def _score(
        self, model: nn.Module, inputs: dict[str, Any], corrupted: CorruptedBatch, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits and losses of the positions `rows`, `(N, V)` and `(N,)`."""
        logits = logits_at(model, rows, **inputs)
        forbidden = self._forbidden.to(logits.device)
        return logits, token_negative_log_likelihood(logits, corrupted.targets[rows], forbidden)

    def _stop_at(self, loss: float, step: int, places: list[int], fingerprints: list[str]) -> NoReturn:
        rows = name_rows(rows_of_step(self._get_train_sampler(), step, places), fingerprints)
        raise NonFiniteLossError(
            f"The loss is {loss} at step {step + 1}. Lower `learning_rate` (now {self.args.learning_rate:g}) or check "
            f"the data, {rows}; checkpoints saved before are intact."
        )

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            first = int(self._first_bad_step)
            step = first if first >= 0 else self.state.global_step - 1
            self._stop_at(loss, step, list(range(self.get_total_train_batch_size(self.args))), [])

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`, and a look at the weights that it left."""
        output = super().train(*args, **kwargs)
        self._require_finite_weights()
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Every checkpoint passes here first; weights that are not finite are not saved."""
        self._require_finite_weights()
        super().save_model(output_dir, _internal_call)

    def _require_finite_weights(self) -> None:
        averages = getattr(self.optimizer, "state", None) or {}
        for name, parameter in unwrap(self.model).named_parameters():
            found: dict[str, Any] = {f"weights {name}": parameter}
            found |= {
                f"optimizer's {x} of {name}": y for x, y in averages.get(parameter, {}).items() if torch.is_tensor(y)
            }
            for what, tensor in found.items():
                if not all_finite(tensor):
                    raise NonFiniteLossError(
                        f"The {what} are not finite after step {self.state.global_step}. Lower `learning_rate` (now "
                        f"{self.args.learning_rate:g}); checkpoints saved before are intact."
                    )

    # Logs

    def _count_buckets(self, token_nll: Tensor, rows: Tensor, corrupted: CorruptedBatch) -> None:
        if self.args.objective == "full":
            token_nll = token_nll[corrupted.is_masked[rows]]
        mean = row_means(token_nll, corrupted.is_masked)
        seen = corrupted.is_masked.any(-1)
        if isinstance(self._process.rates, ImportanceRates):
            self._process.rates.collect(corrupted.mask_rate[seen], mean[seen])
        self._buckets.add(corrupted.mask_rate[seen], mean[seen])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._require_finite(logs["loss"])
            over_processes = partial(self.accelerator.reduce, reduction="sum")
            logs.update(self._buckets.take(lambda sums: over_processes(sums.to(self.args.device))))
            rate = self._throughput.tokens_per_second(over_processes)
            if rate is not None:
                logs["tokens_per_second"] = rate
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        pauses = self.control.should_evaluate or self.control.should_save  # type: ignore[has-type]
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if pauses:
            self._throughput.restart()

    # Evaluation

    # A DataLoader that starts draws from the global generator, and the dropout of training must not notice.
    @torch.random.fork_rng(devices=[])
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The likelihood bound over the whole set: sums of nats over sums of tokens, each row counted once.

        Returns metrics `eval_loss` (nats per token), `eval_num_tokens` and the loss by mask rate. `compute_metrics` is
        not called: there are no single predictions to compare.
        """
        model = self._wrap_model(self.model, training=False)
        if len(self.accelerator._models) == 0 and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        sums = [torch.zeros(0, 2 + 2 * NUM_BUCKETS, dtype=torch.float64)]
        for batch in dataloader:
            bounds = self._bound_of_batch(model, batch)
            per_row = torch.cat(
                [bounds.nats[:, None], bounds.num_tokens[:, None], bounds.bucket_nats, bounds.bucket_counts], dim=1
            )
            sums.append(self.accelerator.gather_for_metrics(per_row).cpu())
            state = (self.args, self.state, self.control)
            self.control = self.callback_handler.on_prediction_step(*state)
        rows = torch.cat(sums)
        nats, num_tokens, buckets = rows[:, 0].sum(), rows[:, 1].sum(), rows[:, 2:].sum(0)
        if not torch.isfinite(nats):
            raise NonFiniteLossError(
                f"The bound of {int((~torch.isfinite(rows[:, 0])).sum())} of {len(rows)} evaluation rows is not "
                f"finite: the model answers NaN, or gives a token of the text probability 0. Go back to an earlier "
                f"checkpoint."
            )
        if num_tokens == 0:
            raise ValueError(
                f"The {len(rows)} evaluation rows have no maskable token: they are empty or special tokens only. Pass "
                f"another `eval_dataset`."
            )
        metrics = {
            f"{metric_key_prefix}_loss": float(nats / num_tokens),
            f"{metric_key_prefix}_num_tokens": int(num_tokens),
            **bucket_logs(f"{metric_key_prefix}_", buckets[:NUM_BUCKETS], buckets[NUM_BUCKETS:], self._bucket_name),
        }
        nothing: Any = None  # there are no single predictions
        return EvalLoopOutput(predictions=nothing, label_ids=None, metrics=metrics, num_samples=len(rows))

    def _bound_of_batch(self, model: nn.Module, batch: dict[str, Tensor]) -> RowBounds:
        attention_mask = batch["attention_mask"]

        def predict_logits(input_ids: Tensor, rows: Tensor) -> Tensor:
            return logits_at(model, rows, input_ids=input_ids, attention_mask=attention_mask)

        return bound_of_rows(
            predict_logits,
            batch["input_ids"],
            batch["labels"].ne(-100),
            mask_id=self._process.mask_id,
            end_id=self._end_id if self._generates_end else -1,
            forbidden_ids=self._forbidden.to(attention_mask.device),
            draws=self.args.eval_draws,
            seed=self.args.seed,
        )
