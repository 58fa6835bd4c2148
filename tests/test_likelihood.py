"""The likelihood bound against the exact probability of stories, and that it depends on the rows alone."""

import pytest
import torch
from torch.nn.functional import pad

from diffusion_mlm import story_language
from diffusion_mlm.data_collator import DataCollatorForMaskedDiffusion
from diffusion_mlm.evaluation.likelihood import NUM_BUCKETS, bound_of_rows, count_tokens
from diffusion_mlm.modeling import logits_at

TOKENIZER = story_language.tokenizer()
MASK, PAD, END = TOKENIZER.mask_token_id, TOKENIZER.pad_token_id, TOKENIZER.eos_token_id


def stories(num_rows, seed=0):
    """Rows of stories and what may be masked: all but `<s>`."""
    ids = story_language.sample_ids(num_rows, seed)
    return ids, torch.arange(ids.size(1)).expand_as(ids) > 0


def exact_denoiser():
    denoiser = story_language.ExactDenoiser()
    return lambda ids, rows: logits_at(denoiser, rows, input_ids=ids)


def toy_logits(input_ids, rows):
    """Any logits that depend on the row and on nothing beside it."""
    visible = torch.where(input_ids == MASK, 0, input_ids).masked_fill(input_ids == PAD, 0).sum(-1, keepdim=True)
    place = torch.arange(input_ids.size(1)).expand_as(input_ids)
    return torch.sin((visible + place)[rows][:, None] * torch.arange(1.0, len(TOKENIZER) + 1))


def test_the_bound_of_the_exact_denoiser_is_the_exact_log_probability():
    """With exact conditionals every order of unmasking gives log p, so the bound is tight, row by row."""
    ids, maskable = stories(96)
    nats = bound_of_rows(exact_denoiser(), ids, maskable, mask_id=MASK, end_id=END, draws=16).nats
    exact = -story_language.log_prob(story_language.sample(96, seed=0))
    difference = nats - exact
    error = difference.std() / len(difference) ** 0.5
    assert abs(difference.mean()) < 3 * error
    assert error < 0.02 * exact.mean()  # or the line above would say nothing


def test_a_worse_model_has_a_worse_bound():
    """A control for the test above: half of the probability goes to any token at all: up to log 2 a token."""
    ids, maskable = stories(16)
    exact = exact_denoiser()
    right = bound_of_rows(exact, ids, maskable, mask_id=MASK).nats.sum()
    worse = bound_of_rows(
        lambda ids, rows: torch.log(exact(ids, rows).softmax(-1) / 2 + 0.5 / len(TOKENIZER)),
        ids,
        maskable,
        mask_id=MASK,
    ).nats.sum()
    assert 1.2 * right < worse < right + 0.7 * maskable.sum()


def test_a_uniform_model_costs_the_logarithm_of_the_vocabulary_for_every_token():
    ids, maskable = stories(5)
    bounds = bound_of_rows(
        lambda ids, rows: torch.zeros(int(rows.sum()), len(TOKENIZER)), ids, maskable, mask_id=MASK, draws=3
    )
    expected = torch.log(torch.tensor(len(TOKENIZER), dtype=torch.float64)) * maskable.sum(-1)
    torch.testing.assert_close(bounds.nats, expected, rtol=1e-6, atol=0)


def test_forbidden_tokens_have_no_probability():
    ids, maskable = stories(3)
    forbidden = torch.tensor([MASK, PAD])
    uniform = lambda ids, rows: torch.zeros(int(rows.sum()), len(TOKENIZER))  # noqa: E731
    bounds = bound_of_rows(uniform, ids, maskable, mask_id=MASK, forbidden_ids=forbidden, draws=2)
    expected = torch.log(torch.tensor(len(TOKENIZER) - 2, dtype=torch.float64)) * maskable.sum(-1)
    torch.testing.assert_close(bounds.nats, expected, rtol=1e-6, atol=0)


def test_a_row_has_one_bound_whatever_its_batch_and_padding():
    ids, maskable = stories(6)
    whole = bound_of_rows(toy_logits, ids, maskable, mask_id=MASK, end_id=END, draws=4)
    for row in (0, 3, 5):
        alone = bound_of_rows(
            toy_logits,
            pad(ids[row : row + 1], (0, 7), value=PAD),
            pad(maskable[row : row + 1], (0, 7)),
            mask_id=MASK,
            end_id=END,
            draws=4,
        )
        torch.testing.assert_close(alone.nats[0], whole.nats[row], rtol=1e-9, atol=0)
        torch.testing.assert_close(alone.bucket_nats[0], whole.bucket_nats[row], rtol=1e-9, atol=0)
        assert torch.equal(alone.bucket_counts[0], whole.bucket_counts[row])
        assert alone.num_tokens[0] == whole.num_tokens[row]


def test_masks_depend_on_the_seed_and_no_random_state():
    ids, maskable = stories(4)
    torch.manual_seed(0)
    first = bound_of_rows(toy_logits, ids, maskable, mask_id=MASK).nats
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(bound_of_rows(toy_logits, ids, maskable, mask_id=MASK).nats, first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(bound_of_rows(toy_logits, ids, maskable, mask_id=MASK, seed=1).nats, first)


def test_the_draws_of_a_row_are_spread_over_all_mask_rates():
    ids, maskable = stories(4)
    bounds = bound_of_rows(toy_logits, ids, maskable, mask_id=MASK, draws=NUM_BUCKETS)
    assert torch.equal(bounds.bucket_counts, torch.ones(4, NUM_BUCKETS, dtype=torch.float64))
    # Each bucket holds the mean of one draw: their mean over all rates is the bound per token.
    torch.testing.assert_close(bounds.bucket_nats.mean(-1) * maskable.sum(-1), bounds.nats)


def test_a_row_with_nothing_to_predict_costs_nothing():
    ids, maskable = stories(2)
    maskable = maskable & torch.tensor([[True], [False]])
    bounds = bound_of_rows(toy_logits, ids, maskable, mask_id=MASK, draws=3)
    assert bounds.nats[1] == 0 and bounds.num_tokens[1] == 0 and bounds.bucket_counts[1].sum() == 0
    assert bounds.nats[0] > 0


def test_nan_logits_stay_visible():
    ids, maskable = stories(3)

    def broken(input_ids, rows):
        logits = toy_logits(input_ids, rows)
        logits[rows.nonzero()[:, 0] == 1] = float("nan")
        return logits

    bounds = bound_of_rows(broken, ids, maskable, mask_id=MASK, draws=2)
    assert torch.isfinite(bounds.nats).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "ids, given, expected",
    [
        ([0, 9, 9, 2, 2, 2], 1, 3),  # two words and one end, however long the fill
        ([0, 9, 9, 2, 1, 1], 1, 3),  # padding behind it
        ([0, 9, 2, 9, 2, 2], 1, 4),  # an end in the middle is a token of its own
        ([0, 9, 9, 9, 9, 9], 1, 5),
        ([0, 9, 9, 2, 2, 2], 3, 1),  # the prompt is given: only the end is left
        ([0, 9, 9, 2, 2, 2], 6, 0),
        ([0, 2, 2, 2, 2, 2], 1, 1),  # an empty text
    ],
)
def test_a_fill_of_end_tokens_counts_once(ids, given, expected):
    ids = torch.tensor([ids])
    maskable = (torch.arange(6) >= given) & ids.ne(PAD)
    assert count_tokens(ids, maskable, END).tolist() == [expected]


def test_without_an_end_token_every_maskable_token_counts():
    ids, maskable = stories(3)
    assert torch.equal(count_tokens(ids, maskable, -1), maskable.sum(-1))


def test_stories_have_as_many_tokens_as_their_tokenizer_says():
    texts = story_language.sample(8, seed=0)
    rows = [{"input_ids": row} for row in story_language.sample_ids(8, seed=0)]
    ids, _, maskable = DataCollatorForMaskedDiffusion(TOKENIZER, mask_end_token=True).pad(rows)
    lengths = [len(TOKENIZER(text)["input_ids"]) - 1 for text in texts]  # all but <s>
    assert count_tokens(ids, maskable, END).tolist() == lengths
