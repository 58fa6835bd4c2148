"""The collator: what is masked and what never is, whatever the rows, and that nothing depends on chance."""

import copy
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaConfig

from diffusion_mlm import DataCollatorForMaskedDiffusion, story_language
from diffusion_mlm.modeling import build_model

TOKENIZER = story_language.tokenizer()
MASK, PAD, END = TOKENIZER.mask_token_id, TOKENIZER.pad_token_id, TOKENIZER.eos_token_id
PROPERTIES = settings(deadline=None, derandomize=True, database=None, max_examples=200)

token_ids = st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=0, max_size=24)  # special tokens among them
rows = st.lists(
    st.fixed_dictionaries({"input_ids": token_ids}, optional={"prompt_length": st.integers(0, 26)}),
    min_size=1,
    max_size=6,
)
settings_of_process = st.fixed_dictionaries(
    {
        "schedule": st.sampled_from(["linear", "cosine", "exponential", "maskgit"]),
        "masking": st.sampled_from(["exact", "bernoulli", "levels"]),
        "levels_per": st.sampled_from(["row", "batch"]),
        "prefix_length": st.sampled_from(["random", 0, 3]),
        "span_length": st.sampled_from([1.0, 3.0]),
        "mask_end_token": st.booleans(),
        "pad_to_multiple_of": st.sampled_from([None, 8]),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def features(num_rows=8, first=0):
    return [{"input_ids": row} for row in story_language.sample_ids(num_rows, seed=5, first=first).tolist()]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@PROPERTIES
@given(rows=rows, settings_of_process=settings_of_process)
def test_only_maskable_tokens_are_masked_and_labels_say_which(rows, settings_of_process):
    collator = DataCollatorForMaskedDiffusion(TOKENIZER, **settings_of_process)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    batch = collator(rows)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()

    width = batch["input_ids"].shape[1]
    if settings_of_process["pad_to_multiple_of"]:
        assert width % 8 == 0
    fixed = 0 if settings_of_process["prefix_length"] == "random" else settings_of_process["prefix_length"]
    never = set(TOKENIZER.all_special_ids) - ({END} if settings_of_process["mask_end_token"] else set())
    for row, ids, attended, labels in zip(
        rows, batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["labels"].tolist(), strict=True
    ):
        clean = row["input_ids"] + [PAD] * (width - len(row["input_ids"]))
        assert attended == [int(place < max(len(row["input_ids"]), 1)) for place in range(width)]
        maskable = [
            place
            for place, token in enumerate(row["input_ids"])
            if token not in never and place >= row.get("prompt_length", 0)
        ]
        masked = [place for place in range(width) if labels[place] != -100]
        assert set(masked) <= set(maskable[fixed:])
        assert [labels[place] for place in masked] == [clean[place] for place in masked]
        expected = [MASK if place in masked else token for place, token in enumerate(clean)]
        assert ids == expected
        if maskable[fixed:]:
            assert masked


@PROPERTIES
@given(rows=rows)
def test_clean_rows_have_labels_at_every_maskable_token(rows):
    batch = DataCollatorForMaskedDiffusion(TOKENIZER, mask=False)(rows)
    for row, ids, labels in zip(rows, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        assert ids[: len(row["input_ids"])] == row["input_ids"]
        given = row.get("prompt_length", 0)
        for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
            maskable = given <= place < len(row["input_ids"]) and token not in TOKENIZER.all_special_ids
            assert label == (token if maskable else -100)


def test_masks_are_a_pure_function_of_seed_and_content():
    collator = DataCollatorForMaskedDiffusion(TOKENIZER)
    torch.manual_seed(0)
    first = collator(features())
    torch.manual_seed(1)
    assert same(collator(features()), first)
    assert same(DataCollatorForMaskedDiffusion(TOKENIZER)(features()), first)
    assert not same(DataCollatorForMaskedDiffusion(TOKENIZER, seed=1)(features()), first)


def test_other_neighbours_bring_another_mask():
    """So a reshuffled epoch brings new masks: the key is the content of the whole batch."""
    collator = DataCollatorForMaskedDiffusion(TOKENIZER)
    rows = features(8)
    labels = collator(rows)["labels"]
    shuffled = collator(rows[::-1])["labels"].flip(0)
    assert (labels != shuffled).any(-1).sum() >= 7


def test_rates_are_stratified_over_the_batch():
    collator = DataCollatorForMaskedDiffusion(TOKENIZER, return_mask_rate=True)
    rate = collator(features(20))["mask_rate"]
    assert rate.dtype == torch.float32
    assert sorted(torch.ceil(rate * 20).int().tolist()) == list(range(1, 21))


def test_the_mask_rate_is_what_is_masked():
    collator = DataCollatorForMaskedDiffusion(TOKENIZER, prefix_length=0, mask_end_token=True, return_mask_rate=True)
    batch = collator(features(16))
    maskable = story_language.BLOCK_LENGTH - 1  # all but <s>
    assert torch.equal(batch["labels"].ne(-100).sum(-1), torch.ceil(batch["mask_rate"] * maskable - 1e-4).long())
    assert "mask_rate" not in DataCollatorForMaskedDiffusion(TOKENIZER)(features(2))


def test_random_prefixes_leave_a_share_of_rows_without_one():
    """0 with probability 0.3, and otherwise uniform up to half the row."""
    collator = DataCollatorForMaskedDiffusion(TOKENIZER, masking="levels", levels=(1.0,), mask_end_token=True)
    labels = collator(features(2000))["labels"]
    prefix = labels.ne(-100).long().argmax(-1) - 1  # everything but the prefix is masked at rate 1
    assert prefix.eq(0).float().mean() == pytest.approx(0.3, abs=0.04)
    half = (story_language.BLOCK_LENGTH - 1) // 2
    assert prefix.max() == half
    assert prefix[prefix > 0].float().mean() == pytest.approx((1 + half) / 2, abs=1.5)


@pytest.mark.parametrize("length", [0, 5])
def test_a_fixed_prefix_is_kept_and_the_rest_is_masked_at_rate_one(length):
    collator = DataCollatorForMaskedDiffusion(TOKENIZER, prefix_length=length, masking="levels", levels=(1.0,))
    for feature, labels in zip(features(4), collator(features(4))["labels"], strict=True):
        maskable = [i for i, token in enumerate(feature["input_ids"]) if token not in TOKENIZER.all_special_ids]
        assert labels.ne(-100).nonzero()[:, 0].tolist() == maskable[length:]


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor, lambda ids: np.array(ids, dtype=np.int32)])
def test_lists_arrays_and_tensors_give_the_same_batch(convert):
    collator = DataCollatorForMaskedDiffusion(TOKENIZER)
    converted = [{"input_ids": convert(feature["input_ids"])} for feature in features(4)]
    assert same(collator(converted), collator(features(4)))


def test_other_columns_are_ignored():
    collator = DataCollatorForMaskedDiffusion(TOKENIZER)
    rich = [{**feature, "text": "a story", "idx": 7, "token_type_ids": [0], "labels": None} for feature in features(4)]
    assert same(collator(rich), collator(features(4)))


def test_padding_of_the_tokenizer_is_taken_off():
    """Rows padded by `tokenizer(..., padding="max_length")`, on either side, are the rows they were."""
    collator = DataCollatorForMaskedDiffusion(TOKENIZER)
    texts = story_language.sample(4, seed=0)
    plain = [{"input_ids": TOKENIZER(text)["input_ids"]} for text in texts]
    for side in ("right", "left"):
        padded = TOKENIZER(texts, padding="max_length", max_length=100, padding_side=side)
        rows = [{name: padded[name][i] for name in ("input_ids", "attention_mask")} for i in range(4)]
        assert same(collator(rows), collator(plain))


def test_rows_without_a_maskable_token_are_reported_once_and_add_nothing(caplog):
    collator = DataCollatorForMaskedDiffusion(TOKENIZER, prefix_length=0)
    rows = [{"input_ids": []}, {"input_ids": [0, 2]}, {"input_ids": [0, 9, 10, 2], "prompt_length": 3}, *features(2)]
    with caplog.at_level(logging.WARNING, logger="diffusion_mlm"):
        batch = collator(rows)
        collator(rows)
    assert [record.message.split(" have")[0] for record in caplog.records] == ["3 of the 5 rows of a batch"]
    assert batch["labels"].ne(-100).any(-1).tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_short_and_empty_rows_give_no_nan(attention):
    config = RobertaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=90,
        pad_token_id=PAD,
    )
    model = build_model(config, attn_implementation=attention)
    batch = DataCollatorForMaskedDiffusion(TOKENIZER)(
        [{"input_ids": []}, {"input_ids": [0]}, {"input_ids": [0, 9, 2]}]
    )
    loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_the_end_token_is_masked_only_on_request():
    rows = features(64)
    for wanted in (False, True):
        labels = DataCollatorForMaskedDiffusion(TOKENIZER, mask_end_token=wanted)(rows)["labels"]
        assert bool(labels.eq(END).any()) == wanted


def test_a_collator_survives_copying():
    """Workers started by spawning get a pickled one."""
    collator = DataCollatorForMaskedDiffusion(TOKENIZER)
    assert same(copy.deepcopy(collator)(features(4)), collator(features(4)))


@pytest.mark.parametrize("missing, named", [("mask_token", "no mask token"), ("pad_token", "no padding token")])
def test_a_tokenizer_without_what_is_needed_is_refused(missing, named):
    tokenizer = story_language.tokenizer()
    setattr(tokenizer, missing, None)
    with pytest.raises(ValueError, match=named):
        DataCollatorForMaskedDiffusion(tokenizer)


@pytest.mark.parametrize(
    "setting, value",
    [("schedule", "lin"), ("masking", "none"), ("levels", ()), ("prefix_length", -1), ("prefix_length", 1.5)],
)
def test_a_bad_setting_is_named(setting, value):
    with pytest.raises(ValueError, match=f"`{setting}`"):
        DataCollatorForMaskedDiffusion(TOKENIZER, **{setting: value})


def test_labels_of_all_maskable_tokens_hold_the_visible_ones_too():
    rows = [{"input_ids": row} for row in story_language.sample_ids(4, seed=2).tolist()]
    masked = DataCollatorForMaskedDiffusion(TOKENIZER, prefix_length=3)(rows)
    both = DataCollatorForMaskedDiffusion(TOKENIZER, prefix_length=3, label_positions="maskable")(rows)
    clean = torch.tensor([row["input_ids"] for row in rows])
    maskable = ~torch.isin(clean, torch.tensor(TOKENIZER.all_special_ids))
    maskable &= maskable.cumsum(-1) > 3
    assert torch.equal(both["input_ids"], masked["input_ids"])
    assert torch.equal(both["labels"], clean.masked_fill(~maskable, -100))
    assert (both["labels"] != -100).sum() > (masked["labels"] != -100).sum()
    with pytest.raises(ValueError, match="`label_positions` must be one of masked, maskable, not 'all'"):
        DataCollatorForMaskedDiffusion(TOKENIZER, label_positions="all")
