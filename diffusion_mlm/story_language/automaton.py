"""From the grammar to one finite automaton, and the exact numbers that follow from it.

A story is a path from the start (which emits `<s>`) to the end (which emits `</s>` for ever). Each state in between
emits one token: from a free slot, drawn anew each time, or from a form of a variable, such as (hero, possessive).

Why inference runs over the automaton once, not once per setting of the variables. Let X be the variables, z a path.

1. p(z) does not depend on X, and a tied state emits f(X) with certainty, so p(text, z, X) = p(z) p(X) times the free
   emissions, if every tied token agrees with X, else 0.
2. A tied token belongs to one variable only, to no free slot, and has the same preimage under every form that emits
   it; so which values of X the visible tokens allow can be read off the tokens, whatever the path.
3. Hence p(visible) = [sum over z with emission 1 for tied tokens] * product over variables of P(X in allowed set), and
   the posterior is a product: one factor over paths, one for each variable. `Automaton` refuses what breaks 2.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .grammar import Node

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # RoBERTa's, with RoBERTa's ids
BOS_ID, PAD_ID, EOS_ID, UNK_ID, MASK_ID = range(5)

_TEMPLATE_TOKEN = re.compile(r" ?(?:\{\w+\}|[A-Za-z]+|[^\sA-Za-z{]+)")
_TEXT_TOKEN = re.compile(r" ?[A-Za-z]+| ?[^\sA-Za-z]+")  # the byte-level rule of GPT-2 for this alphabet


def split_text(text: str) -> list[str]:
    """Tokens of a text, each with the space on its left; joined they give back " " + text if the spacing is ours."""
    return _TEXT_TOKEN.findall(" " + text)


@dataclass(frozen=True)
class Slot:
    """What a state may emit. `variable` and `form` are empty for a free slot; then `probabilities` matter."""

    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]
    variable: str = ""
    form: str = ""


@dataclass(frozen=True)
class Edge:
    source: int
    target: int
    probability: float


def _ranked(count: int) -> tuple[float, ...]:
    weights = [1.0 / (rank + 5) for rank in range(count)]
    return tuple(weight / math.fsum(weights) for weight in weights)


class Automaton:
    """The compiled grammar. States are numbered in topological order: 0 is the start, the last one the end.

    Args:
        story: the grammar's root, see `grammar.py` for the notation.
        slots: words of every free slot, the likeliest first, separated by spaces.
        variables: values of every variable, each a mapping from form to word.

    Raises:
        ValueError: if a slot is unknown, unused or repeats a word, if a word is both free and tied, if a tied word
            does not stand for the same values in all forms of one variable, if a path leaves a variable untold, or if
            two paths can give the same text.
    """

    def __init__(self, story: Node, slots: Mapping[str, str], variables: Mapping[str, Sequence[Mapping[str, str]]]):
        self.variables = variables
        self._words = {name: words.split() for name, words in slots.items()}
        self._variable_of_form = {form: name for name, values in variables.items() for form in values[0]}
        self._used: set[str] = set()
        self.states: list[Slot] = [Slot((SPECIAL_TOKENS[BOS_ID],), (1.0,))]
        self.edges: list[Edge] = []
        heads = self._build(story, [(0, 1.0)])
        self.end = len(self.states)
        self.states.append(Slot((SPECIAL_TOKENS[EOS_ID],), (1.0,)))
        self.edges += [Edge(source, self.end, probability) for source, probability in heads]
        self.successors: list[list[tuple[int, float]]] = [[] for _ in self.states]
        for edge in self.edges:
            self.successors[edge.source].append((edge.target, edge.probability))
        words = {token for slot in self.states[1:-1] for token in slot.tokens}
        self.vocabulary = SPECIAL_TOKENS + tuple(sorted(words))
        self.id_of = {token: index for index, token in enumerate(self.vocabulary)}
        self._check_slots()
        self.values_of = self._check_tied_words()
        self._likelihood = [
            dict.fromkeys(slot.tokens, 1.0)
            if slot.variable
            else dict(zip(slot.tokens, slot.probabilities, strict=True))
            for slot in self.states
        ]
        self._check_every_variable_is_told()
        self._check_one_path_per_text()

    # --- compiling ---------------------------------------------------------------------------------------------------

    def _build(self, node: Node, heads: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """Adds the states of `node` behind the dangling edges `heads` (state, probability); returns the new ones."""
        if isinstance(node, str):
            for token in _TEMPLATE_TOKEN.findall(" " + node):
                self.states.append(self._slot(token))
                new = len(self.states) - 1
                self.edges += [Edge(source, new, probability) for source, probability in heads]
                heads = [(new, 1.0)]
            return heads
        if isinstance(node, tuple):
            for part in node:
                heads = self._build(part, heads)
            return heads
        branches = zip(node, _ranked(len(node)), strict=True)
        return [head for part, p in branches for head in self._build(part, [(state, q * p) for state, q in heads])]

    def _slot(self, token: str) -> Slot:
        space, word = (" ", token[1:]) if token.startswith(" ") else ("", token)
        if not word.startswith("{"):
            return Slot((token,), (1.0,))
        name = word[1:-1]
        self._used.add(name)
        if name in self._variable_of_form:
            variable = self._variable_of_form[name]
            values = [space + value[name] for value in self.variables[variable]]
            tokens = tuple(dict.fromkeys(values))
            return Slot(tokens, tuple(values.count(t) / len(values) for t in tokens), variable, name)
        if name not in self._words:
            raise ValueError(
                f"`story` uses the slot {name!r}, which is in neither `slots` nor `variables`; define it."
            )
        words = self._words[name]
        return Slot(tuple(space + word for word in words), _ranked(len(words)))

    # --- checks ------------------------------------------------------------------------------------------------------

    def _check_slots(self) -> None:
        unused = sorted((set(self._words) | set(self._variable_of_form)) - self._used)
        if unused:
            raise ValueError(f"`slots` or `variables` define {unused}, which `story` never uses; remove them.")
        for name, words in self._words.items():
            if not words or len(set(words)) < len(words):
                raise ValueError(f"`slots` must list distinct words under {name!r}, got {words}.")

    def _check_tied_words(self) -> dict[str, tuple[str, frozenset[int]]]:
        """Tied token -> (its variable, the values that it stands for)."""
        found: dict[str, tuple[str, frozenset[int]]] = {}
        for slot in self.states:
            for token in slot.tokens if slot.variable else ():
                values = self.variables[slot.variable]
                preimage = frozenset(i for i, value in enumerate(values) if value[slot.form] == token.strip())
                if found.setdefault(token, (slot.variable, preimage)) != (slot.variable, preimage):
                    raise ValueError(f"`variables` give {token.strip()!r} two meanings; every form must use it alike.")
        for slot in self.states:
            shared = sorted(set(slot.tokens) & set(found)) if not slot.variable else []
            if shared:
                raise ValueError(f"`slots` or templates emit {shared}, which belong to `variables`; rename them.")
        return found

    def _check_every_variable_is_told(self) -> None:
        """Every path must name every variable in full: then texts and (path, values) correspond one to one."""
        for variable, values in self.variables.items():
            open_states = {0}  # states reached without having told the variable
            for state, slot in enumerate(self.states):
                told = slot.variable == variable and len(slot.tokens) == len(values)
                if state in open_states and not told:
                    open_states.update(target for target, _ in self.successors[state])
            if self.end in open_states:
                raise ValueError(
                    f"`story` has a path that never tells which {variable!r} it is about; name it on all."
                )

    def _check_one_path_per_text(self) -> None:
        """Two different paths may not emit the same text: look for a pair of states reached, and left, together."""
        tokens = [frozenset(slot.tokens) for slot in self.states]
        reached, frontier = {(0, 0)}, [(0, 0)]
        before: dict[tuple[int, int], list[tuple[int, int]]] = {}
        while frontier:
            pair = frontier.pop()
            for left, _ in self.successors[pair[0]]:
                for right, _ in self.successors[pair[1]]:
                    if tokens[left] & tokens[right]:
                        before.setdefault((left, right), []).append(pair)
                        if (left, right) not in reached:
                            reached.add((left, right))
                            frontier.append((left, right))
        finishing, frontier = {(self.end, self.end)}, [(self.end, self.end)]
        while frontier:
            for pair in before.get(frontier.pop(), []):
                if pair not in finishing:
                    finishing.add(pair)
                    frontier.append(pair)
        for left, right in finishing:
            if left != right:
                shared = sorted(tokens[left] & tokens[right])
                raise ValueError(
                    f"`story` can tell the same text in two ways (both say {shared}); reword one of them."
                )

    # --- exact numbers -----------------------------------------------------------------------------------------------

    def visits(self) -> list[float]:
        """Expected number of visits to each state in one story; the end counts once."""
        visits = [1.0] + [0.0] * self.end
        for state in range(self.end):
            for target, probability in self.successors[state]:
                visits[target] += visits[state] * probability
        return visits

    def log_prob(self, text: str) -> float:
        """log p(text) in nats, the end included; -inf if the grammar cannot produce the text, be it for one space.

        The forward algorithm over the few states that a text can be in; `Inference` does it for rows with masks.
        """
        tokens = split_text(text)
        if "".join(tokens) != " " + text:
            return -math.inf
        weights, log_p = {0: 1.0}, 0.0
        for token in [*tokens, SPECIAL_TOKENS[EOS_ID]]:
            arriving: dict[int, float] = {}
            for state, weight in weights.items():
                for target, probability in self.successors[state]:
                    arriving[target] = arriving.get(target, 0.0) + weight * probability
            weights = {z: w * self._likelihood[z][token] for z, w in arriving.items() if token in self._likelihood[z]}
            total = math.fsum(weights.values())
            if total == 0.0:
                return -math.inf
            weights = {state: weight / total for state, weight in weights.items()}
            log_p += math.log(total)
        for variable, values in self.variables.items():
            allowed = set(range(len(values)))
            for token in tokens:
                owner, preimage = self.values_of.get(token, ("", frozenset()))
                allowed &= preimage if owner == variable else allowed
            if not allowed:
                return -math.inf
            log_p += math.log(len(allowed) / len(values))
        return log_p

    def expected_tokens(self) -> float:
        """Mean number of tokens of a story, its one `</s>` included and `<s>` not."""
        return math.fsum(self.visits()[1:])

    def entropy(self) -> float:
        """Entropy of a story in nats: branches, free slots, and the variables; exact because no text has two paths."""
        total = [math.log(len(values)) for values in self.variables.values()]
        for visits, slot, successors in zip(self.visits(), self.states, self.successors, strict=True):
            choices = [] if slot.variable else list(slot.probabilities)
            total += [-visits * p * math.log(p) for p in choices + [p for _, p in successors]]
        return math.fsum(total)

    def number_of_stories(self) -> int:
        """How many different stories there are, exactly."""
        ways = [1] + [0] * self.end
        for state, slot in enumerate(self.states):
            ways[state] *= 1 if slot.variable else len(slot.tokens)
            for target, _ in self.successors[state]:
                ways[target] += ways[state]
        return ways[self.end] * math.prod(len(values) for values in self.variables.values())

    def length_range(self, words_only: bool = False) -> tuple[int, int]:
        """Least and greatest number of tokens of a story (of words, if `words_only`), `<s>` and `</s>` not counted."""
        least, greatest = [0] + [10**9] * self.end, [0] * (self.end + 1)
        for state in range(self.end):
            for target, _ in self.successors[state]:
                counts = target != self.end and (self.states[target].tokens[0].strip().isalpha() or not words_only)
                least[target] = min(least[target], least[state] + counts)
                greatest[target] = max(greatest[target], greatest[state] + counts)
        return least[self.end], greatest[self.end]
