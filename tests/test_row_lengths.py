"""Rows cut to a random length: what stays, how often, and that it depends on the row's key alone."""

import pytest
import torch
from test_trainer import TOKENIZER, RecordingTrainer, make_trainer

from diffusion_mlm import DataCollatorForMaskedDiffusion, story_language
from diffusion_mlm.row_lengths import cut_rows

PAD, END = 1, 2
# <s> prompt prompt text text text text </s> <pad> <pad>
ROW = torch.tensor([0, 5, 6, 11, 12, 13, 14, END, PAD, PAD])
ATTENDED = ROW.ne(PAD).long()
MASKABLE = ROW > 10


def cut(num_rows, share=1.0, row=ROW, maskable=MASKABLE, first_key=0):
    rows = (tensor.expand(num_rows, -1) for tensor in (row, row.ne(PAD).long(), maskable))
    return cut_rows(*rows, torch.arange(first_key, first_key + num_rows), share, PAD)


def test_a_closed_row_is_closed_again_behind_every_number_of_tokens_alike():
    ids, attended, maskable = cut(20_000)
    kept = maskable.sum(-1)
    expected = torch.stack(
        [torch.cat([ROW[: 3 + n], torch.tensor([END]), torch.full((6 - n,), PAD)]) for n in range(1, 5)]
    )
    assert torch.equal(ids, expected[kept - 1])
    assert torch.equal(attended, ids.ne(PAD).long())
    assert torch.equal(maskable, ids > 10)
    share = torch.bincount(kept, minlength=5)[1:] / 20_000
    assert (share - 1 / 4).abs().max() < 5 * (3 / 16 / 20_000) ** 0.5


def test_a_row_whose_end_is_a_token_to_learn_breaks_off():
    """Rows of one text filled with `</s>`: it may not be pretended that the text ends where it is cut."""
    row = torch.tensor([0, 11, 12, END, END])
    ids, attended, maskable = cut(50, row=row, maskable=row > 0)
    for line, length in zip(ids, attended.sum(-1), strict=True):
        assert torch.equal(line[:length], row[:length]) and (line[length:] == PAD).all()
    assert sorted(set(attended.sum(-1).tolist())) == [2, 3, 4, 5]


def test_only_the_asked_share_of_rows_is_cut():
    ids, *_ = cut(20_000, share=0.1)
    changed = (ids != ROW).any(-1).double().mean()
    assert abs(changed - 0.1 * 3 / 4) < 5 * (0.075 / 20_000) ** 0.5  # one cut in four keeps all of the row
    ids, attended, maskable = cut(3, share=0.0)
    assert torch.equal(ids, ROW.expand(3, -1)) and torch.equal(attended, ATTENDED.expand(3, -1))


def test_a_row_without_a_maskable_token_stays():
    ids, attended, _ = cut(20, maskable=torch.zeros_like(MASKABLE))
    assert torch.equal(ids, ROW.expand(20, -1)) and torch.equal(attended, ATTENDED.expand(20, -1))


def test_a_cut_depends_on_the_key_of_the_row_alone():
    together = cut(8)[0]
    assert all(torch.equal(together[key], cut(1, first_key=key)[0][0]) for key in range(8))


@pytest.mark.parametrize("mask_end_token", [False, True])
def test_the_collator_cuts_rows_and_masks_what_is_left(mask_end_token):
    collator = DataCollatorForMaskedDiffusion(
        TOKENIZER, random_length_share=1.0, mask_end_token=mask_end_token, prefix_length=0, seed=4
    )
    rows = story_language.sample_ids(16, seed=1)
    if not mask_end_token:
        rows = torch.cat([rows[:, :40], torch.full((16, 1), TOKENIZER.eos_token_id)], 1)  # a closed block
    batch = collator([{"input_ids": row} for row in rows.tolist()])
    lengths = batch["attention_mask"].sum(-1)
    assert len(set(lengths.tolist())) > 8
    for ids, labels, row, length in zip(batch["input_ids"], batch["labels"], rows, lengths, strict=True):
        assert (ids[length:] == TOKENIZER.pad_token_id).all() and (labels[length:] == -100).all()
        assert (labels != -100).any()
        clean = torch.where(labels != -100, labels, ids)
        assert torch.equal(clean[: length - 1], row[: length - 1])
        assert mask_end_token or clean[length - 1] == TOKENIZER.eos_token_id


def test_training_cuts_rows_whatever_the_accumulation(tmp_path):
    found = []
    for batch_size, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path,
            rows=[{"input_ids": row} for row in story_language.sample_ids(8, seed=1).tolist()],
            trainer_class=RecordingTrainer,
            random_length_share=0.5,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            max_steps=1,
        )
        trainer.train()
        found.append(torch.cat([batch.input_ids for batch in trainer.micro_batches]))
    assert torch.equal(*found)
    assert 0 < int(found[0].eq(TOKENIZER.pad_token_id).any(-1).sum()) < 8
