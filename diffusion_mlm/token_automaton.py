"""Finite automata that read tokens, and what they say about a canvas on which some tokens are still masked.

`lift_to_tokens` turns an automaton of characters into one of tokens, whatever words the tokens cut the text into.
`TokenAutomaton` then answers, exactly: which tokens may stand at a masked slot, so that the others can still be filled
to a text that is accepted? And it draws several slots in one step so that this stays true.

Sources: lifting: Willard and Louf 2023, arXiv:2307.09702; completing a canvas with masks: Mündler et al. 2025,
arXiv:2508.10111, here for regular languages; dynamic programming over states and slots: Suresh et al. 2025 (DINGO),
arXiv:2505.23061.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .character_automaton import DEAD, CharacterAutomaton
from .sampling import draw as draw_token
from .sampling import log_probabilities

_LOG_LAST_RESORT = -230.0  # log of what a token that truncation took out weighs, times its probability: about 1e-100
_TINY = 1e-250  # what a possible continuation weighs at least, next to the best one: it must not round to impossible
_LONGEST = 1024  # how far to look for another number of tokens when the one asked for cannot be filled


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """A deterministic automaton over token ids. Tokens that act alike in all S states form one of C classes.

    Slots are the positions to be generated, numbered from 0; a row of them is accepted if its last state accepts. All
    work is done on the CPU, in the same way for tensors of any device: sums on a GPU vary from run to run.

    Args:
        next_state (`numpy.ndarray` of shape `(S, C)`): state 0 is `DEAD`; class 0 holds the tokens never generated.
        class_of_token (`torch.Tensor` of shape `(V,)`, int64).
        start (`int`): the state before the first slot.
        accepting (`numpy.ndarray` of shape `(S,)`, bool): whether a row may end here.
        sources, targets (`numpy.ndarray` of shape `(E,)`): the pairs of states that at least one token joins, sorted.
        first_edge (`numpy.ndarray` of shape `(S,)`): where in `sources` each state begins.
        description (`str`): the constraints in words, for errors.
    """

    next_state: np.ndarray
    class_of_token: Tensor
    start: int
    accepting: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    first_edge: np.ndarray
    description: str

    def is_feasible(self, new_ids: Tensor, is_masked: Tensor) -> bool:
        """Whether the masked slots can be filled so that the row is accepted; arguments as in `allowed`."""
        return bool((self._forward(self._classes(new_ids, is_masked))[-1] & self.accepting).any())

    def can_be_filled(self, length: int | None = None) -> bool:
        """Whether some row of `length` tokens, or of one token or more, is accepted."""
        if length is not None:
            return bool(self.accepting_in(length)[self.start])
        before, reached = self._only(self.start), self._next(self._only(self.start), None)
        while (reached != before).any():
            before, reached = reached, reached | self._next(reached, None)
        return bool((reached & self.accepting).any())

    def accepting_in(self, count: int) -> np.ndarray:
        """The states, (S,) bool, from which `count` more tokens can lead to an accepted row."""
        sets = [self.accepting]
        place_of = {self.accepting.tobytes(): 0}
        while len(sets) <= count:
            found = np.logical_or.reduceat(sets[-1][self.targets], self.first_edge)
            earlier = place_of.setdefault(found.tobytes(), len(sets))
            if earlier < len(sets):  # from here on they repeat: a long text costs no more than a short one
                return sets[earlier + (count - earlier) % (len(sets) - earlier)]
            sets.append(found)
        return sets[count]

    def behind(self, new_ids: Sequence[int], remaining: int) -> "TokenAutomaton":
        """The automaton of the rows that may stand behind the tokens `new_ids` and before `remaining` more.

        Rows that it accepts can be completed: `new_ids`, the row and some `remaining` tokens are accepted by this one.
        """
        state = self.start
        for kind in self.class_of_token[torch.tensor(new_ids, dtype=torch.int64)].tolist():
            state = int(self.next_state[state, kind])
        return replace(self, start=state, accepting=self.accepting_in(remaining))

    def require_feasible(self, new_ids: Tensor, is_masked: Tensor) -> None:
        """Raises `ValueError`, with the remedy, unless `is_feasible`."""
        if self.is_feasible(new_ids, is_masked):
            return
        if not bool(is_masked.all()):
            raise ValueError(
                f"The tokens already there cannot be completed to a text that keeps to {self.description}. Mask more "
                f"of them, or loosen the constraints."
            )
        length = len(new_ids)
        others = self._feasible_lengths()
        remedy = "Loosen the constraints."
        if others:
            remedy = f"Pass `max_new_tokens={min(others, key=lambda other: abs(other - length))}`, or loosen them."
        raise ValueError(f"No text of {length} new tokens keeps to {self.description}. {remedy}")

    def allowed(self, new_ids: Tensor, is_masked: Tensor, slots: Tensor | None = None) -> Tensor:
        """The tokens that each masked slot can take while the others can still be filled to an accepted row.

        Args:
            new_ids (`torch.Tensor` of shape `(L,)`, int64): the tokens of the slots; ignored where masked.
            is_masked (`torch.Tensor` of shape `(L,)`, bool).
            slots (`torch.Tensor` of shape `(n,)`, int64, *optional*): the masked slots to say it for; by default all.

        Returns:
            `torch.Tensor` of shape `(n, V)`, bool, on the device of `new_ids`; rows in the order of `slots`.
            All False if the row cannot be completed.
        """
        classes = self._classes(new_ids, is_masked)
        wanted = [slot for slot, known in enumerate(classes) if known is None] if slots is None else slots.tolist()
        forward = self._forward(classes)
        backward = self._backward(classes, forward)
        known_answers: dict[tuple[bytes, bytes], np.ndarray] = {}  # long runs of masks ask the same again and again
        rows = np.zeros((len(wanted), self.next_state.shape[1]), dtype=bool)
        for place, slot in enumerate(wanted):
            before, after = forward[slot], backward[slot + 1] > 0
            question = before.tobytes(), after.tobytes()
            if question not in known_answers:
                known_answers[question] = after[self.next_state[before]].any(axis=0)
            rows[place] = known_answers[question]
        return torch.from_numpy(rows)[:, self.class_of_token].to(new_ids.device)

    def draw(
        self,
        logits: Tensor,
        slots: Tensor,
        new_ids: Tensor,
        is_masked: Tensor,
        u: Tensor,
        greedy: bool = False,
    ) -> Tensor:
        """Tokens for several masked slots at once, such that the row can still be completed: forward filtering,
        backward sampling over the states.

        From left to right, each slot is drawn from its own distribution times the weight of what may follow: the
        probability that the slots to its right, drawn independently, come out right. So the tokens follow the product
        of the slots' distributions given that the row can be completed; exactly, if every slot that stays masked lies
        to the right of those drawn. One in between counts as its best filling: then the weights are a guide, and only
        that the row can be completed is certain. Greedy maximizes the product of the probabilities, always exactly.

        Args:
            logits (`torch.Tensor` of shape `(2, k, V)`): of the slots to draw, as truncated for sampling, and
                untruncated. The latter count only if truncation leaves no row that can be completed, and for greedy.
            slots (`torch.Tensor` of shape `(k,)`, int64): masked slots, each once, in any order.
            new_ids (`torch.Tensor` of shape `(L,)`, int64), is_masked (`torch.Tensor` of shape `(L,)`, bool): the row
                before the draw.
            u (`torch.Tensor` of shape `(k,)`, float64): uniform in [0, 1); greedy ignores it.
            greedy (`bool`): take the most probable tokens.

        Returns:
            `torch.Tensor` of shape `(k,)`, int64, on the device of `slots`.

        Raises:
            ValueError: the row cannot be completed, or `logits` is -inf for every token that it could take.
            NonFiniteLogitsError: `logits` holds NaN or +inf.
        """
        # 1. What each token weighs, and each class of tokens, (k, C): all its tokens together, or the best.
        truncated, untruncated = logits.cpu()
        log_weights = log_probabilities(untruncated)
        if not greedy:
            log_weights = torch.logaddexp(log_probabilities(truncated), log_weights + _LOG_LAST_RESORT)
        class_weights = torch.zeros(len(slots), self.next_state.shape[1], dtype=torch.float64)
        class_weights.scatter_reduce_(
            1, self.class_of_token.expand_as(log_weights), log_weights.double().exp(), "amax" if greedy else "sum"
        )

        # 2. Right to left: what may follow in each state.
        row_of_slot = {slot: row for row, slot in enumerate(slots.tolist())}
        classes = self._classes(new_ids, is_masked)
        weights_of_slot = dict(zip(row_of_slot, class_weights.numpy(), strict=True))
        what_follows = self._backward(classes, self._forward(classes), weights_of_slot, best_only=greedy)

        # 3. Left to right: draw, and go on with the states that the draw leads to.
        tokens, u = torch.zeros(len(slots), dtype=torch.int64), u.cpu()
        states = self._only(self.start)
        for slot, known in enumerate(classes):
            if slot in row_of_slot:
                row = row_of_slot[slot]
                follows = what_follows[slot + 1][self.next_state[states]].max(axis=0)  # (C,)
                with np.errstate(divide="ignore"):  # the logarithm of 0 is meant
                    log_follows = torch.from_numpy(np.log(follows)).to(log_weights)
                scores = (log_weights[row] + log_follows[self.class_of_token]).unsqueeze(0)
                if bool(scores.amax() == -torch.inf):
                    raise ValueError(self._why_no_token(slot, bool(follows.any())))
                token = (scores.argmax(-1) if greedy else draw_token(scores, u[row : row + 1])).squeeze(0)
                tokens[row] = token
                known = int(self.class_of_token[token])
            states = self._next(states, known)
        return tokens.to(slots.device)

    def _why_no_token(self, slot: int, is_possible: bool) -> str:
        if not is_possible:
            return f"The row cannot be completed to a text that keeps to {self.description}."
        return (
            f"At new token {slot} (from 0) the logits are -inf for every token that keeps to {self.description}. "
            f"Loosen the constraints, or take out the logits processor that forbids these tokens."
        )

    def _classes(self, new_ids: Tensor, is_masked: Tensor) -> list[int | None]:
        """The class of the token at each slot, None where it is masked."""
        known = self.class_of_token[new_ids.masked_fill(is_masked, 0).cpu()].tolist()
        return [None if masked else kind for masked, kind in zip(is_masked.tolist(), known, strict=True)]

    def _only(self, state: int) -> np.ndarray:
        states = np.zeros(len(self.accepting), dtype=bool)
        states[state] = True
        return states

    def _next(self, states: np.ndarray, known: int | None) -> np.ndarray:
        """The states, (S,) bool, that a token of the class `known`, or any token at all, leads to."""
        after = np.zeros_like(states)
        after[self.targets[states[self.sources]] if known is None else self.next_state[states, known]] = True
        after[DEAD] = False
        return after

    def _forward(self, classes: Sequence[int | None]) -> list[np.ndarray]:
        """For each place between slots, L + 1 of them, the states that the slots before it can lead to, (S,) bool."""
        places = [self._only(self.start)]
        for known in classes:
            places.append(self._next(places[-1], known))
        return places

    def _backward(
        self,
        classes: Sequence[int | None],
        forward: list[np.ndarray],
        drawn: dict[int, np.ndarray] | None = None,
        best_only: bool = False,
    ) -> list[np.ndarray]:
        """For each place between slots the weight, (S,), of what may follow in each state that can be reached.

        Above 0 exactly where the row can be completed from there. Slots in `drawn` count with the weights of their
        classes, summed up (or, with `best_only`, the best one's), all other masked slots with their best filling. Each
        place is scaled to have the largest weight 1.
        """
        weights = (self.accepting & forward[-1]).astype(np.float64)
        places = [weights]
        for slot in reversed(range(len(classes))):
            known = classes[slot]
            if known is not None:
                before = weights[self.next_state[:, known]]
            else:
                before = np.maximum.reduceat(weights[self.targets], self.first_edge)
            if drawn is not None and slot in drawn:
                reached = forward[slot].nonzero()[0]
                follows = weights[self.next_state[reached]]  # (states reached, C)
                expected = (follows * drawn[slot]).max(axis=1) if best_only else follows @ drawn[slot]
                expected /= max(expected.max(initial=0.0), _TINY)
                before[reached] = np.where(before[reached] > 0, np.maximum(expected, _TINY), 0.0)
            weights = np.where(forward[slot], before, 0.0)
            weights /= max(weights.max(), _TINY)
            places.append(weights)
        return places[::-1]

    def _feasible_lengths(self) -> list[int]:
        lengths, states = [], self._only(self.start)
        for length in range(1, _LONGEST + 1):
            states = self._next(states, None)
            if (states & self.accepting).any():
                lengths.append(length)
        return lengths


def lift_to_tokens(
    characters: CharacterAutomaton,
    pieces: Sequence[str | None],
    first_pieces: Sequence[str | None],
    end_id: int | None,
    description: str,
) -> TokenAutomaton:
    """The automaton that reads tokens as `characters` reads the text they stand for.

    Args:
        characters (`CharacterAutomaton`): its alphabet holds every character of the pieces.
        pieces, first_pieces (sequences of V strings): what each token adds to the text, and what it adds as the first
            new token; None where it is never to be generated.
        end_id (`int`, *optional*): `</s>`, which may follow an accepted text, and is followed by nothing else.
        description (`str`): see `TokenAutomaton`.
    """
    num_states = len(characters.accepting)
    start, end = num_states, num_states + 1  # two states more: nothing is written yet, and `</s>` is

    # 1. A piece of text acts on all states at once: an array that holds, for each state, the one it leads to. Pieces
    #    share their beginnings, and different pieces often act alike, so there are far fewer such arrays than tokens.
    actions = [np.zeros(num_states, dtype=np.intp), np.arange(num_states)]
    nothing_accepted, no_text = 0, 1
    number_of = {action.tobytes(): number for number, action in enumerate(actions)}
    extended: dict[tuple[int, int], int] = {}

    def action_of(piece: str | None) -> int:
        number = nothing_accepted if piece is None else no_text
        for character in piece or "":
            step = (number, characters.class_of[character])
            if step not in extended:
                action = characters.next_state[actions[number], step[1]]
                extended[step] = number_of.setdefault(action.tobytes(), len(actions))
                if extended[step] == len(actions):
                    actions.append(action)
            number = extended[step]
        return number

    # 2. Tokens of the same action, and of the same effect as the first token, are one class.
    class_number: dict[tuple[int, int], int] = {(nothing_accepted, DEAD): 0}
    class_of_token = torch.zeros(len(pieces), dtype=torch.int64)
    for token, (piece, first_piece) in enumerate(zip(pieces, first_pieces, strict=True)):
        kind = action_of(piece), int(actions[action_of(first_piece)][characters.start])
        class_of_token[token] = class_number.setdefault(kind, len(class_number))
    next_state = np.zeros((num_states + 2, len(class_number) + 1), dtype=np.intp)
    for (action, after_first), number in class_number.items():
        next_state[:, number] = np.append(actions[action], [after_first, DEAD])

    # 3. `</s>` has the last class to itself.
    accepting = np.append(characters.accepting, [characters.accepting[characters.start], True])
    if end_id is not None:
        class_of_token[end_id] = len(class_number)
        next_state[accepting, -1] = end
    successors = [np.unique(row) for row in next_state]
    counts = [len(states) for states in successors]
    return TokenAutomaton(
        next_state=next_state,
        class_of_token=class_of_token,
        start=start,
        accepting=accepting,
        sources=np.repeat(np.arange(len(counts)), counts),
        targets=np.concatenate(successors),
        first_edge=np.concatenate([[0], np.cumsum(counts)[:-1]]),
        description=description,
    )
