"""The loop behind `denoising.denoise`: one step after another on a batch of rows, each by its own plan.

All that the loop knows lies where the canvas lies; only what is read from logits comes from where they are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from .denoising_step import Constraint, DenoisingStep, EditLogits, GuideLogits, OnStep, PredictLogits
from .denoising_work import NOISE_STREAM, ORDER_STREAM, REMASK_STREAM, Work
from .randomness import fold_in, gumbel
from .reading import Reading, read_distributions
from .remasking import Remasking
from .repetition import Repetition
from .reveal_plan import RevealPlan
from .sampling import Sampling, forbid, guide, log_probabilities
from .token_drawing import TokenDrawing
from .unmasking import (
    ORDERS_BEFORE_LOGITS,
    AdaptiveCount,
    scores_before_logits,
    take_highest,
    take_independent,
    take_spread,
)


@dataclass
class DenoisingLoop:
    """The checked arguments of `denoise`, and the state that its steps change."""

    predict_logits: PredictLogits
    canvas: Tensor
    to_fill: Tensor
    mask_id: int
    keys: Tensor
    forbidden: Tensor
    sampling: Sampling
    plan: RevealPlan
    adaptive: AdaptiveCount | None
    at_most: bool  # whether the plan is the least that `adaptive` reveals
    order: str
    order_noise: float
    draws_first: bool
    min_gap: int
    remasking: Remasking
    final_pass: bool
    end_id: int | None
    may_end: Tensor | None
    defer_end: bool
    guidance_scale: float
    condition: Tensor
    repetition: Repetition
    edit_logits: EditLogits | None
    guide_logits: GuideLogits | None
    constraint: Constraint | None
    on_step: OnStep | None

    def __post_init__(self) -> None:
        self.is_masked = self.to_fill
        self.confidence = torch.full(self.canvas.shape, math.nan, device=self.canvas.device)
        self.num_forwards = torch.zeros(len(self.canvas), dtype=torch.int64, device=self.canvas.device)
        self.finishing = torch.zeros(len(self.canvas), dtype=torch.bool, device=self.canvas.device)  # told to
        self.vocab_size = 0  # the first logits tell
        self.rested = self.finishing  # rows of which all that was left has been revealed at once
        self.guided = self.condition.any(-1) & (self.guidance_scale != 1)
        self.guides = bool(self.guided.any())
        self.deferred_id = self.end_id if self.defer_end else None
        self.restricts_end = self.end_id is not None and self.may_end is not None and not bool(self.may_end.all())
        ends = self.forbidden.new_tensor([] if self.end_id is None else [self.end_id])
        self.no_text = torch.cat([self.forbidden, ends])
        self.drawing = TokenDrawing(
            self.sampling, self.repetition, self.guide_logits, self.constraint, self.to_fill.sum(-1), self.no_text
        )

    @torch.no_grad()
    def run(self) -> Iterator[DenoisingStep]:
        made, planned = 0, self.plan.num_visible.shape[1]
        # Beyond the plan of a row: what `on_step` masked again after it, and what it masked again after that.
        for index in range(planned + 2 if planned else 0):
            work = self._begin(index)
            if work is not None:
                yield self._report(self._step(work, made), work)
                made += 1
        if self.final_pass and made and bool(self._to_predict_again().any()):
            yield self._predict_again(made)

    def _begin(self, index: int) -> Work | None:
        """The rows that are not yet done, and what the plan says of them.

        All that is left of a row comes at once if `on_step` said "finish", or masked it again after the plan.
        """
        plan = self.plan
        column = min(index, plan.num_visible.shape[1] - 1)
        block = plan.block[:, column]
        if self.adaptive is not None:  # the first block that has masks
            block = plan.block_of.masked_fill(~self.is_masked, torch.iinfo(torch.int64).max).amin(-1)
        fill = plan.block_of.eq(block.unsqueeze(-1))
        going = index < plan.num_steps
        if not self.remasking.revises:
            going &= self.is_masked.any(-1)
            if self.adaptive is None:  # what was given away behind an end need not be revealed any more
                going &= (fill & ~self.is_masked).sum(-1) < plan.num_visible[:, column]
        rest = self.finishing | (index >= plan.num_steps)
        rows = torch.where(rest, self.is_masked.any(-1), going).nonzero().squeeze(-1)
        if len(rows) == 0:
            return None
        fill = torch.where(rest.unsqueeze(-1), self.to_fill, fill)
        return Work(
            index=index,
            rows=rows,
            canvas=self.canvas[rows],
            masked=self.is_masked[rows],
            fill=fill[rows],
            num_visible=torch.where(rest, fill.sum(-1), plan.num_visible[:, column])[rows],
            t=plan.t[:, column].masked_fill(rest, 0)[rows],
            row_keys=self.keys[rows],
            is_rest=rest[rows],
        )

    def _step(self, work: Work, made: int) -> DenoisingStep:
        # 1. Which visible positions return to mask, and how many masked ones come out to keep to the plan.
        sure = self.confidence[work.rows]
        keys = fold_in(work.keys, REMASK_STREAM) if self.remasking.revises else work.row_keys
        remasked = self.remasking.select(work.fill, work.open, work.num_visible, sure, work.t, keys)
        counts = work.num_visible - (work.visible & ~remasked).sum(-1)  # (A,)

        # 2. Predict: everything masked, or only what is revealed if the order can tell without the logits.
        looks = self.adaptive is not None or self.draws_first
        needed = work.open if looks else work.open & (counts > 0).unsqueeze(-1)
        if self.order in ORDERS_BEFORE_LOGITS:
            scores = scores_before_logits(self.order, fold_in(work.keys, ORDER_STREAM), self.canvas.shape[1])
            if not looks:
                needed = take_spread(scores, needed, counts, self.min_gap)
        logits = self._logits(work, needed)  # (N, V), N = needed.sum()

        # 3. Choose the positions, before any token is drawn unless asked otherwise.
        drawn = self.drawing.draw(work, needed, logits) if self.draws_first else None
        looks_at = self.order if drawn is None and self.order not in ORDERS_BEFORE_LOGITS else None
        reading = read_distributions(logits, looks_at, self.adaptive, self.deferred_id)
        if looks_at is not None:
            scores = self._scores(work, needed, cast(Tensor, reading.score))
        elif drawn is not None:
            scores = self._scores(work, needed, self._without_end(*drawn))
        if self.adaptive is not None:
            scores, enough = self._adapt(work, scores, needed, reading, counts)
            counts = torch.where(work.is_rest, counts, enough)
        if self.remasking.rule == "low_confidence":
            keep = take_highest(torch.where(work.visible, sure.double().log(), scores), work.fill, work.num_visible)
            reveal, remasked = work.open & keep, work.visible & ~keep
        else:
            reveal = take_spread(scores, needed, counts, self.min_gap)

        # 4. Draw the tokens there.
        chosen = reveal[needed].nonzero().squeeze(-1)  # (n,): the rows of logits that belong to revealed positions
        if drawn is None:
            tokens, log_prob = self.drawing.draw(work, reveal, logits, chosen.to(logits.device), reading.likeliest)
        else:
            tokens, log_prob = drawn[0][chosen], drawn[1][chosen]

        # 5. Write both changes down.
        canvas, masked = work.canvas.clone(), (work.masked & ~reveal) | remasked
        canvas[reveal], sure[reveal] = tokens, log_prob.double().exp().float()
        canvas[remasked], sure[remasked] = self.mask_id, math.nan
        if self.end_id is not None and not self.remasking.revises:  # behind an end there is nothing but ends
            behind = (canvas.eq(self.end_id) & reveal).long().cumsum(-1).bool() & masked
            canvas[behind], sure[behind] = self.end_id, 1.0
            reveal, masked = reveal | behind, masked & ~behind
        self.canvas = self.canvas.index_copy(0, work.rows, canvas)
        self.confidence = self.confidence.index_copy(0, work.rows, sure)
        self.is_masked = self.is_masked.index_copy(0, work.rows, masked)
        self.num_forwards[work.rows] += 1 + self.guided[work.rows].long()
        nowhere = torch.zeros_like(self.to_fill)
        return DenoisingStep(
            index=made,
            canvas=self.canvas.clone(),
            revealed=nowhere.index_copy(0, work.rows, reveal),
            remasked=nowhere.index_copy(0, work.rows, remasked),
            confidence=self.confidence.clone(),
            is_masked=self.is_masked.clone(),
            num_forwards=self.num_forwards.clone(),
        )

    def _to_predict_again(self) -> Tensor:
        return self.to_fill if self.end_id is None else self.to_fill & self.canvas.ne(self.end_id)

    def _predict_again(self, made: int) -> DenoisingStep:
        """The pass at t = 0: the most probable token at each position to fill but ends, from the finished canvas."""
        again = self._to_predict_again()
        rows = again.any(-1).nonzero().squeeze(-1)
        needed, nothing = again[rows], torch.zeros_like(again[rows])
        work = Work(
            index=made,
            rows=rows,
            canvas=self.canvas[rows],
            masked=nothing,
            fill=needed,
            num_visible=needed.sum(-1),
            t=torch.zeros(len(rows), dtype=torch.float64, device=rows.device),
            row_keys=self.keys[rows],
            is_rest=nothing.any(-1),
        )
        logits = forbid(self._logits(work, needed), self.no_text)  # where a text ends is settled
        log_prob, tokens = log_probabilities(logits).max(-1)
        self.canvas, self.confidence = self.canvas.clone(), self.confidence.clone()
        self.canvas[again] = tokens.to(again.device)
        self.confidence[again] = log_prob.double().exp().float().to(again.device)
        self.num_forwards[rows] += 1 + self.guided[rows].long()
        return DenoisingStep(
            index=made,
            canvas=self.canvas.clone(),
            revealed=again.clone(),
            remasked=torch.zeros_like(again),
            confidence=self.confidence.clone(),
            is_masked=self.is_masked.clone(),
            num_forwards=self.num_forwards.clone(),
        )

    def _logits(self, work: Work, needed: Tensor) -> Tensor:
        """Logits of the positions `needed`, in row-major order, with all that may not be generated at -inf.

        In the dtype of the model: what is read from them is read in float32, some rows at a time.
        """
        logits = self._predict(work.canvas, needed)
        if self.guides and bool((guided := self.guided[work.rows]).any()):
            blank = work.canvas.masked_fill(self.condition[work.rows], self.mask_id)
            unconditional = self._predict(blank[guided], needed[guided]).float()
            of_guided = guided[needed.nonzero()[:, 0]]
            logits = logits.float()
            logits[of_guided] = guide(logits[of_guided], unconditional, self.guidance_scale)
        if len(logits) == 0:  # with remasking a step may reveal nothing
            return logits
        if self.repetition.penalty != 1 or self.edit_logits is not None:
            row, logits = needed.nonzero()[:, 0], logits.float()
            if self.repetition.penalty != 1:
                logits = self.repetition.penalize(logits, self.drawing.text(work)[row])
            if self.edit_logits is not None:
                canvas = work.canvas[row].to(logits.device)
                logits = forbid(self.edit_logits(canvas, logits).float(), self.forbidden)
        if self.restricts_end:
            logits[~cast(Tensor, self.may_end)[work.rows][needed], self.end_id] = -math.inf
        return self.drawing.restrict(work, needed, logits)

    def _predict(self, canvas: Tensor, needed: Tensor) -> Tensor:
        """The model's logits, `(N, V)`, with forbidden ids at -inf."""
        logits = self.predict_logits(canvas.clone(), needed)
        if logits.dim() != 2 or len(logits) != int(needed.sum()):
            expected = f"({int(needed.sum())}, vocabulary)"
            raise ValueError(f"`predict_logits` must return logits of shape {expected}, got {tuple(logits.shape)}.")
        if self.vocab_size == 0:
            self.vocab_size = logits.shape[-1]
            self.forbidden = self.forbidden[(self.forbidden >= 0) & (self.forbidden < self.vocab_size)]
            self.forbidden = self.forbidden.to(logits.device)
        return logits.index_fill_(-1, self.forbidden, -math.inf)

    def _scores(self, work: Work, needed: Tensor, score: Tensor) -> Tensor:
        """Score of each position by the order, `(A, L)`, from those of the positions `needed`."""
        scores = _spread(needed, score, torch.float64)
        if self.order_noise > 0:
            scale = self.order_noise * (1 - work.index / self.plan.num_steps[work.rows].double())  # (A,)
            scores += scale.unsqueeze(-1) * gumbel(fold_in(work.keys, NOISE_STREAM), needed.shape[1])
        return scores

    def _without_end(self, tokens: Tensor, log_prob: Tensor) -> Tensor:
        return log_prob if self.deferred_id is None else log_prob.masked_fill(tokens.eq(self.deferred_id), -math.inf)

    def _adapt(
        self, work: Work, scores: Tensor, needed: Tensor, reading: Reading, planned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scores and counts of the adaptive rule, `(A, L)` and `(A,)`."""
        rule = cast(AdaptiveCount, self.adaptive)
        if reading.log_probs is not None:
            among = self._before_ends(needed, reading.log_probs)
            of_those = reading.log_probs[among[needed]]
            together = take_independent(scores, among, work.masked, of_those, rule.bound, rule.most)
            scores, counts = scores.masked_fill(together, math.inf), together.sum(-1)
        else:
            confidence, entropy = cast(Tensor, reading.confidence), cast(Tensor, reading.entropy)
            counts = rule.counts(scores, needed, _spread(needed, confidence), _spread(needed, entropy))
        return scores, torch.maximum(counts, planned) if self.at_most else counts

    def _before_ends(self, needed: Tensor, log_probs: Tensor) -> Tensor:
        """The positions without those where the model expects an end, as `defer_end` wants it, while there are any."""
        if self.deferred_id is None:
            return needed
        words = needed.clone()
        words[needed] = log_probs.argmax(-1).ne(self.deferred_id).to(words.device)
        return torch.where(words.any(-1, keepdim=True), words, needed)

    def _report(self, step: DenoisingStep, work: Work) -> DenoisingStep:
        """Shows `on_step` the step, and does what it answers."""
        was_rested = self.rested
        self.rested = was_rested.index_copy(0, work.rows, was_rested[work.rows] | work.is_rest)
        answer = self.on_step(step) if self.on_step is not None else None
        if answer is None:
            return step
        if isinstance(answer, str) and answer == "finish":
            self.finishing = torch.ones_like(self.finishing)
            return step
        canvas, finish = answer if isinstance(answer, tuple) else (answer, torch.zeros_like(self.finishing))
        if not isinstance(canvas, Tensor):
            raise ValueError(f"`on_step` must return None, a canvas or 'finish', got {answer!r}.")
        self.finishing = self.finishing | finish.to(self.finishing)
        canvas = self._checked(canvas.to(self.canvas.device))
        canvas = torch.where(was_rested.unsqueeze(-1), self.canvas, canvas)  # these have had their last step
        changed = canvas.ne(self.canvas)
        self.canvas = canvas.clone()
        self.is_masked = self.to_fill & self.canvas.eq(self.mask_id)
        self.confidence = torch.where(changed, 1.0, self.confidence).masked_fill(self.is_masked, math.nan)
        return replace(
            step, canvas=self.canvas.clone(), is_masked=self.is_masked.clone(), confidence=self.confidence.clone()
        )

    def _checked(self, canvas: Tensor) -> Tensor:
        """A canvas that `on_step` returned, if one may go on with it."""
        if canvas.shape != self.canvas.shape or bool((canvas.ne(self.canvas) & ~self.to_fill).any()):
            raise ValueError(
                "`on_step` returned a canvas that differs where nothing is generated; keep prefix and shape."
            )
        placed = canvas[canvas.ne(self.canvas) & canvas.ne(self.mask_id)]
        wrong = placed[
            (placed < 0) | (placed >= self.vocab_size) | torch.isin(placed, self.forbidden.to(placed.device))
        ]
        if len(wrong) > 0:
            raise ValueError(
                f"`on_step` put the token {wrong[0].item()} into the text, which is a special token or none at all; "
                f"put others, or the mask token to have the place written again."
            )
        if self.constraint is not None and len(placed) > 0:
            raise ValueError("`on_step` may only mask tokens again where there are constraints, not put others.")
        return canvas


def _spread(positions: Tensor, values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`(A, L)`, with the `values` `(N,)` at the N `positions` and 0 elsewhere."""
    spread = torch.zeros(positions.shape, dtype=dtype, device=positions.device)
    spread[positions] = values.to(spread)
    return spread
