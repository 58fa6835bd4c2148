"""Likelihoods by trajectories, against the enumeration of all orders of a text of four words.

The source is a Markov chain over 3 words and 4 positions. Its exact denoiser is a table of conditionals for each of
the 256 contexts of words and masks; the bent model is the same table with other probabilities, so that its orders
disagree about a text, as those of a trained model do.
"""

import itertools
import math

import pytest
import torch

from diffusion_mlm.evaluation.trajectory import (
    canvas_nats,
    chain_of_rows,
    fixed_ranks,
    greedy_rows,
    importance_bound,
    random_chains_of_rows,
    random_ranks,
    sampler_bound_of_rows,
)
from diffusion_mlm.schedules import unmask_counts

WORDS, LENGTH, MASK = 3, 4, 3
START = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
TRANSITION = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.2, 0.7], [0.3, 0.65, 0.05]], dtype=torch.float64)
TEXTS = torch.cartesian_prod(*[torch.arange(WORDS)] * LENGTH)  # (81, 4)
CONTEXTS = torch.cartesian_prod(*[torch.arange(WORDS + 1)] * LENGTH)  # (256, 4)
PLACE_VALUE = (WORDS + 1) ** torch.arange(LENGTH - 1, -1, -1)
TRUTH = START[TEXTS[:, 0]] * TRANSITION[TEXTS[:, :-1], TEXTS[:, 1:]].prod(-1)  # (81,)
ALL = torch.ones(1, LENGTH, dtype=torch.bool)
TEXT = torch.tensor([[0, 2, 1, 1]])


def exact_table():
    """log p(x_i = v | context), (256, 4, 3)."""
    agrees = ((CONTEXTS[:, None] == TEXTS) | (CONTEXTS[:, None] == MASK)).all(-1)
    words = torch.nn.functional.one_hot(TEXTS, WORDS).double()
    joint = torch.einsum("ct,t,tiv->civ", agrees.double(), TRUTH, words)
    return (joint / joint.sum(-1, keepdim=True)).log()


EXACT = exact_table()
BENT = torch.sin(7 * PLACE_VALUE.new_tensor(range(256 * LENGTH * WORDS)).double()).view(256, LENGTH, WORDS) * 2


def model_of(table):
    return lambda canvas, rows: table[canvas @ PLACE_VALUE][rows]


def nats_of(table, visible):
    """-log p of each word of TEXT, (4,), when the positions `visible` are seen."""
    canvas = torch.where(torch.tensor([i in visible for i in range(LENGTH)]), TEXT[0], MASK)
    return -table[canvas @ PLACE_VALUE].log_softmax(-1).gather(-1, TEXT[0][:, None])[:, 0]


def chain_by_hand(table, order):
    return sum(float(nats_of(table, order[:k])[order[k]]) for k in range(LENGTH))


def mean_loss(table, num_visible):
    """h(j): the mean over all sets of j visible positions of the mean cross-entropy of a masked word."""
    sets = list(itertools.combinations(range(LENGTH), num_visible))
    masked = [[i for i in range(LENGTH) if i not in visible] for visible in sets]
    return sum(float(nats_of(table, seen)[rest].mean()) for seen, rest in zip(sets, masked, strict=True)) / len(sets)


def many(number):
    """The text `number` times, with as many keys: as good as that many draws."""
    return TEXT.expand(number, -1), ALL.expand(number, -1), torch.arange(number)


def assert_mean(values, expected):
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - expected) < 3 * error + 1e-9
    assert error < 0.02 * expected  # or the line above would say nothing


@pytest.mark.parametrize("order", list(itertools.permutations(range(LENGTH))))
def test_every_order_of_the_exact_denoiser_gives_the_exact_probability_of_every_text(order):
    ranks = torch.tensor(order).expand_as(TEXTS)
    nats = chain_of_rows(model_of(EXACT), TEXTS, ALL.expand_as(TEXTS), ranks, mask_id=MASK)
    torch.testing.assert_close(nats, -TRUTH.log(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0)])
def test_a_chain_is_the_sum_that_one_would_write_by_hand(order):
    ranks = torch.tensor([order]).argsort(-1)  # when each position is revealed
    nats = chain_of_rows(model_of(BENT), TEXT, ALL, ranks, mask_id=MASK)
    assert float(nats) == pytest.approx(chain_by_hand(BENT, order), rel=1e-5)


def test_left_to_right_reveals_the_maskable_positions_from_the_left():
    maskable = torch.tensor([[False, True, True, False, True], [True, True, False, False, False]])
    assert fixed_ranks("left_to_right", maskable)[maskable].tolist() == [0, 1, 2, 0, 1]
    assert fixed_ranks("right_to_left", maskable)[maskable].tolist() == [2, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="`order` must be one of left_to_right, right_to_left, not 'confidence'"):
        fixed_ranks("confidence", maskable)


def test_random_orders_are_permutations_and_all_of_them_occur():
    ranks = random_ranks(torch.arange(2000), ALL.expand(2000, -1))
    assert torch.equal(ranks.sort(-1).values, torch.arange(LENGTH).expand(2000, -1))
    counts = torch.unique(ranks, dim=0, return_counts=True)[1].double()
    assert len(counts) == math.factorial(LENGTH)
    assert ((counts - 2000 / 24) ** 2 / (2000 / 24)).sum() < 49.7  # 99.9 % of chi-square with 23 degrees of freedom


def test_random_orders_average_to_the_negative_elbo():
    """The mean over all 24 orders is the mean loss over all counts of visible words, times their number."""
    bound = sum(mean_loss(BENT, j) for j in range(LENGTH))
    by_hand = [chain_by_hand(BENT, order) for order in itertools.permutations(range(LENGTH))]
    assert sum(by_hand) / 24 == pytest.approx(bound)
    ids, maskable, keys = many(2000)
    chains = random_chains_of_rows(model_of(BENT), ids, maskable, mask_id=MASK, orders=1, keys=keys, batch_size=4096)
    assert_mean(chains[:, 0], bound)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_of_a_sampler_is_the_loss_at_what_each_of_its_steps_sees(steps, schedule):
    counts = unmask_counts(schedule, LENGTH, steps)
    seen = [sum(counts[:k]) for k in range(len(counts))]
    expected = sum(count * mean_loss(BENT, before) for count, before in zip(counts, seen, strict=True))
    ids, maskable, keys = many(1000)
    nats = sampler_bound_of_rows(
        model_of(BENT),
        ids,
        maskable,
        steps=steps,
        schedule=schedule,
        mask_id=MASK,
        keys=keys,
        orders=2,
        batch_size=4096,
    )
    if steps > 1:
        assert_mean(nats, expected)
    else:  # all words at once: no order, no chance
        torch.testing.assert_close(nats, torch.full_like(nats, expected), rtol=1e-6, atol=0)


def test_fewer_steps_cost_more_even_with_the_exact_denoiser():
    """In the mean over texts of the source, by the divergence that independent words of one step cause."""
    ids = TEXTS.repeat(20, 1)
    one, two, four = (
        sampler_bound_of_rows(
            model_of(EXACT),
            ids,
            ALL.expand_as(ids),
            steps=steps,
            mask_id=MASK,
            keys=torch.arange(len(ids)),
            batch_size=4096,
        )
        for steps in (1, 2, 4)
    )
    one, two, four = (float((nats.view(20, -1) * TRUTH).sum() / 20) for nats in (one, two, four))
    entropy = -float((TRUTH * TRUTH.log()).sum())
    assert one > two + 0.1 > four + 0.2
    assert four == pytest.approx(entropy, rel=0.02)


def test_the_importance_bound_falls_from_the_negative_elbo_towards_the_probability_of_the_random_order_sampler():
    by_hand = torch.tensor([chain_by_hand(BENT, order) for order in itertools.permutations(range(LENGTH))])
    exact = float(importance_bound(by_hand))  # of the sampler that draws one of the 24 orders
    bound = float(by_hand.mean())
    ids, maskable, keys = many(1000)
    chains = random_chains_of_rows(model_of(BENT), ids, maskable, mask_id=MASK, orders=16, keys=keys, batch_size=4096)
    means = [float(importance_bound(chains[:, :n]).mean()) for n in (1, 2, 4, 16)]
    assert exact < means[3] < means[2] < means[1] < means[0]
    assert means[0] == pytest.approx(bound, rel=0.03)
    assert means[3] == pytest.approx(exact, rel=0.03)


def test_the_importance_bound_of_one_order_is_that_order_and_of_equal_orders_any_of_them():
    chains = torch.tensor([[700.0], [3.0]])
    torch.testing.assert_close(importance_bound(chains), chains[:, 0])
    torch.testing.assert_close(importance_bound(torch.full((2, 5), 900.0)), torch.full((2,), 900.0))


def estimates(ids, maskable, **options):
    options = {"mask_id": MASK, **options}
    model = model_of(torch.cat([BENT, BENT]))  # a padding of -1 must not disturb the table
    clamped = lambda canvas, rows: model(canvas.clamp(min=0)[:, :LENGTH], rows[:, :LENGTH])  # noqa: E731
    return [
        chain_of_rows(clamped, ids, maskable, fixed_ranks("left_to_right", maskable), **options),
        random_chains_of_rows(clamped, ids, maskable, orders=3, **options).sum(-1),
        sampler_bound_of_rows(clamped, ids, maskable, steps=2, orders=2, **options),
    ]


def test_a_row_has_one_estimate_whatever_its_batch_its_padding_and_the_batch_size():
    ids = TEXTS[::7]
    maskable = ALL.expand_as(ids) & (torch.arange(LENGTH) >= torch.arange(len(ids))[:, None] % 3)
    whole = estimates(ids, maskable, batch_size=5)
    padded, more = torch.nn.functional.pad(ids, (0, 3), value=-1), torch.nn.functional.pad(maskable, (0, 3))
    for row in (0, 4, len(ids) - 1):
        alone = estimates(padded[row : row + 1], more[row : row + 1], batch_size=64)
        for one, all_rows in zip(alone, whole, strict=True):
            torch.testing.assert_close(one[0], all_rows[row], rtol=1e-6, atol=0)


def test_a_row_with_nothing_to_predict_costs_nothing():
    nothing = torch.zeros_like(ALL)
    assert all(float(nats) == 0 for nats in estimates(TEXT, nothing))
    both = estimates(TEXT.expand(2, -1), torch.cat([nothing, ALL]))
    assert all(nats[0] == 0 and nats[1] > 0 for nats in both)


def test_a_canvas_scores_what_it_is_asked_for():
    ranks = torch.tensor([[2, 0, 3, 1]])
    canvases = torch.tensor([[0, 1, 3], [0, 2, 4]])  # sees position 1; sees 1 and 3
    nats = canvas_nats(model_of(BENT), TEXT, ALL, ranks, canvases, mask_id=MASK, batch_size=1)
    first, second = nats_of(BENT, (1,))[[0, 3]].sum(), nats_of(BENT, (1, 3))[[0, 2]].sum()
    torch.testing.assert_close(nats, torch.stack([first, second]), rtol=1e-6, atol=0)


def test_forbidden_words_have_no_probability():
    uniform = model_of(torch.zeros_like(BENT))
    ranks = fixed_ranks("left_to_right", ALL)
    text = torch.zeros_like(TEXT)
    for forbidden, words in ((None, 3), (torch.tensor([1]), 2)):
        nats = chain_of_rows(uniform, text, ALL, ranks, mask_id=MASK, forbidden_ids=forbidden)
        assert float(nats) == pytest.approx(LENGTH * math.log(words), rel=1e-6)


def greedy_text(table):
    """The text that takes the likeliest word at each place, from left to right, by hand."""
    canvas = torch.full((LENGTH,), MASK)
    for place in range(LENGTH):
        canvas[place] = table[canvas @ PLACE_VALUE][place].argmax()
    return canvas


@pytest.mark.parametrize("table", [EXACT, BENT], ids=["exact", "bent"])
def test_of_all_texts_one_is_greedy(table):
    every = torch.ones(len(TEXTS), LENGTH, dtype=torch.bool)
    found = greedy_rows(model_of(table), TEXTS, every, mask_id=MASK)
    assert TEXTS[found].tolist() == [greedy_text(table).tolist()]


def test_greedy_rows_look_at_maskable_places_only():
    text = greedy_text(BENT)
    text[0] = (text[0] + 1) % WORDS  # given, and not what the model would say
    places = torch.tensor([False, True, True, True])
    canvas = torch.where(places, MASK, text)
    for place in (1, 2, 3):
        canvas[place] = BENT[canvas @ PLACE_VALUE][place].argmax()
    rows = torch.stack([canvas, text])
    maskable = torch.stack([places, torch.zeros(LENGTH, dtype=torch.bool)])
    assert greedy_rows(model_of(BENT), rows, maskable, mask_id=MASK).all()


def test_greedy_rows_never_hold_a_forbidden_token():
    text = greedy_text(BENT)[None]
    forbidden = text[0, :1]
    assert not greedy_rows(model_of(BENT), text, ALL, mask_id=MASK, forbidden_ids=forbidden).any()


def test_a_row_that_is_not_greedy_is_not_asked_about_again():
    wrong, right = (greedy_text(BENT) for _ in range(2))
    wrong[0] = (wrong[0] + 1) % WORDS
    asked = []

    def predict_logits(canvas, rows):
        asked.append(len(canvas))
        return model_of(BENT)(canvas, rows)

    rows = torch.stack([wrong, right])
    assert greedy_rows(predict_logits, rows, ALL.expand(2, -1), mask_id=MASK).tolist() == [False, True]
    assert asked == [2, 1, 1, 1]
