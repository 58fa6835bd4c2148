"""The likelihood of texts under a masked diffusion model: the bound, and other estimates beside it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..canvas import is_gaussian, training_facts
from ..modeling import context_length, unwrap
from ..schedules import get_schedule
from .likelihood import NUM_BUCKETS
from .likelihood_report import Estimate, LikelihoodReport
from .loss_curve import RowCurves, loss_curve_of_rows
from .row_predictor import RowPredictor, make_predictor, writes_ends
from .text_rows import TextRows, make_rows
from .text_sums import CONFIDENCE, TextSums
from .trajectory import chain_of_rows, fixed_ranks, importance_bound, random_chains_of_rows, sampler_bound_of_rows

ESTIMATORS = ("curve", "steps", "chain", "importance")
_LONGEST_ROW = 512  # of a model that was not trained here, however much it reads


def default_row_length(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """The length of the rows the model was trained on; else what it reads, up to 512."""
    limit = context_length(unwrap(model), tokenizer)
    return min(int(training_facts(model).get("row_length") or _LONGEST_ROW), limit)


def require_row_length(model: nn.Module, tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """`max_length`, unless the model reads less.

    Raises:
        ValueError: it does.
    """
    limit = context_length(unwrap(model), tokenizer)
    if max_length > limit:
        raise ValueError(f"`max_length` is {max_length}, but this model reads {limit} tokens. Use {limit} or less.")
    return max_length


def rows_to_score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    packing: str | None,
    max_length: int | None,
    separate_texts: bool,
) -> tuple[TextRows, dict[str, Any]]:
    """Texts as the rows of a masked model, and how they were made: `packing`, `max_length` and `scores_end`.

    Raises:
        ValueError: an argument is impossible.
    """
    packing = packing or ("one_per_row" if writes_ends(model) else "packed")
    scores_end = writes_ends(model) and packing == "one_per_row"
    length = default_row_length(model, tokenizer) if max_length is None else max_length
    require_row_length(model, tokenizer, length)
    rows = make_rows(texts, tokenizer, length, packing, scores_end, separate_texts)
    return rows, {"packing": packing, "max_length": length, "scores_end": scores_end}


def evaluate_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    estimators: Sequence[str] = (),
    packing: str | None = None,
    max_length: int | None = None,
    separate_texts: bool = True,
    draws: int = 32,
    steps: Sequence[int] = (8, 16, 32, 64),
    schedule: str = "linear",
    orders: int = 8,
    order: str = "left_to_right",
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LikelihoodReport:
    """How likely texts are under a model: the negative ELBO with a confidence interval, and other estimates.

    Masks are keyed by the content of rows: two checkpoints with one tokenizer are compared on the same draws, and the
    batch size changes nothing. Special tokens are given, never scored.

    Args:
        model, tokenizer: a masked language model, or anything called like one, and its tokenizer.
        texts (sequence of `str`): not blank.
        estimators (sequence of `str`): beside the bound, any of

            * `curve`: the bound as the integral of the loss at fixed mask rates;
            * `steps`: the bound of the sampler that writes a row in so many `steps` by `schedule`;
            * `chain`: exact -log p of the sampler that reveals one token at a time in the fixed `order`;
            * `importance`: log-mean-exp over `orders` random orders, between -log p and the bound.

        packing (`str`, *optional*): `one_per_row` or `packed`, see `text_rows`; as the model was trained by default.
        max_length (`int`, *optional*): tokens of a row; `default_row_length` by default.
        separate_texts (`bool`): packed: whether `</s>` stands between two texts.
        draws (`int`): masks per row for the bound; 128 for a published figure.
        batch_size (`int`): rows per call of the model.
        seed (`int`): another one gives other masks.
        progress (callable, *optional*): called with the number of batches done and that of all.

    Returns:
        `LikelihoodReport`.

    Raises:
        ValueError: an argument is impossible, or there is nothing to score.
        NonFiniteLossError: the model answers NaN, or gives a token of the texts probability 0.
    """
    _require(estimators, draws, steps, schedule, orders, batch_size, texts)
    fixed_ranks(order, torch.ones(1, 1, dtype=torch.bool))  # refuses an unknown order
    rows, of_rows = rows_to_score(model, tokenizer, texts, packing, max_length, separate_texts)
    scores_end = of_rows["scores_end"]
    predictor = make_predictor(model, tokenizer, scores_end)
    for name in estimators:
        predictor.require_masks("estimators", name)
    sums = _Estimators(predictor, rows, batch_size, seed, progress)
    sums.prepare(1 + len(set(estimators)) - ("steps" in estimators) + len(steps) * ("steps" in estimators))
    was_training = model.training
    model.eval()
    try:
        bound, by_rate = sums.bound(draws)
        others: dict[str, Any] = {}
        curve = None
        if "curve" in estimators:
            others["curve"], curve = sums.curve()
        if "steps" in estimators:
            others["steps"] = [sums.steps(number, schedule, max(draws // number, 1)) for number in steps]
        if "chain" in estimators:
            others["chain"] = sums.chain(order)
        if "importance" in estimators:
            others["importance"] = sums.importance(orders)
    finally:
        model.train(was_training)
    settings = {
        "draws": draws,
        "seed": seed,
        **({"process": "gaussian"} if is_gaussian(model) else {}),
        **of_rows,
        "confidence": CONFIDENCE,
        "interval_over": "texts" if of_rows["packing"] == "one_per_row" else "rows",
    }
    return LikelihoodReport(bound, by_rate, others, curve, rows, int(sums.tokens.sum()), settings)


def _require(
    estimators: Sequence[str],
    draws: int,
    steps: Sequence[int],
    schedule: str,
    orders: int,
    batch_size: int,
    texts: Sequence[str],
) -> None:
    if isinstance(texts, str):
        raise ValueError(f"`texts` must be several texts, not the string {texts[:40]!r}: wrap it in a list.")
    if not texts:
        raise ValueError("`texts` is empty: there is nothing to score.")
    for name in estimators:
        if name not in ESTIMATORS:
            raise ValueError(f"`estimators` must be of {', '.join(ESTIMATORS)}, not {name!r}.")
    for argument, value in (
        ("draws", draws),
        ("orders", orders),
        ("batch_size", batch_size),
        *(("steps", number) for number in steps),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{argument}` must be a whole number of at least 1, not {value!r}.")
    if "steps" in estimators and not steps:
        raise ValueError("`steps` is empty: name numbers of steps, or leave out the estimator `steps`.")
    get_schedule(schedule)


class _Estimators(TextSums):
    """Runs the estimators of a masked model over all rows."""

    def __init__(
        self,
        predictor: RowPredictor,
        rows: TextRows,
        batch_size: int,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        super().__init__(rows, predictor.never_scored, predictor.end_id, predictor.device, batch_size, progress)
        self.predictor = predictor
        self.options: dict[str, Any] = {
            "mask_id": predictor.mask_id,
            "forbidden_ids": predictor.forbidden_ids,
            "seed": seed,
        }

    def bound(self, draws: int) -> tuple[Estimate, list[tuple[float, float]]]:
        buckets = torch.zeros(2, NUM_BUCKETS, dtype=torch.float64)

        def of_batch(ids: Tensor, maskable: Tensor) -> Tensor:
            bounds = self.predictor.bound_of_rows(ids, maskable, draws=draws, seed=self.options["seed"])
            buckets.add_(torch.stack([bounds.bucket_nats.sum(0), bounds.bucket_counts.sum(0)]).cpu())
            return bounds.nats

        estimate = self.estimate(self.add(of_batch), draws=draws)
        nats, counts = buckets
        return estimate, [
            ((index + 1) / NUM_BUCKETS, float(nats[index] / counts[index]))
            for index in range(NUM_BUCKETS)
            if counts[index] > 0
        ]

    def curve(self) -> tuple[Estimate, list[tuple[float, float]]]:
        curves: list[RowCurves] = []

        def of_batch(ids: Tensor, maskable: Tensor) -> Tensor:
            curve = loss_curve_of_rows(self.predictor, ids, maskable, batch_size=self.batch_size, **self.options)
            curves.append(RowCurves(curve.num_masked.cpu(), curve.nats.cpu(), curve.total.cpu()))
            return curve.integral()

        estimate = self.estimate(self.add(of_batch))
        columns = zip(*((curve.num_masked, curve.nats, curve.total) for curve in curves), strict=True)
        return estimate, RowCurves(*map(torch.cat, columns)).points()

    def steps(self, steps: int, schedule: str, orders: int) -> Estimate:
        options: dict[str, Any] = {"steps": steps, "schedule": schedule, "orders": orders}
        nats = self.add(
            lambda ids, maskable: sampler_bound_of_rows(
                self.predictor, ids, maskable, batch_size=self.batch_size, **options, **self.options
            )
        )
        return self.estimate(nats, **options)

    def chain(self, order: str) -> Estimate:
        def of_batch(ids: Tensor, maskable: Tensor) -> Tensor:
            options = {name: value for name, value in self.options.items() if name != "seed"}
            ranks = fixed_ranks(order, maskable)
            return chain_of_rows(self.predictor, ids, maskable, ranks, batch_size=self.batch_size, **options)

        return self.estimate(self.add(of_batch), order=order)

    def importance(self, orders: int) -> Estimate:
        chain_nats: list[Tensor] = []

        def of_batch(ids: Tensor, maskable: Tensor) -> Tensor:
            chains = random_chains_of_rows(
                self.predictor, ids, maskable, orders=orders, batch_size=self.batch_size, **self.options
            )
            chain_nats.append(chains.mean(-1).sum())
            return importance_bound(chains)

        nats = self.add(of_batch)
        mean = float(sum(chain_nats) / self.tokens.sum())
        return self.estimate(nats, orders=orders, nats_per_token_of_one_order=mean)
