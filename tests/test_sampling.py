"""Sampling: filters against transformers' own, the draw against its distribution, and every kind of broken logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from diffusion_mlm.randomness import uniform
from diffusion_mlm.sampling import (
    NonFiniteLogitsError,
    Sampling,
    draw,
    forbid,
    keep_min_p,
    keep_nucleus,
    keep_top_k,
    keep_typical,
    log_probabilities,
    temper,
)

quietly = settings(deadline=None, derandomize=True, database=None, max_examples=200)
INF, NAN = math.inf, math.nan
U = st.floats(0, 1, exclude_max=True)


def random_logits(rows: int, vocabulary: int, seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@st.composite
def logits(draw_from, ties: bool = True) -> Tensor:
    """(rows, vocabulary) float32, at least one finite entry per row, some at -inf; ties on purpose when asked for."""
    vocabulary = draw_from(st.integers(1, 12))
    entry = st.sampled_from([-INF, -3.0, 0.0, 1.0, 2.5]) if ties else st.floats(-20, 20, width=32)
    rows = draw_from(st.lists(st.lists(entry, min_size=vocabulary, max_size=vocabulary), min_size=1, max_size=4))
    kept = draw_from(st.integers(0, vocabulary - 1))
    for row in rows:
        row[kept] = max(row[kept], -3.0)
    return torch.tensor(rows)


# --- filters against transformers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", (0.1, 0.7, 1.0, 1.3, 5.0))
def test_temper_is_transformers_warper(temperature):
    x = random_logits(20, 100, seed=0)
    assert torch.equal(temper(x, temperature), TemperatureLogitsWarper(temperature)(None, x))


@pytest.mark.parametrize("k", (1, 2, 5, 99, 100, 1000))
def test_keep_top_k_is_transformers_warper(k):
    x = random_logits(50, 100, seed=1)
    assert torch.equal(keep_top_k(x, k), TopKLogitsWarper(k)(None, x))


@pytest.mark.parametrize("top_p", (1e-9, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999, 1.0))
@pytest.mark.parametrize("scale", (0.1, 1.0, 8.0))
def test_keep_nucleus_is_transformers_warper(top_p, scale):
    x = random_logits(50, 400, seed=2, scale=scale)
    assert torch.equal(keep_nucleus(x, top_p), TopPLogitsWarper(top_p)(None, x))


@quietly
@given(logits(ties=False), st.floats(0.01, 1))
def test_keep_nucleus_keeps_as_many_as_transformers_with_tied_logits_too(x, top_p):
    """Which of several equal tokens is kept is free; how many and with what probabilities is not."""
    x = x.round()  # ties
    ours, theirs = keep_nucleus(x, top_p), TopPLogitsWarper(top_p)(None, x)
    probs = torch.softmax(x.double(), -1).sort(-1, descending=True).values.cumsum(-1)
    if ((probs - top_p).abs() > 1e-5).all():  # at an exact tie with top_p the two round differently
        assert torch.equal(ours.sort(-1).values, theirs.sort(-1).values)


@pytest.mark.parametrize("min_p", (0.0, 0.01, 0.05, 0.3, 1.0))
@pytest.mark.parametrize("scale", (0.1, 1.0, 8.0))
def test_keep_min_p_is_transformers_warper(min_p, scale):
    x = random_logits(50, 400, seed=5, scale=scale)
    assert torch.equal(keep_min_p(x, min_p), MinPLogitsWarper(min_p)(None, x))


@pytest.mark.parametrize("mass", (0.01, 0.1, 0.5, 0.9, 0.99))
@pytest.mark.parametrize("scale", (0.1, 1.0, 8.0))
def test_keep_typical_is_transformers_warper(mass, scale):
    x = random_logits(50, 400, seed=6, scale=scale)
    assert torch.equal(keep_typical(x, mass), TypicalLogitsWarper(mass)(None, x))
    assert torch.equal(keep_typical(x, 1.0), x)


@quietly
@given(logits(), st.floats(1e-9, 1), st.floats(0, 1))
def test_min_p_and_typical_keep_something_and_change_nothing_but_what_they_drop(x, mass, min_p):
    for kept in (keep_typical(x, mass), keep_min_p(x, min_p)):
        assert kept.isfinite().any(-1).all()
        assert torch.equal(kept.where(kept > -INF, x), x)


def test_typical_may_drop_the_most_probable_token():
    x = torch.tensor([[0.6, 0.1, 0.1, 0.1, 0.1]]).log()  # entropy 1.23, surprise of the first 0.51, of the others 2.30
    x2 = torch.tensor([[0.4] + [0.02] * 30]).log()  # entropy 2.71: surprise 0.92 is less typical than 3.91
    assert keep_typical(x, 0.3).isfinite().tolist() == [[True, False, False, False, False]]
    assert keep_typical(x2, 0.3).isfinite()[0, 0].item() is False


def test_the_token_that_crosses_top_p_is_kept():
    x = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert keep_nucleus(x, 0.4).isfinite().tolist() == [[True, False, False]]
    assert keep_nucleus(x, 0.6).isfinite().tolist() == [[True, True, False]]
    assert keep_nucleus(x, 0.81).isfinite().tolist() == [[True, True, True]]


@quietly
@given(logits(), st.integers(0, 14))
def test_top_k_keeps_exactly_k_and_ties_go_to_the_lower_id(x, k):
    kept = keep_top_k(x, k).isfinite()
    finite = x.isfinite().sum(-1)
    assert torch.equal(kept.sum(-1), finite if k == 0 else finite.clamp(max=k))
    for row, chosen in zip(x.tolist(), kept.tolist(), strict=True):
        ranking = sorted(range(len(row)), key=lambda i: (-row[i], i))
        assert {i for i, c in enumerate(chosen) if c} == {i for i in ranking[: k or None] if row[i] > -INF}


@quietly
@given(logits(), st.floats(1e-12, 1))
def test_nucleus_is_the_smallest_set_that_holds_top_p(x, top_p):
    kept = keep_nucleus(x, top_p).isfinite()
    probs = torch.softmax(x.double(), -1)
    mass = (probs * kept).sum(-1)
    least = torch.where(kept, probs, INF).amin(-1)
    assert (kept.sum(-1) >= 1).all()
    assert (mass >= min(top_p, 1) - 1e-6).all(), "it holds top_p"
    assert top_p >= 1 or (mass - least < top_p + 1e-6).all(), "and would not without its least probable token"
    assert (least + 1e-9 >= torch.where(kept, 0, probs).amax(-1)).all(), "no dropped token is more probable"


@quietly
@given(logits(), st.sampled_from(["topk", "nucleus"]), st.integers(0, 14), st.floats(1e-9, 1))
def test_filters_change_nothing_but_what_they_drop(x, method, k, top_p):
    before = x.clone()
    kept = keep_top_k(x, k) if method == "topk" else keep_nucleus(x, top_p)
    assert torch.equal(x, before)
    assert torch.equal(kept.where(kept > -INF, x), x)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64))
def test_filters_work_in_other_precisions(dtype):
    x = random_logits(5, 50, seed=3).to(dtype)
    assert keep_top_k(x, 3).isfinite().sum(-1).tolist() == [3] * 5
    assert keep_nucleus(x, 0.5).dtype == dtype
    assert (Sampling().choose(x, torch.full((5,), 0.5, dtype=torch.float64)) < 50).all()


def test_forbid_takes_the_columns_out_and_copies():
    x = torch.zeros(2, 4)
    assert forbid(x, torch.tensor([1, 3])).tolist() == [[0, -INF, 0, -INF]] * 2
    assert (x == 0).all()
    assert torch.equal(forbid(x, torch.tensor([], dtype=torch.int64)), x)
    assert forbid(x, torch.tensor([9, -1, 0]))[:, 0].isneginf().all(), "ids outside the vocabulary are ignored"


# --- choosing --------------------------------------------------------------------------------------------------------


@quietly
@given(logits(), U, st.integers(0, 14), st.floats(1e-9, 1), st.floats(1e-4, 100))
def test_the_token_is_always_in_the_allowed_set(x, u, k, top_p, temperature):
    u = torch.full((len(x),), u, dtype=torch.float64)
    for sampling in (
        Sampling("greedy"),
        Sampling("topk", temperature=temperature, top_k=k),
        Sampling("nucleus", temperature=temperature, top_p=top_p),
        Sampling("min_p", temperature=temperature, min_p=top_p),
        Sampling("typical", temperature=temperature, typical_p=top_p),
    ):
        token = sampling.choose(x, u).unsqueeze(-1)
        assert x.gather(-1, token).isfinite().all()
        if sampling.method == "topk":
            assert keep_top_k(x, k).gather(-1, token).isfinite().all()
        if sampling.method == "nucleus" and top_p > 1e-3:  # below, rounding decides what top_p is
            tempered = torch.softmax(x.double() / temperature, -1)
            better = (tempered * (tempered > tempered.gather(-1, token) + 1e-12)).sum(-1)
            assert (better < top_p + 1e-5).all(), "no more than top_p lies above the chosen token"


@quietly
@given(logits(), U)
def test_every_limit_of_every_method_is_greedy(x, u):
    """Also where logits tie: then all of them take the lowest id."""
    u = torch.full((len(x),), u, dtype=torch.float64)
    greedy = Sampling("greedy").choose(x, u)
    assert torch.equal(greedy, x.argmax(-1))
    for limit in (
        Sampling("topk", temperature=0.0),
        Sampling("nucleus", temperature=0.0),
        Sampling("nucleus", temperature=1e-45),
        Sampling("nucleus", temperature=9.9e-5, top_p=1.0),
        Sampling("min_p", temperature=0.0),
        Sampling("typical", temperature=0.0),
        Sampling("typical", temperature=0.0, temperature_end=0.0),
        Sampling("topk", top_k=1),
        Sampling("topk", top_k=1, temperature=50.0),
        Sampling("nucleus", top_p=1e-300),
        Sampling("nucleus", top_p=1e-9, temperature=0.5),
    ):
        assert torch.equal(limit.choose(x, u), greedy), limit


def test_the_temperature_goes_from_start_to_end_with_the_masked_share():
    x, u = random_logits(200, 30, seed=7), uniform(torch.tensor(7), 200)
    annealed = Sampling("topk", temperature=2.0, top_k=0, temperature_end=0.5)
    for share, temperature in ((1.0, 2.0), (0.5, 1.25), (0.0, 0.5)):
        constant = Sampling("topk", temperature=temperature, top_k=0)
        assert torch.equal(annealed.choose(x, u, torch.full((200,), share)), constant.choose(x, u))
    mixed = annealed.choose(x, u, torch.tensor([1.0, 0.0]).repeat(100))
    assert torch.equal(mixed[::2], Sampling("topk", 2.0, top_k=0).choose(x, u)[::2])
    assert torch.equal(mixed[1::2], Sampling("topk", 0.5, top_k=0).choose(x, u)[1::2])


def test_a_temperature_that_ends_at_0_ends_greedy():
    x, u = random_logits(200, 30, seed=8), uniform(torch.tensor(8), 200)
    to_greedy = Sampling("nucleus", temperature=1.0, temperature_end=0.0)
    assert torch.equal(to_greedy.choose(x, u, torch.zeros(200)), x.argmax(-1))
    assert not torch.equal(to_greedy.choose(x, u, torch.ones(200)), x.argmax(-1))
    with pytest.raises(ValueError, match="`temperature_end` needs `masked_share`"):
        to_greedy.choose(x, u)


def test_a_small_temperature_approaches_greedy_where_logits_differ():
    x, u = random_logits(500, 30, seed=4), uniform(torch.tensor(4), 500)
    assert torch.equal(Sampling("nucleus", top_p=1.0, temperature=1e-4).choose(x, u), x.argmax(-1))


@quietly
@given(
    logits(),
    st.lists(U, min_size=4, max_size=4),
    st.sampled_from(
        [Sampling(), Sampling("topk", top_k=3), Sampling("greedy"), Sampling("min_p"), Sampling("typical")]
    ),
)
def test_a_row_does_not_depend_on_the_others(x, u, sampling):
    u = torch.tensor(u[: len(x)], dtype=torch.float64)
    alone = torch.cat([sampling.choose(x[i : i + 1], u[i : i + 1]) for i in range(len(x))])
    assert torch.equal(sampling.choose(x, u), alone)


def test_no_rows_give_no_tokens():
    for sampling in (Sampling("greedy"), Sampling("topk"), Sampling("nucleus")):
        assert sampling.choose(torch.zeros(0, 9), torch.zeros(0, dtype=torch.float64)).shape == (0,)


# --- the draw --------------------------------------------------------------------------------------------------------


def test_draw_has_its_distribution():
    """Chi-square, 400,000 draws over 8 tokens, two of probability 0: 5 degrees of freedom, 99.9 % at 20.5."""
    p = torch.tensor([0.0, 0.4, 0.3, 0.15, 0.1, 0.04, 0.01, 0.0], dtype=torch.float64)
    tokens = draw(p.log().float().expand(400_000, -1), uniform(torch.tensor(1), 400_000))
    counts = tokens.bincount(minlength=8)
    assert counts[0] == counts[7] == 0
    expected = 400_000 * p[1:7]
    assert ((counts[1:7] - expected) ** 2 / expected).sum().item() < 20.5


def test_tempered_draws_have_the_tempered_distribution():
    x = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    tokens = Sampling("nucleus", top_p=1.0, temperature=0.5).choose(
        x.expand(200_000, -1), uniform(torch.tensor(2), 200_000)
    )
    expected = 200_000 * torch.softmax(x[0].double() / 0.5, -1)
    assert ((tokens.bincount(minlength=4) - expected) ** 2 / expected).sum().item() < 16.3  # 99.9 %, 3 degrees


def test_draw_is_the_inverse_of_the_cumulative_probability():
    x = torch.tensor([0.25, 0.5, 0.25]).log().expand(6, -1)
    u = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert draw(x, u).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("u", (0.0, 2.0**-53, 0.5, 1 - 2.0**-53))
def test_the_ends_of_the_unit_interval_never_draw_a_token_of_probability_0(u):
    for vocabulary in (3, 1000, 50_265):
        x = torch.full((1, vocabulary), -INF)
        x[0, 1:-1] = random_logits(1, vocabulary - 2, seed=5)
        assert 1 <= draw(x, torch.tensor([u], dtype=torch.float64)).item() <= vocabulary - 2


def test_rare_tokens_of_a_large_vocabulary_can_be_drawn():
    """Token 49,999 holds 1e-9, which a float32 random number in steps of 6e-8 would usually pass over."""
    p = torch.full((1, 50_000), (1 - 1e-9) / 49_999, dtype=torch.float64)
    p[0, -1] = 1e-9
    assert draw(p.log().float(), torch.tensor([1 - 2e-10], dtype=torch.float64)).item() == 49_999


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ([NAN, 0, 0], [INF, 0, 0], [-INF] * 3, [NAN] * 3, [0, INF, -INF], [NAN, -INF, INF]))
@pytest.mark.parametrize("method", ("greedy", "topk", "nucleus"))
def test_logits_that_are_not_finite_raise(broken, method):
    x = torch.tensor([[0.0, 1.0, 2.0], broken])
    with pytest.raises(NonFiniteLogitsError, match="in 1 of 2 positions"):
        Sampling(method).choose(x, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="`logits`"):
        log_probabilities(x)


def test_the_error_says_whether_the_model_or_the_bans_are_to_blame():
    with pytest.raises(NonFiniteLogitsError, match="all tokens are forbidden"):
        log_probabilities(forbid(torch.zeros(1, 2), torch.tensor([0, 1])))
    with pytest.raises(NonFiniteLogitsError, match="NaN or infinite"):
        log_probabilities(torch.tensor([[NAN, 0.0]]))


def test_the_largest_finite_logits_do_not_overflow():
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([[largest, -largest, largest], [-largest, -largest, -largest]])
    u = torch.tensor([0.9, 0.5], dtype=torch.float64)
    assert Sampling("nucleus", top_p=1.0, temperature=1e-3).choose(x, u).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "beam"}, "`sampling` must be one of greedy, topk, nucleus, min_p, typical, got 'beam'"),
        ({"min_p": -0.1}, "`min_p`"),
        ({"min_p": 1.1}, "`min_p`"),
        ({"typical_p": 0.0}, "`typical_p`"),
        ({"typical_p": NAN}, "`typical_p`"),
        ({"temperature_end": -1.0}, "`temperature_end`"),
        ({"temperature_end": INF}, "`temperature_end`"),
        ({"temperature": -0.1}, "`temperature`"),
        ({"temperature": NAN}, "`temperature`"),
        ({"temperature": INF}, "`temperature`"),
        ({"temperature": "1"}, "`temperature`"),
        ({"temperature": None}, "`temperature`"),
        ({"top_p": 0.0}, "`top_p`"),
        ({"top_p": 1.01}, "`top_p`"),
        ({"top_p": NAN}, "`top_p`"),
        ({"top_p": -0.5}, "`top_p`"),
        ({"top_k": -1}, "`top_k`"),
        ({"top_k": 2.5}, "`top_k`"),
        ({"top_k": True}, "`top_k`"),
        ({"top_k": None}, "`top_k`"),
    ],
)
def test_impossible_settings_are_refused_at_construction(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)
