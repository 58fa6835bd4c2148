"""Exact inference on the story automaton: the forward algorithm and forward-backward, batched, in float64.

Rows are ids of shape (B, L): position 0 holds `<s>`, masks are wildcards. A row of any length stands for the first L
tokens of the endless sequence `<s> story </s> </s> ...`, so a row that cuts its story has a probability too.
Source: the forward-backward algorithm (Rabiner 1989), with the factorised posterior proved in `automaton.py`.
"""

import torch
from torch import Tensor, nn

from .automaton import MASK_ID, Automaton

ROWS_AT_ONCE = 64  # bounds memory: one (L, Z, B) table of a full batch takes about 40 MB


class Inference(nn.Module):
    """Tables of an automaton as float64 buffers, and the recursions over them. Z states, E edges, V tokens."""

    source: Tensor
    target: Tensor
    transition: Tensor
    likelihood: Tensor
    emission: Tensor
    unigram: Tensor

    def __init__(self, automaton: Automaton):
        super().__init__()
        self.num_states, self.vocab_size = len(automaton.states), len(automaton.vocabulary)
        self.buffer("source", torch.tensor([edge.source for edge in automaton.edges] + [automaton.end]))  # (E,)
        self.buffer("target", torch.tensor([edge.target for edge in automaton.edges] + [automaton.end]))  # (E,)
        probabilities = [edge.probability for edge in automaton.edges] + [1.0]
        self.buffer("transition", torch.tensor(probabilities, dtype=torch.float64))  # (E,)
        self.forms = sorted({(slot.variable, slot.tokens) for slot in automaton.states if slot.variable})
        column_of = {form: self.vocab_size + column for column, form in enumerate(self.forms)}
        likelihood = torch.zeros(self.vocab_size, self.num_states, dtype=torch.float64)
        emission = torch.zeros(self.num_states, self.vocab_size + len(self.forms), dtype=torch.float64)
        prior = torch.zeros_like(likelihood)
        for state, slot in enumerate(automaton.states):
            ids = torch.tensor([automaton.id_of[token] for token in slot.tokens])
            chances = torch.tensor(slot.probabilities, dtype=torch.float64)
            prior[ids, state] = chances
            likelihood[ids, state] = torch.ones_like(chances) if slot.variable else chances
            if slot.variable:
                emission[state, column_of[slot.variable, slot.tokens]] = 1.0  # shared out to words by `posterior`
            else:
                emission[state, ids] = chances
        likelihood[MASK_ID] = 1.0
        self.buffer("likelihood", likelihood)  # (V, Z): the factor that a token puts on each state
        self.buffer("emission", emission)  # (Z, V + forms)
        visits = torch.tensor(automaton.visits(), dtype=torch.float64)
        visits[0] = 0.0
        self.buffer("unigram", prior @ visits / visits.sum())  # (V,)
        for variable, values in automaton.variables.items():
            agrees = torch.ones(self.vocab_size, len(values), dtype=torch.bool)
            for token, (owner, preimage) in automaton.values_of.items():
                if owner == variable:
                    agrees[automaton.id_of[token]] = torch.tensor([i in preimage for i in range(len(values))])
            self.buffer(f"agrees_{variable}", agrees)  # (V, values): does the token allow the value?
        for column, (_, tokens) in enumerate(self.forms):
            self.buffer(f"form_{column}", torch.tensor([automaton.id_of[token] for token in tokens]))
        self.variables = tuple(automaton.variables)

    def buffer(self, name: str, table: Tensor) -> None:
        self.register_buffer(name, table, persistent=False)

    def allowed(self, input_ids: Tensor) -> dict[str, Tensor]:
        """For each variable the values that agree with every visible token of a row: bool, (B, values)."""
        return {name: getattr(self, f"agrees_{name}")[input_ids].all(dim=1) for name in self.variables}

    def forward_pass(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Predictive forward probabilities (L, Z, B) of the paths, and log p(visible) of shape (B,) in nats."""
        batch, length = input_ids.shape
        predictive = torch.zeros(length, self.num_states, batch, dtype=torch.float64, device=input_ids.device)
        log_p = torch.zeros(batch, dtype=torch.float64, device=input_ids.device)
        predictive[0, 0] = 1.0
        for i in range(length):
            joint = predictive[i] * self.likelihood[input_ids[:, i]].T  # (Z, B)
            total = joint.sum(0)
            log_p += total.log()
            if i + 1 < length:
                joint = joint / total.where(total > 0, 1.0)
                predictive[i + 1].index_add_(0, self.target, joint[self.source] * self.transition[:, None])
        for values in self.allowed(input_ids).values():
            log_p += values.double().mean(1).log()
        return predictive, log_p

    def backward_pass(self, input_ids: Tensor, finished: bool) -> Tensor:
        """What comes after each position, given its state: (L, Z, B), each position normalised to a greatest 1.

        `finished` demands that the story ends within the row; else what comes after the row is summed out.
        """
        batch, length = input_ids.shape
        beyond = torch.zeros(length, self.num_states, batch, dtype=torch.float64, device=input_ids.device)
        beyond[-1, -1 if finished else slice(None)] = 1.0
        for i in range(length - 1, 0, -1):
            after = beyond[i] * self.likelihood[input_ids[:, i]].T
            beyond[i - 1].index_add_(0, self.source, after[self.target] * self.transition[:, None])
            greatest = beyond[i - 1].amax(0)
            beyond[i - 1] /= greatest.where(greatest > 0, 1.0)
        return beyond

    def log_prob(self, input_ids: Tensor) -> Tensor:
        """log p(visible tokens) in nats, float64 of shape (B,); masks are summed out, -inf where impossible."""
        return torch.cat([self.forward_pass(rows)[1] for rows in input_ids.split(ROWS_AT_ONCE)])

    def posterior(self, input_ids: Tensor, finished: bool = False) -> tuple[Tensor, Tensor]:
        """p(token | visible tokens) at every masked position.

        Returns:
            `(N, V)` float64, the masked positions in row-major order, and a bool tensor `(B,)` that is True for rows
            whose visible tokens have probability 0; these rows get the unigram law.
        """
        if len(input_ids) > ROWS_AT_ONCE:
            parts = [self.posterior(rows, finished) for rows in input_ids.split(ROWS_AT_ONCE)]
            return torch.cat([p for p, _ in parts]), torch.cat([impossible for _, impossible in parts])
        predictive, log_p = self.forward_pass(input_ids)
        path = predictive * self.backward_pass(input_ids, finished)  # (L, Z, B)
        masked = input_ids.eq(MASK_ID)
        row = masked.nonzero()[:, 0]
        at_masked = path.permute(2, 0, 1)[masked]  # (N, Z)
        total = at_masked.sum(1)
        impossible = log_p.isneginf() | (path[0].sum(0) <= 0)
        mass = (at_masked / total.where(total > 0, 1.0)[:, None]) @ self.emission  # (N, V + forms)
        p = mass[:, : self.vocab_size].clone()
        allowed = self.allowed(input_ids)
        for column, (variable, _) in enumerate(self.forms):
            ids = getattr(self, f"form_{column}")
            agrees = getattr(self, f"agrees_{variable}")[ids].double()  # (words, values): word = f(value)
            weights = allowed[variable].double() @ agrees.T  # (B, words)
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1.0)
            p[:, ids] += mass[:, self.vocab_size + column, None] * weights[row]
        p[impossible[row]] = self.unigram
        return p, impossible
