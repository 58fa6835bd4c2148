"""Drawing tokens: which ones may come at the positions of a denoising step, and which one comes.

The canvas of a step may lie on another device than its logits: what decides about few numbers is faster on a CPU than
on a GPU, which the logits never leave.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .denoising_step import Constraint, GuideLogits
from .denoising_work import TOKEN_STREAM, Work
from .randomness import fold_in, uniform
from .reading import draw_tokens, likeliest_tokens
from .repetition import Repetition
from .sampling import Sampling, log_probabilities


@dataclass(frozen=True)
class TokenDrawing:
    """Draws the tokens of a batch.

    Args:
        sampling, repetition, guide_logits, constraint: of `denoising.denoise`.
        num_to_fill (`torch.Tensor` of shape `(B,)`): positions that each row is to have filled.
        no_text (`torch.Tensor` of shape `(n,)`): ids that are no words of a text, for `repetition`.
    """

    sampling: Sampling
    repetition: Repetition
    guide_logits: GuideLogits | None
    constraint: Constraint | None
    num_to_fill: Tensor
    no_text: Tensor

    def text(self, work: Work) -> Tensor:
        """The canvases with -1 for what is no token of a text."""
        return work.canvas.masked_fill(work.masked | torch.isin(work.canvas, self.no_text), -1)

    def restrict(self, work: Work, wanted: Tensor, logits: Tensor) -> Tensor:
        """Logits of the masked positions `wanted`, with what may not follow from the canvas as it stands at -inf."""
        if self.constraint is not None:
            allowed = [
                self.constraint.allowed(row, canvas, masked)[wanted[masked]]
                for row, canvas, masked, wanted in zip(
                    work.rows.tolist(), work.canvas, work.masked, wanted, strict=True
                )
                if bool(wanted.any())
            ]
            logits = logits.masked_fill(~torch.cat(allowed).to(logits.device), -math.inf)
        if self.repetition.bans:
            row, position = wanted.nonzero().unbind(-1)
            logits = self.repetition.ban(logits, self.text(work)[row], position)
        return logits

    def draw(
        self,
        work: Work,
        reveal: Tensor,
        logits: Tensor,
        of_rows: Tensor | None = None,
        likeliest: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A token for each position of `reveal`, and its log-probability there: `(n,)` each.

        The log-probability is neither tempered nor truncated, nor does it know of guidance or tokens drawn before.

        Args:
            logits (`torch.Tensor` of shape `(N, V)`): those of the positions `reveal` are its rows `of_rows` `(n,)`,
                by default all.
            likeliest (`torch.Tensor` of shape `(N,)`, *optional*): log-probability of the most probable token, if it
                is known.
        """
        alone = self.guide_logits is None and self.constraint is None and not self.repetition.bans
        if not alone:
            logits = (logits if of_rows is None else logits[of_rows]).float()
            tokens = self._draw_in_turn(work, reveal, logits, self._masked_share(work, reveal, logits))
            log_prob = log_probabilities(logits).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        elif not self.sampling.is_greedy:
            u, share = self._uniform(work, reveal, logits), self._masked_share(work, reveal, logits)
            tokens, log_prob = draw_tokens(self.sampling, logits, u, share, of_rows)
        elif likeliest is not None and of_rows is not None:
            tokens, log_prob = likeliest_tokens(logits, of_rows), likeliest[of_rows]
        else:
            tokens, log_prob = draw_tokens(self.sampling, logits, of_rows=of_rows)
        return tokens.to(reveal.device), log_prob.to(reveal.device)

    def _masked_share(self, work: Work, reveal: Tensor, logits: Tensor) -> Tensor | None:
        """For a temperature that moves: the share of the canvas that was masked as the step began, `(N,)`."""
        if self.sampling.temperature_end is None:
            return None
        share = work.masked.sum(-1) / self.num_to_fill[work.rows]
        return share[reveal.nonzero()[:, 0]].to(logits.device)

    def _uniform(self, work: Work, reveal: Tensor, logits: Tensor) -> Tensor:
        """The number of each position of `reveal`, `(N,)`: it has one in every step, whether used or not."""
        return uniform(fold_in(work.keys, TOKEN_STREAM), reveal.shape[1])[reveal].to(logits.device)

    def _draw_in_turn(self, work: Work, reveal: Tensor, logits: Tensor, share: Tensor | None) -> Tensor:
        """Tokens that see one another where they must; `share` (N,) of the canvas was masked as the step began."""
        judged = self.constraint is not None and self.guide_logits is not None
        if not (self.repetition.bans or judged) or len(logits) == 0:
            return self._draw_together(work, reveal, logits, share)
        # Tokens drawn together do not see each other. Here they must: one position of each row after another. (Guided
        # candidates are few: those of several positions may not go together under a constraint.)
        work = replace(work, canvas=work.canvas.clone(), masked=work.masked.clone())
        turn = reveal.long().cumsum(-1)  # (A, L)
        tokens = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        for index in range(1, int(turn.max()) + 1):
            now = reveal & turn.eq(index)
            those = now[reveal]
            restricted = self.restrict(work, now, logits[those])
            tokens[those] = self._draw_together(work, now, restricted, None if share is None else share[those])
            work.canvas[now], work.masked[now] = tokens[those].to(now.device), False
        return tokens

    def _draw_together(self, work: Work, reveal: Tensor, logits: Tensor, share: Tensor | None) -> Tensor:
        """Tokens that do not see one another; `share` (N,) of the canvas was masked as the step began."""
        row, position = reveal.nonzero().unbind(-1)
        if self.guide_logits is not None and len(row) > 0:
            canvas = work.canvas[row].to(logits.device)
            guided = self.guide_logits(canvas, position.to(logits.device), logits).float()
            logits = guided.masked_fill(logits.isneginf(), -math.inf)  # what is ruled out stays so
        u = self._uniform(work, reveal, logits)
        if self.constraint is None:
            return self.sampling.choose(logits, u, share)
        both = torch.stack([self.sampling.filtered(logits, share), logits])  # (2, N, V)
        parts = [
            self.constraint.draw(
                int(work.rows[place]),
                work.canvas[place],
                work.masked[place],
                reveal[place],
                both[:, row == place],
                u[row == place],
            )
            for place in row.unique().tolist()
        ]
        return torch.cat(parts).to(logits.device) if parts else logits.new_zeros(0, dtype=torch.int64)
