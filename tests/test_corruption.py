import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_mlm.corruption import (
    ForwardProcess,
    batch_key,
    content_keys,
    exact_count_mask,
    prefix_lengths,
    stratified_times,
)
from diffusion_mlm.randomness import fold_in, make_key, uniform

MASK, PAD = 99, 1
PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=40)
processes = st.builds(
    ForwardProcess,
    st.just(MASK),
    schedule=st.sampled_from(["linear", "cosine", "exponential", "maskgit"]),
    masking=st.sampled_from(["exact", "bernoulli", "levels"]),
    levels_per=st.sampled_from(["row", "batch"]),
    prefix_length=st.one_of(st.just("random"), st.integers(0, 6)),
    span_length=st.sampled_from([1.0, 3.0]),
    max_mask_rate=st.sampled_from([1.0, 0.5]),
    stratified_times=st.booleans(),
)


def rows_of(sizes, width, seed=0):
    """Rows of ids 10..89 with a start token, padded on the right, and where they may be masked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 90, (len(sizes), width), generator=generator)
    ids[:, 0] = 0
    columns = torch.arange(width)
    lengths = torch.tensor(sizes)[:, None]
    return ids.masked_fill(columns >= lengths, PAD), (columns < lengths) & (columns > 0)


def corrupt(process, ids, maskable, seed=0):
    rows = torch.arange(len(ids))
    key = make_key(seed)
    return process(ids, maskable, fold_in(key, rows), process.times(key, rows, len(ids)))


@PROPERTY
@given(process=processes, sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8), seed=st.integers(0, 2**40))
def test_only_maskable_tokens_behind_the_prefix_are_masked_and_the_rest_is_unchanged(process, sizes, seed):
    ids, maskable = rows_of(sizes, 20)
    batch = corrupt(process, ids, maskable, seed)
    assert not (batch.is_masked & ~maskable).any()
    assert torch.equal(batch.input_ids, ids.masked_fill(batch.is_masked, MASK))
    assert torch.equal(batch.labels, torch.where(batch.is_masked, ids, -100))
    assert not (batch.is_masked & ~batch.maskable).any()
    if process.prefix_length != "random":
        for row, mask in zip(maskable, batch.is_masked, strict=True):
            given_tokens = row.nonzero()[: process.prefix_length, 0]
            assert not mask[given_tokens].any()


@PROPERTY
@given(process=processes, sizes=st.lists(st.integers(2, 20), min_size=1, max_size=8), seed=st.integers(0, 2**40))
def test_every_row_with_a_maskable_token_loses_at_least_one(process, sizes, seed):
    ids, maskable = rows_of(sizes, 20)
    batch = corrupt(process, ids, maskable, seed)
    assert torch.equal(batch.is_masked.any(-1), batch.maskable.any(-1))
    if process.prefix_length == "random":
        assert batch.is_masked.any(-1).all(), "A random prefix always leaves something to mask."


@PROPERTY
@given(process=processes, seed=st.integers(0, 2**40), order=st.permutations(range(5)), extra=st.integers(0, 7))
def test_the_mask_of_a_row_depends_on_its_key_and_time_alone(process, seed, order, extra):
    """Neither batch mates, nor order, nor padding, nor the global random state."""
    sizes = [5, 9, 12, 16, 20]
    ids, maskable = rows_of(sizes, 20)
    keys, t = fold_in(make_key(seed), torch.arange(5)), torch.linspace(0.05, 1, 5, dtype=torch.float64)
    together = process(ids, maskable, keys, t).is_masked
    order = torch.tensor(order)
    wide_ids = torch.nn.functional.pad(ids[order], (0, extra), value=PAD)
    wide_maskable = torch.nn.functional.pad(maskable[order], (0, extra))
    torch.manual_seed(seed % 1000)
    state = torch.get_rng_state()
    shuffled = process(wide_ids, wide_maskable, keys[order], t[order]).is_masked
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(shuffled[:, :20], together[order])
    assert not shuffled[:, 20:].any()


@PROPERTY
@given(
    masking=st.sampled_from(["exact", "bernoulli"]),
    times=st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)),
    seed=st.integers(0, 2**40),
)
def test_a_higher_rate_masks_a_superset_with_the_same_key(masking, times, seed):
    process = ForwardProcess(MASK, masking=masking, prefix_length=0)
    ids, maskable = rows_of([18, 20], 20)
    keys = fold_in(make_key(seed), torch.arange(2))
    low, high = (torch.full((2,), t, dtype=torch.float64) for t in sorted(times))
    small, large = process(ids, maskable, keys, low).is_masked, process(ids, maskable, keys, high).is_masked
    assert not (small & ~large).any()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential", "maskgit"])
@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
def test_time_one_masks_everything(schedule, masking):
    ids, maskable = rows_of([7, 20], 20)
    process = ForwardProcess(MASK, schedule=schedule, masking=masking, prefix_length=0)
    batch = process(ids, maskable, torch.arange(2), torch.ones(2, dtype=torch.float64))
    assert torch.equal(batch.is_masked, maskable)


def test_exact_counts_are_the_rate_rounded_up():
    maskable = torch.ones(11, 10, dtype=torch.bool)
    rates = torch.arange(11, dtype=torch.float64) / 10
    counts = exact_count_mask(maskable, rates, uniform(torch.arange(11), 10)).sum(-1)
    assert counts.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_exact_masks_choose_every_position_equally_often():
    maskable = torch.ones(20_000, 8, dtype=torch.bool)
    chosen = exact_count_mask(maskable, torch.full((20_000,), 3 / 8), uniform(torch.arange(20_000), 8))
    share = chosen.double().mean(0)
    assert (share - 3 / 8).abs().max() < 5 * (3 / 8 * 5 / 8 / 20_000) ** 0.5


def test_bernoulli_masks_have_the_rate_they_were_asked_for():
    process = ForwardProcess(MASK, masking="bernoulli", prefix_length=0)
    ids, maskable = rows_of([2001], 2001)
    for t in (0.1, 0.5, 0.9):
        batch = process(ids, maskable, torch.tensor([7]), torch.tensor([t], dtype=torch.float64))
        assert abs(float(batch.is_masked.sum()) / 2000 - t) < 5 * (t * (1 - t) / 2000) ** 0.5


def test_levels_are_the_ten_rates_of_the_guide_and_stratified():
    process = ForwardProcess(MASK, masking="levels", prefix_length=0)
    ids, maskable = rows_of([21] * 20, 21)
    batch = corrupt(process, ids, maskable)
    counts = sorted(batch.is_masked.sum(-1).tolist())
    assert counts == [count for count in range(2, 21, 2) for _ in range(2)], "20 tokens: 2, 4, ..., 20, each twice"


def test_levels_per_batch_mask_all_rows_alike():
    process = ForwardProcess(MASK, masking="levels", levels_per="batch", prefix_length=0)
    ids, maskable = rows_of([21] * 20, 21)
    assert len(set(corrupt(process, ids, maskable).is_masked.sum(-1).tolist())) == 1


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_times_are_stratified_over_the_global_batch_however_it_is_split(size):
    rows = torch.arange(size)
    times = stratified_times(5, rows, size)
    assert (times > 0).all() and (times <= 1).all()
    assert torch.equal((times * size).ceil().sort().values, torch.arange(1.0, size + 1, dtype=torch.float64))
    halves = [stratified_times(5, part, size) for part in rows.split(max(1, size // 2))]
    assert torch.equal(torch.cat(halves), times)


def test_a_single_time_is_uniform():
    times = torch.stack([stratified_times(key, torch.tensor([3]), 8) for key in range(1000)]).flatten()
    histogram = torch.histc(times.float(), 10, 0, 1) / 1000
    assert (histogram - 0.1).abs().max() < 5 * (0.1 * 0.9 / 1000) ** 0.5


def test_times_may_be_drawn_independently_and_are_then_uniform_and_the_same_however_a_batch_is_split():
    process, rows = ForwardProcess(MASK, stratified_times=False), torch.arange(4000)
    times = process.times(3, rows, 4000)
    assert torch.equal(torch.cat([process.times(3, part, 4000) for part in rows.split(1500)]), times)
    counts = torch.histc(times.float(), 4000, 0, 1)
    share = (counts == 0).double().mean().item()  # 1 / e of the strata are empty; stratified times leave none so
    assert abs(share - math.exp(-1)) < 0.03
    assert abs(times.mean().item() - 0.5) < 5 * (1 / 12 / 4000) ** 0.5


def test_a_highest_mask_rate_clips_the_schedule_and_its_slope():
    whole, cut = ForwardProcess(MASK, "cosine"), ForwardProcess(MASK, "cosine", max_mask_rate=0.999)
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    (rate, weight), (clipped, slope) = whole.mask_rate_and_weight(t), cut.mask_rate_and_weight(t)
    assert torch.equal(clipped, rate.clamp(max=0.999)) and clipped[-1] == 0.999
    assert torch.equal(slope, torch.where(rate > 0.999, 0, weight)) and (slope == 0).sum() == 3


def test_random_prefixes_are_absent_in_the_asked_share_and_else_uniform_up_to_half():
    maskable = torch.ones(20_000, 10, dtype=torch.bool)
    lengths = prefix_lengths("random", maskable, torch.arange(20_000), no_prefix_share=0.3)
    share = torch.bincount(lengths, minlength=6).double() / 20_000
    expected = torch.tensor([0.3] + [0.7 / 5] * 5, dtype=torch.float64)
    assert len(share) == 6
    assert (share - expected).abs().max() < 5 * (0.3 * 0.7 / 20_000) ** 0.5


def test_spans_mask_runs_of_tokens():
    ids, maskable = rows_of([101] * 200, 101)

    def runs(span_length):
        process = ForwardProcess(MASK, prefix_length=0, span_length=span_length)
        masked = process(ids, maskable, torch.arange(200), torch.full((200,), 0.3, dtype=torch.float64)).is_masked
        starts = masked & ~torch.nn.functional.pad(masked[:, :-1], (1, 0))
        return float(masked.sum()) / float(starts.sum()), masked.sum(-1).unique().tolist()

    single, counts_single = runs(1.0)
    spans, counts_spans = runs(5.0)
    assert counts_single == counts_spans == [30], "Spans keep exact counts."
    assert spans > 2.5 * single


def test_content_keys_ignore_padding_and_batch_mates():
    ids, maskable = rows_of([5, 9], 9)
    lengths = torch.tensor([5, 9])
    keys = content_keys(0, ids, lengths)
    alone = content_keys(0, ids[:1, :5], lengths[:1])
    assert keys[0] == alone[0]
    assert len({*keys.tolist(), *content_keys(1, ids, lengths).tolist()}) == 4


def test_batch_key_sees_every_token_and_the_shape():
    ids, _ = rows_of([5, 5], 6)
    other = ids.clone()
    other[1, 3] += 1
    assert len({batch_key(0, ids), batch_key(1, ids), batch_key(0, other), batch_key(0, ids.reshape(3, 4))}) == 4


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("masking", "sometimes"),
        ("levels", (0.0, 0.5)),
        ("levels", ()),
        ("levels_per", "epoch"),
        ("prefix_length", -1),
        ("prefix_length", 2.5),
        ("prefix_length", "long"),
        ("no_prefix_share", 1.5),
        ("span_length", 0.5),
        ("span_length", float("nan")),
        ("max_mask_rate", 0.0),
        ("max_mask_rate", 1.5),
    ],
)
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"`{setting}`"):
        ForwardProcess(MASK, **{setting: value})
