"""Automata of tokens: on tiny vocabularies every filling of a row can be tried, so the truth is known."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_mlm.character_automaton import build_automaton
from diffusion_mlm.randomness import uniform
from diffusion_mlm.sampling import NonFiniteLogitsError, Sampling
from diffusion_mlm.sampling import draw as draw_token
from diffusion_mlm.token_automaton import TokenAutomaton, lift_to_tokens

PIECES = ["a", "b", " ", "ab", " a", None]  # the last is never generated
FIRST_PIECES = ["a", "b", "", "ab", "a", None]  # a decoder that drops the space at the very start
END, VOCABULARY = 5, 6
LANGUAGES = {
    "regex": [("[ab]+( [ab]+)*", True)],
    "banned": [(r"(?:.*\W)?ab(?:\W.*)?", False)],
    "allowed": [(r"\W*(?:(?:a|bab)(?: +(?:a|bab))*\W*)?", True)],
    "combined": [("(?:[ab ]{2})*", True), (".*bb.*", False), (".*a.*", True)],
}
quietly = settings(deadline=None, derandomize=True, database=None, max_examples=150)


def automaton(languages: list[tuple[str, bool]], has_end: bool = False) -> TokenAutomaton:
    return lift_to_tokens(
        build_automaton(languages, "ab "), PIECES, FIRST_PIECES, END if has_end else None, "the test's constraint"
    )


def text_of(ids: list[int]) -> str:
    first, *others = ids or [2]
    return (FIRST_PIECES[first] or "") + "".join(PIECES[token] or "" for token in others)


def keeps_to(languages: list[tuple[str, bool]], ids: list[int], has_end: bool = False) -> bool:
    """The definition: the text up to the first end, behind which there is nothing else."""
    if has_end and END in ids:
        length = ids.index(END)
        if any(token != END for token in ids[length:]):
            return False
        ids = ids[:length]
    if END in ids:
        return False
    return all(bool(re.fullmatch(regex, text_of(ids))) == must for regex, must in languages)


def fillings(languages, ids: list[int], masked: list[bool], has_end: bool = False) -> list[tuple[int, ...]]:
    """All rows that keep to the languages and agree with the visible tokens."""
    choices = [range(VOCABULARY) if hidden else [token] for token, hidden in zip(ids, masked, strict=True)]
    return [row for row in itertools.product(*choices) if keeps_to(languages, list(row), has_end)]


@st.composite
def rows(draw) -> tuple[list[int], list[bool]]:
    length = draw(st.integers(1, 4))
    ids = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=length, max_size=length))
    return ids, draw(st.lists(st.booleans(), min_size=length, max_size=length))


languages = st.sampled_from(sorted(LANGUAGES)).map(LANGUAGES.__getitem__)


@quietly
@given(languages, rows(), st.booleans())
def test_allowed_is_what_enumeration_finds(languages, row, has_end):
    ids, masked = row
    found = fillings(languages, ids, masked, has_end)
    expected = torch.zeros(len(ids), VOCABULARY, dtype=torch.bool)
    for filling in found:
        expected[torch.arange(len(ids)), torch.tensor(filling)] = True
    token_automaton = automaton(languages, has_end)
    new_ids, is_masked = torch.tensor(ids), torch.tensor(masked)
    assert torch.equal(token_automaton.allowed(new_ids, is_masked), expected[is_masked])
    assert token_automaton.is_feasible(new_ids, is_masked) == bool(found)
    some = is_masked.nonzero().squeeze(-1).flip(0)[:2]
    assert torch.equal(token_automaton.allowed(new_ids, is_masked, some), expected[some])


@quietly
@given(
    languages,
    st.booleans(),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=2),
    st.integers(1, 2),
    st.integers(0, 2),
)
def test_a_window_is_accepted_exactly_if_what_is_left_can_still_be_written(
    languages, has_end, before, size, remaining
):
    """Tokens before, a window, and tokens behind it: against all fillings of the whole."""
    window = automaton(languages, has_end).behind(before, remaining)
    free = size + remaining
    wholes = fillings(languages, before + [0] * free, [False] * len(before) + [True] * free, has_end)
    completable = {row[len(before) : len(before) + size] for row in wholes}
    nothing_masked = torch.zeros(size, dtype=torch.bool)
    for row in itertools.product(range(VOCABULARY), repeat=size):
        assert window.is_feasible(torch.tensor(row), nothing_masked) == (row in completable)


@pytest.mark.parametrize("has_end", (False, True))
@pytest.mark.parametrize("name", sorted(LANGUAGES))
def test_a_text_written_in_windows_is_accepted_as_a_whole(name, has_end):
    """Each window is drawn knowing only the automaton behind what was written; up to 60 tokens in all."""
    whole = automaton(LANGUAGES[name], has_end)
    for case in range(60):
        length, stride = case + 1, case % 7 + 1
        if not whole.can_be_filled(length):
            continue
        ids: list[int] = []
        while len(ids) < length:
            size = min(stride, length - len(ids))
            logits, u = random_logits(case * 100 + len(ids), size, size=5.0), uniform(torch.tensor(len(ids)), size)
            row = torch.zeros(size, dtype=torch.int64), torch.ones(size, dtype=torch.bool)
            window = whole.behind(ids, length - len(ids) - size)
            ids += window.draw(torch.stack([logits, logits]), torch.arange(size), *row, u).tolist()
        assert keeps_to(LANGUAGES[name], ids, has_end), ids


@quietly
@given(languages, st.booleans(), st.integers(0, 40))
def test_lengths_that_can_be_filled_are_those_that_reading_finds(languages, has_end, length):
    """The quick answer, which skips over what repeats, against a walk through all of them."""
    token_automaton = automaton(languages, has_end)
    everything = torch.ones(length, dtype=torch.bool)
    assert token_automaton.can_be_filled(length) == token_automaton.is_feasible(torch.zeros(length).long(), everything)


def test_a_row_of_any_length_has_one_token_or_more():
    assert (
        automaton([("[ab]{7}", True)]).can_be_filled() and not automaton([("c*", True), ("", False)]).can_be_filled()
    )
    only_empty = lift_to_tokens(build_automaton([("", True)], "ab "), PIECES, PIECES, None, "the test's constraint")
    assert only_empty.can_be_filled(0) and not only_empty.can_be_filled()


def random_logits(key: int, rows: int, size: float) -> Tensor:
    u = uniform(torch.tensor([key]), rows * VOCABULARY).view(rows, VOCABULARY)
    return (size * (2 * u - 1)).float()


@pytest.mark.parametrize("name", sorted(LANGUAGES))
def test_what_is_drawn_is_accepted_in_a_thousand_random_cases(name):
    """Rows of up to 9 slots, filled in random order, some slots at a time, from wild and from nearly tied logits."""
    languages, token_automaton = LANGUAGES[name], automaton(LANGUAGES[name], has_end=True)
    for case in range(1000):
        length = case % 9 + 1
        new_ids, is_masked = torch.zeros(length, dtype=torch.int64), torch.ones(length, dtype=torch.bool)
        if not token_automaton.is_feasible(new_ids, is_masked):
            continue
        order = uniform(torch.tensor(case), length).argsort()
        for step, slots in enumerate(order.split(case % 3 + 1)):
            logits = random_logits(case * 100 + step, len(slots), size=(0.1, 5.0, 400.0)[case % 3])
            both = torch.stack([Sampling(top_p=0.5).filtered(logits), logits])
            u = uniform(torch.tensor(case * 100 + step), len(slots))
            new_ids[slots] = token_automaton.draw(both, slots, new_ids, is_masked, u, greedy=case % 4 == 3)
            is_masked[slots] = False
        assert keeps_to(languages, new_ids.tolist(), has_end=True), new_ids


def frequencies(token_automaton: TokenAutomaton, logits: Tensor, slots: Tensor, length: int, draws: int) -> dict:
    """How often each tuple of tokens comes out, with a lattice of numbers instead of random ones for the first."""
    new_ids, is_masked = torch.zeros(length, dtype=torch.int64), torch.ones(length, dtype=torch.bool)
    found: dict[tuple[int, ...], int] = {}
    for number in range(draws):
        u = uniform(torch.tensor(number), len(slots))
        u[0] = (number + 0.5) / draws
        tokens = tuple(token_automaton.draw(torch.stack([logits, logits]), slots, new_ids, is_masked, u).tolist())
        found[tokens] = found.get(tokens, 0) + 1
    return found


@pytest.mark.parametrize("name", sorted(LANGUAGES))
def test_a_single_masked_slot_follows_the_renormalized_distribution(name):
    """The lattice of u has 1,000 points, so each frequency is exact to one of them."""
    logits = random_logits(1, 1, size=2.0)
    new_ids, is_masked = torch.tensor([0, 0, 2, 0]), torch.tensor([False, False, False, True])
    token_automaton = automaton(LANGUAGES[name])
    allowed = token_automaton.allowed(new_ids, is_masked)
    if not allowed.any():
        new_ids = torch.tensor([0, 2, 1, 0])
        allowed = token_automaton.allowed(new_ids, is_masked)
    expected = torch.softmax(logits.masked_fill(~allowed, -math.inf), dim=-1)[0]
    counts = torch.zeros(VOCABULARY)
    for number in range(1000):
        u = torch.tensor([(number + 0.5) / 1000], dtype=torch.float64)
        counts[token_automaton.draw(torch.stack([logits, logits]), torch.tensor([3]), new_ids, is_masked, u)] += 1
    assert (counts - 1000 * expected).abs().max() <= 1.01


@pytest.mark.parametrize("name", sorted(LANGUAGES))
@pytest.mark.parametrize("num_masked", (0, 1))
def test_slots_drawn_together_follow_the_product_given_that_the_row_can_be_completed(name, num_masked):
    """Against enumeration, with all slots drawn, or all but the last. Chi-square; its 0.1 % quantile is about
    df + 3.1 * sqrt(2 * df) + 7 for these df."""
    length, draws = 3 + num_masked, 1500
    logits = random_logits(2, 3, size=1.5)
    probs = torch.softmax(logits.double(), dim=-1)
    rows = fillings(LANGUAGES[name], [0] * length, [True] * length)
    heads = sorted({row[:3] for row in rows})
    weights = torch.tensor([math.prod(probs[place, token] for place, token in enumerate(head)) for head in heads])
    expected = weights / weights.sum() * draws
    found = frequencies(automaton(LANGUAGES[name]), logits, torch.arange(3), length, draws)
    assert set(found) <= set(heads)
    counts = torch.tensor([float(found.get(head, 0)) for head in heads])
    usual = expected > 5
    chi_square = float((((counts - expected) ** 2) / expected)[usual].sum())
    df = int(usual.sum())
    assert chi_square < df + 3.1 * math.sqrt(2 * df) + 7
    assert abs(float(counts[~usual].sum() - expected[~usual].sum())) < 5 + 4 * math.sqrt(float(expected[~usual].sum()))


@quietly
@given(languages, rows(), st.integers(0, 10**6), st.data())
def test_greedy_finds_the_most_probable_tokens_that_leave_the_row_completable(languages, row, key, data):
    ids, masked = row
    found = fillings(languages, ids, masked)
    places = [slot for slot, hidden in enumerate(masked) if hidden]
    if not found or not places:
        return
    slots = data.draw(st.lists(st.sampled_from(places), min_size=1, unique=True))
    log_probs = torch.log_softmax(random_logits(key, len(slots), size=3.0).double(), dim=-1)

    def score(tokens: tuple[int, ...]) -> float:
        return sum(float(log_probs[row, token]) for row, token in enumerate(tokens))

    best = max({tuple(filling[slot] for slot in slots) for filling in found}, key=score)
    both = torch.stack([Sampling("greedy").filtered(log_probs.float()), log_probs.float()])
    tokens = automaton(languages).draw(
        both, torch.tensor(slots), torch.tensor(ids), torch.tensor(masked), torch.zeros(len(slots)), greedy=True
    )
    assert score(tuple(tokens.tolist())) == pytest.approx(score(best), abs=1e-5)


@quietly
@given(st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([Sampling(), Sampling("topk", 0.7, top_k=2)]))
def test_a_constraint_that_forbids_nothing_changes_nothing(length, key, sampling):
    logits, u = random_logits(key, length, size=3.0), uniform(torch.tensor(key), length)
    logits[:, END] = -math.inf
    both = torch.stack([sampling.filtered(logits), logits])
    everything = torch.ones(length, dtype=torch.bool)
    tokens = automaton([("[ab ]*", True)]).draw(both, torch.arange(length), torch.zeros(length).long(), everything, u)
    assert torch.equal(tokens, draw_token(both[0], u))


def test_slots_may_come_in_any_order():
    logits, u = random_logits(3, 4, size=2.0), uniform(torch.tensor(3), 4)
    new_ids, is_masked, token_automaton = torch.zeros(4).long(), torch.ones(4).bool(), automaton(LANGUAGES["regex"])
    straight = token_automaton.draw(torch.stack([logits] * 2), torch.arange(4), new_ids, is_masked, u)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = token_automaton.draw(torch.stack([logits[order]] * 2), order, new_ids, is_masked, u[order])
    assert torch.equal(shuffled, straight[order])


def test_where_truncation_left_nothing_possible_the_untruncated_logits_decide():
    """Truncation kept only "ab" in the first slot, behind which nothing can follow: it alone gives way."""
    token_automaton = automaton([("(?:a|b)b", True)])
    untruncated = torch.tensor([[0.0, 2.0, -90.0, 9.0, -90.0, 0.0], [9.0, 1.0, 0.0, -90.0, 0.0, 0.0]])
    kept = torch.full_like(untruncated, -math.inf)
    kept[0, 3], kept[1, :2] = 9.0, 1.0
    rows = [torch.tensor([0, 1]), torch.zeros(2).long(), torch.ones(2).bool()]
    drawn = [
        tuple(token_automaton.draw(torch.stack([kept, untruncated]), *rows, uniform(torch.tensor(key), 2)).tolist())
        for key in range(300)
    ]
    assert set(drawn) == {(0, 1), (1, 1)}
    assert drawn.count((1, 1)) == pytest.approx(300 / (1 + math.exp(-2)), abs=4 * math.sqrt(300 * 0.1))


def test_truncation_is_kept_to_where_it_leaves_something_possible():
    token_automaton = automaton([("a?b?", True)])
    logits = torch.zeros(2, VOCABULARY)
    kept = torch.full_like(logits, -math.inf)
    kept[0, [0, 1]], kept[1, [1, 4]] = torch.tensor([-40.0, 0.0]), 0.0  # after the likely "b" nothing kept can follow
    for key in range(20):
        rows = [torch.tensor([0, 1]), torch.zeros(2).long(), torch.ones(2).bool(), uniform(torch.tensor(key), 2)]
        assert token_automaton.draw(torch.stack([kept, logits]), *rows).tolist() == [0, 1]


def test_continuations_of_vanishing_probability_are_still_possible():
    """Every way but one is 10,000 times e less probable, and the one is not accepted."""
    logits = torch.zeros(6, VOCABULARY)
    logits[:, 0] = 10_000.0
    rows = [torch.arange(6), torch.zeros(6).long(), torch.ones(6).bool(), torch.full((6,), 0.5, dtype=torch.float64)]
    for greedy in (False, True):
        tokens = automaton([("b{6}", True)]).draw(torch.stack([logits] * 2), *rows, greedy)
        assert tokens.tolist() == [1] * 6


# --- ends and errors -------------------------------------------------------------------------------------------------


def test_an_end_may_follow_only_an_accepted_text_and_only_ends_follow_it():
    token_automaton = automaton([("ab", True)], has_end=True)
    three = torch.tensor([0, 0, 0])
    assert token_automaton.is_feasible(torch.tensor([3, END, END]), three.bool())
    assert token_automaton.is_feasible(torch.tensor([0, 1, END]), three.bool())
    assert not token_automaton.is_feasible(torch.tensor([0, END, END]), three.bool())
    assert not token_automaton.is_feasible(torch.tensor([3, END, 2]), three.bool())
    assert not token_automaton.is_feasible(torch.tensor([END, END, END]), three.bool())
    assert automaton([("(?:ab)?", True)], has_end=True).is_feasible(torch.tensor([END, END, END]), three.bool())


def test_without_an_end_the_text_fills_the_row():
    """One token "ab", or "a" and "b", with one space in front that is dropped, but not with two."""
    token_automaton = automaton([("ab", True)])
    masks = [torch.ones(length, dtype=torch.bool) for length in range(1, 5)]
    assert [token_automaton.is_feasible(mask.long(), mask) for mask in masks] == [True, True, True, False]
    assert not token_automaton.is_feasible(torch.tensor([3, END]), torch.tensor([False, False]))


def test_the_first_new_token_reads_as_the_first_piece_says():
    token_automaton = automaton([("ab?", True)])
    new_ids, is_masked = torch.tensor([2, 0]), torch.tensor([False, True])
    assert token_automaton.allowed(new_ids, is_masked)[0].nonzero().flatten().tolist() == [
        0,
        3,
    ]  # the space is dropped
    assert token_automaton.is_feasible(torch.tensor([4, 1]), torch.tensor([False, False]))  # " a" reads "a" here
    assert not token_automaton.is_feasible(torch.tensor([0, 2]), torch.tensor([False, False]))


def test_a_length_that_cannot_be_filled_is_refused_with_the_nearest_one_that_can():
    token_automaton = automaton([("[ab]{6}|[ab]{14}", True)])  # 14 letters, and the space that is dropped
    token_automaton.require_feasible(torch.zeros(3).long(), torch.ones(3).bool())
    message = r"No text of 2 new tokens keeps to the test's constraint\. Pass `max_new_tokens=3`, or loosen"
    with pytest.raises(ValueError, match=message):
        token_automaton.require_feasible(torch.zeros(2).long(), torch.ones(2).bool())
    with pytest.raises(ValueError, match="`max_new_tokens=15`"):
        token_automaton.require_feasible(torch.zeros(20).long(), torch.ones(20).bool())


def test_given_tokens_that_cannot_be_completed_are_refused():
    with pytest.raises(ValueError, match="already there cannot be completed.*the test's constraint.*Mask more"):
        automaton([("a*", True)]).require_feasible(torch.tensor([1, 0]), torch.tensor([False, True]))


def test_logits_that_forbid_all_that_is_possible_are_refused():
    logits = torch.zeros(2, 1, VOCABULARY)
    logits[:, :, [0, 1, 4]] = -math.inf
    row = [torch.tensor([0]), torch.tensor([0]), torch.tensor([True]), torch.tensor([0.5], dtype=torch.float64)]
    with pytest.raises(ValueError, match="At new token 0.*-inf for every token that keeps to the test's constraint"):
        automaton([("a|b", True)]).draw(logits, *row)
    with pytest.raises(ValueError, match="cannot be completed to a text that keeps to the test's constraint"):
        automaton([("aaaa", True)]).draw(logits, *row)
    with pytest.raises(NonFiniteLogitsError):
        automaton([("a|b", True)]).draw(logits * math.nan, *row)
