"""Automata of characters: Python's `re` is the oracle."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_mlm.character_automaton import DEAD, RegexError, build_automaton, check_regex

ALPHABET = "ab-1 _.\nAéß²]"
quietly = settings(deadline=None, derandomize=True, database=None, max_examples=200)

texts = st.text(alphabet=ALPHABET, max_size=6)
class_items = st.sampled_from(
    ["a", "b", "-", "1", " ", "_", ".", "a-b", "0-9", "é", r"\d", r"\w", r"\s", r"\W", r"\S", r"\D", r"\]", "^", "A-b"]
)
classes = st.builds(
    lambda negated, items: f"[{negated}{''.join(items)}]",
    st.sampled_from(["", "^", "]", "^]"]),
    st.lists(class_items, min_size=1, max_size=3),
)
atoms = classes | st.sampled_from(
    [
        "a",
        "b",
        "-",
        "1",
        " ",
        r"\.",
        "_",
        ".",
        r"\d",
        r"\w",
        r"\W",
        r"\s",
        r"\n",
        "A",
        "é",
        "ß",
        "²",
        r"\xe9",
        "",
        "^",
        "$",
    ]
)
repetitions = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,2}", "{2,}", "{0}", "*?", "+?", "??"])
regexes = st.recursive(
    atoms,
    lambda inner: (
        st.builds("{}{}".format, inner, inner)
        | st.builds("(?:{}|{})".format, inner, inner)
        | st.builds("({})".format, inner)
        | st.builds("(?{}:{})".format, st.sampled_from(["i", "s", "a", "-i"]), inner)
        | st.builds("(?:{}){}".format, inner, repetitions)
    ),
    max_leaves=8,
)


def is_valid(regex: str) -> bool:
    try:
        re.compile(regex)
    except re.error:  # such as a range from high to low
        return False
    return True


@quietly
@given(regexes.filter(is_valid), st.sampled_from(["", "(?i)", "(?s)", "(?a)"]), st.lists(texts, max_size=30))
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Possible")
def test_it_accepts_what_fullmatch_accepts(regex, flags, examples):
    automaton = build_automaton([(flags + regex, True)], ALPHABET)
    pattern = re.compile(flags + regex)
    for text in examples:
        if "$" in regex and "\n" in text:
            continue  # in `re`, `$` also matches before a newline at the end; here it is the very end
        assert automaton.accepts(text) == bool(pattern.fullmatch(text))


@settings(quietly, max_examples=100)
@given(
    st.lists(st.tuples(regexes.filter(is_valid).filter(lambda regex: "$" not in regex), st.booleans()), max_size=3),
    st.lists(texts, max_size=30),
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Possible")
def test_several_expressions_hold_together(languages, examples):
    automaton = build_automaton(languages, ALPHABET)
    for text in examples:
        assert automaton.accepts(text) == all(bool(re.fullmatch(regex, text)) == must for regex, must in languages)


def test_a_character_outside_the_alphabet_is_never_accepted():
    automaton = build_automaton([(".*", True)], "ab")
    assert automaton.accepts("ab") and not automaton.accepts("abc")


def test_an_expression_that_nothing_matches_starts_dead():
    assert build_automaton([("a", True), ("a", False)], "ab").start == DEAD
    assert build_automaton([("c", True)], "ab").start == DEAD
    assert build_automaton([("a$b", True)], "ab").start == DEAD


@pytest.mark.parametrize(
    ("regex", "num_states"),
    [("(?:a|b)*a(?:a|b){2}", 8), ("a{3}|b{3}", 6), ("[ab]*", 1), ("(?:ab|ba)*", 3), ("", 1)],
)
def test_the_automaton_has_the_fewest_states_possible(regex, num_states):
    """Known minimal sizes; the dead state comes on top, and has number 0."""
    automaton = build_automaton([(regex, True)], "ab")
    assert len(automaton.accepting) == 1 + num_states
    assert (automaton.next_state[DEAD] == DEAD).all() and not automaton.accepting[DEAD]


def test_an_empty_alphabet_leaves_the_empty_text():
    assert build_automaton([("a*", True)], "").accepts("")
    assert not build_automaton([("a+", True)], "").accepts("")


@pytest.mark.parametrize(
    ("regex", "reason"),
    [
        ("(a", "unterminated subpattern at position 0"),
        ("[z-a]", "bad character range"),
        (r"\p{L}", "bad escape"),
        (r"\bcat\b", r"word boundary \\b"),
        (r"a\Bb", r"non-boundary \\B"),
        ("a(?=b)", "lookahead or lookbehind"),
        ("(?<!a)b", "lookahead or lookbehind"),
        (r"(a)\1", "a reference back to a group"),
        (r"(?i)(a)\1", "a reference back to a group"),
        ("(a)?(?(1)b|c)", "a conditional group"),
        ("a++", "a possessive repetition"),
        ("(?>a|ab)c", "an atomic group"),
        ("(?m)^a$", "at each line"),
        ("(?:a{1000}){1000}", "too large"),
        ("(" * 5000 + ")" * 5000, "nested too deeply"),
    ],
)
def test_what_no_automaton_can_follow_is_refused_with_the_reason(regex, reason):
    with pytest.raises(RegexError, match=reason):
        check_regex(regex)


def test_an_automaton_that_would_be_too_large_is_refused():
    with pytest.raises(RegexError, match="more than 20,000 states"):
        build_automaton([("[ab]*a[ab]{20}", True)], "ab")
