"""From regular expressions to a finite automaton: a table that says, for each state and character, the next state.

Python's own parser reads the expressions, and `re` itself says which characters a class holds, so that `[^\\W\\d]`
and `(?i:ß)` mean here what they mean there. The rest is the textbook's: Thompson's construction makes a network of
nodes for each expression, the subset construction turns them into one deterministic automaton, which is minimized.
Several expressions are read side by side, each of which a text must match or must not match.

Sources: Thompson 1968, doi:10.1145/363347.363387; Rabin and Scott 1959, doi:10.1147/rd.32.0114.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from re import _parser  # type: ignore[attr-defined]  # not public, yet the same since Python 3.11 (hypothesis uses it too)
from typing import Any

import numpy as np

DEAD = 0  # the state from which no text is accepted any more

_MAX_NODES, _MAX_STATES = 50_000, 20_000
_CHARACTER_FLAGS = int(re.IGNORECASE | re.DOTALL | re.ASCII)  # what decides which characters a class holds
_CLASSES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_START, _END = ("AT_BEGINNING", "AT_BEGINNING_STRING"), ("AT_END", "AT_END_STRING")
# Parts of `re` that no finite automaton can follow (references), or that these leave out.
_UNSUPPORTED = {
    "ASSERT": "lookahead or lookbehind",
    "ASSERT_NOT": "lookahead or lookbehind",
    "GROUPREF": "a reference back to a group",
    "GROUPREF_IGNORE": "a reference back to a group",
    "GROUPREF_EXISTS": "a conditional group",
    "ATOMIC_GROUP": "an atomic group",
    "POSSESSIVE_REPEAT": "a possessive repetition",
    "AT_BOUNDARY": r"the word boundary \b",
    "AT_NON_BOUNDARY": r"the non-boundary \B",
}


class RegexError(ValueError):
    """A regular expression that `re` refuses, or that no automaton of reasonable size can follow. Says why."""


@dataclass(frozen=True, eq=False)
class CharacterAutomaton:
    """A deterministic automaton that reads characters.

    Args:
        class_of (`dict[str, int]`): the class of each character of the alphabet; all of a class act alike.
        next_state (`numpy.ndarray` of shape `(states, classes)`): state 0 is `DEAD`.
        start (`int`): where reading begins; `DEAD` if there is no text to accept.
        accepting (`numpy.ndarray` of shape `(states,)`, bool): whether a text may end here.
    """

    class_of: dict[str, int]
    next_state: np.ndarray
    start: int
    accepting: np.ndarray

    def accepts(self, text: str) -> bool:
        """Whether it accepts `text`; never with a character outside the alphabet."""
        state = self.start
        for character in text:
            state = self.next_state[state, self.class_of[character]] if character in self.class_of else DEAD
        return bool(self.accepting[state])


@dataclass
class _Network:
    """Nodes and the ways between them. A way either needs a character of one of the `leaves`, or is free."""

    leaves: dict[tuple[str, int], int] = field(default_factory=dict)  # (class as a regex, flags) -> number
    steps: list[list[tuple[int, int]]] = field(default_factory=list)  # per node: (leaf, node behind it)
    free: list[list[int]] = field(default_factory=list)
    free_at_start: list[list[int]] = field(default_factory=list)
    free_at_end: list[list[int]] = field(default_factory=list)

    def add_node(self) -> int:
        if len(self.steps) == _MAX_NODES:
            raise RegexError("it is too large, because of its counted repetitions: lower the counts, or use * and +")
        for ways in (self.steps, self.free, self.free_at_start, self.free_at_end):
            ways.append([])
        return len(self.steps) - 1

    def add_regex(self, regex: str) -> tuple[int, int]:
        """Adds a network for `regex`, and says the node to enter it and the node where a match is complete."""
        try:
            parsed = _parser.parse(regex)
            start = self.add_node()
            return start, self._add(parsed, parsed.state.flags, start)
        except (re.error, OverflowError) as error:
            raise RegexError(f"{error}") from error
        except RecursionError as error:
            raise RegexError("its groups are nested too deeply") from error

    def _add(self, parts: Iterable[tuple[Any, Any]], flags: int, node: int) -> int:
        """Adds `parts`, one behind the other, from `node` on, and returns the node behind the last one."""
        for operation, argument in parts:
            match str(operation):
                case "LITERAL":
                    node = self._add_step(_escaped(argument), flags, node)
                case "NOT_LITERAL":
                    node = self._add_step(f"[^{_escaped(argument)}]", flags, node)
                case "ANY":
                    node = self._add_step(".", flags, node)
                case "IN":
                    node = self._add_step(_class_as_regex(argument), flags, node)
                case "SUBPATTERN":
                    _, added, removed, inner = argument
                    node = self._add(inner, (flags | added) & ~removed, node)
                case "BRANCH":
                    behind = self.add_node()
                    for inner in argument[1]:
                        self.free[self._add(inner, flags, node)].append(behind)
                    node = behind
                case "MAX_REPEAT" | "MIN_REPEAT":  # greedy and lazy ones match the same texts
                    least, most, inner = argument
                    node = self._add_repetition(least, most, inner, flags, node)
                case "AT" if str(argument) in _START + _END and not flags & re.MULTILINE:
                    behind = self.add_node()
                    conditional = self.free_at_start if str(argument) in _START else self.free_at_end
                    conditional[node].append(behind)
                    node = behind
                case name:
                    reason = _UNSUPPORTED.get(str(argument) if name == "AT" else name, "^ or $ at each line")
                    raise RegexError(f"it uses {reason}, which constraints do not support")
        return node

    def _add_step(self, leaf: str, flags: int, node: int) -> int:
        behind = self.add_node()
        number = self.leaves.setdefault((leaf, flags & _CHARACTER_FLAGS), len(self.leaves))
        self.steps[node].append((number, behind))
        return behind

    def _add_repetition(self, least: int, most: int, inner: Any, flags: int, node: int) -> int:
        for _ in range(least):
            node = self._add(inner, flags, node)
        if most == _parser.MAXREPEAT:
            hub = self.add_node()
            self.free[node].append(hub)
            self.free[self._add(inner, flags, hub)].append(hub)
            return hub
        behind = self.add_node()
        for _ in range(most - least):
            self.free[node].append(behind)
            node = self._add(inner, flags, node)
        self.free[node].append(behind)
        return behind

    def reachable(self, nodes: Iterable[int], *ways: list[list[int]]) -> frozenset[int]:
        """The `nodes` and all that free ways lead to, from there on and on."""
        found, waiting = set(nodes), list(nodes)
        while waiting:
            node = waiting.pop()
            for behind in (behind for way in ways for behind in way[node]):
                if behind not in found:
                    found.add(behind)
                    waiting.append(behind)
        return frozenset(found)


def check_regex(regex: str) -> None:
    """Raises `RegexError` unless an automaton can follow `regex`."""
    _Network().add_regex(regex)


def build_automaton(languages: Sequence[tuple[str, bool]], alphabet: Iterable[str]) -> CharacterAutomaton:
    """The automaton of all texts over `alphabet` that keep to all of `languages`.

    Args:
        languages: pairs of a regular expression and whether the text must match it, as in `re.fullmatch`, or must not.
            `^` and `$` mean the very start and end.
        alphabet (`Iterable[str]`): the characters that texts consist of.

    Raises:
        RegexError: see `check_regex`; or the automaton would need more than 20,000 states.

    >>> automaton = build_automaton([("[ab]*", True), (".*bb.*", False)], "abc")
    >>> [text for text in ("", "abab", "abba", "abc") if automaton.accepts(text)]
    ['', 'abab']
    """
    # 1. A network for each expression; a text is read in all of them at once.
    network = _Network()
    entries, exits = zip(*(network.add_regex(regex) for regex, _ in languages), strict=True) if languages else ((), ())
    wanted = [must_match for _, must_match in languages]

    # 2. Characters that lie in the same leaves act alike: they are one class.
    characters = "".join(sorted(set(alphabet)))
    members = np.zeros((1 + len(network.leaves), len(characters)), dtype=bool)  # one row more, for no leaves at all
    for (leaf, flags), number in network.leaves.items():
        found = set(re.compile(leaf, flags).findall(characters))
        members[number] = [character in found for character in characters]
    kinds, class_of = np.unique(members, axis=1, return_inverse=True)
    classes_of_leaf = [row.nonzero()[0].tolist() for row in kinds]

    # 3. A state is a set of nodes for each expression: where in its network the text read so far may have led. One
    #    with an empty set where a match is wanted is dead.
    may_end = [network.reachable([node], network.free, network.free_at_end) for node in range(len(network.steps))]
    closure = [network.reachable([node], network.free) for node in range(len(network.steps))]
    start = tuple(network.reachable([entry], network.free, network.free_at_start) for entry in entries)
    number_of: dict[tuple[frozenset[int], ...], int] = {start: 1}
    rows, accepting = [[DEAD] * kinds.shape[1]], [False]
    waiting = [start]  # in the order of their numbers
    for sets in waiting:
        ends = (any(exit in may_end[node] for node in nodes) for exit, nodes in zip(exits, sets, strict=True))
        accepting.append(all(end == must for end, must in zip(ends, wanted, strict=True)))
        reached: list[list[set[int]]] = [[set() for _ in sets] for _ in range(kinds.shape[1])]
        for place, nodes in enumerate(sets):
            for read, behind in (step for node in nodes for step in network.steps[node]):
                for character_class in classes_of_leaf[read]:
                    reached[character_class][place] |= closure[behind]
        row = []
        for after in reached:
            if any(must and not nodes for must, nodes in zip(wanted, after, strict=True)):
                row.append(DEAD)
                continue
            key = tuple(map(frozenset, after))
            if key not in number_of:
                if len(number_of) == _MAX_STATES:
                    raise RegexError(f"together they need more than {_MAX_STATES:,} states of a finite automaton")
                number_of[key] = len(number_of) + 1
                waiting.append(key)
            row.append(number_of[key])
        rows.append(row)
    return _minimized(
        CharacterAutomaton(
            class_of=dict(zip(characters, class_of.tolist(), strict=True)),
            next_state=np.array(rows, dtype=np.intp),
            start=1,
            accepting=np.array(accepting),
        )
    )


def _minimized(automaton: CharacterAutomaton) -> CharacterAutomaton:
    """The automaton of the same texts with the fewest states. Source: Moore 1956, doi:10.1515/9781400882618-006.

    States begin as two blocks, accepting or not, and blocks are split as long as two states of one block go to
    different blocks. Those from which nothing can be accepted any more end up in the block of `DEAD`.
    """
    block, num_blocks = automaton.accepting.astype(np.intp), 0
    while True:
        ways = np.column_stack([block, block[automaton.next_state]])
        _, one_of, split = np.unique(ways, axis=0, return_index=True, return_inverse=True)
        is_final = len(one_of) == num_blocks
        block, num_blocks = split, len(one_of)
        if is_final:
            break
    one_of = np.roll(one_of, -block[DEAD])
    block = (block - block[DEAD]) % num_blocks  # `DEAD` keeps its number
    return CharacterAutomaton(
        class_of=automaton.class_of,
        next_state=block[automaton.next_state[one_of]],
        start=int(block[automaton.start]),
        accepting=automaton.accepting[one_of],
    )


def _escaped(code_point: int) -> str:
    return rf"\U{code_point:08x}"


def _class_as_regex(items: Iterable[tuple[Any, Any]]) -> str:
    """The regular expression of a parsed character class such as `[^a-z_]`."""
    parts = []
    for operation, argument in items:
        match str(operation):
            case "NEGATE":
                parts.append("^")
            case "LITERAL":
                parts.append(_escaped(argument))
            case "RANGE":
                parts.append(f"{_escaped(argument[0])}-{_escaped(argument[1])}")
            case _:
                parts.append(_CLASSES[str(argument)])
    return f"[{''.join(parts)}]"
