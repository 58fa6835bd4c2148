"""Tokens that are masked more often: the law of weighted draws, weights of rare tokens, and what is refused."""

import itertools

import pytest
import torch
from datasets import Dataset
from test_trainer import TOKENIZER, RecordingTrainer, make_rows, make_trainer

from diffusion_mlm import DataCollatorForMaskedDiffusion
from diffusion_mlm.corruption import ForwardProcess, exact_count_mask, weighted_noise
from diffusion_mlm.randomness import uniform
from diffusion_mlm.token_weights import rare_token_weights, token_counts

MASK = TOKENIZER.mask_token_id


def test_sets_are_drawn_one_token_after_another_in_proportion_to_their_weights():
    """All 6 pairs of 4 positions, whose chances are those of two draws without replacement, counted by hand."""
    weights, draws = torch.tensor([1.0, 2.0, 3.0, 6.0]), 40_000
    noise = weighted_noise(uniform(torch.arange(draws), 4), weights.expand(draws, -1))
    chosen = exact_count_mask(torch.ones(draws, 4).bool(), torch.full((draws,), 0.5), noise)
    share = weights / weights.sum()
    for first, second in itertools.combinations(range(4), 2):
        p, q = float(share[first]), float(share[second])
        expected = p * q / (1 - p) + q * p / (1 - q)
        found = float((chosen[:, first] & chosen[:, second]).double().mean())
        assert abs(found - expected) < 5 * (expected / draws) ** 0.5


def test_equal_weights_change_no_mask():
    ids = torch.arange(5, 25).expand(50, -1)
    arguments = (ids, torch.ones_like(ids).bool(), torch.arange(50), torch.linspace(0.02, 1, 50, dtype=torch.float64))
    plain, equal, called = (
        ForwardProcess(MASK, token_weights=weights)(*arguments)
        for weights in (None, torch.full((30,), 0.3), lambda ids: torch.full(ids.shape, 7.0))
    )
    assert torch.equal(plain.is_masked, equal.is_masked) and torch.equal(plain.is_masked, called.is_masked)


def test_weights_move_masks_between_tokens_but_change_no_count():
    ids = torch.tensor([[5, 6, 5, 6, 5, 6, 5, 6]]).expand(2000, -1)
    weights = torch.ones(30)
    weights[6] = 5
    t = torch.full((2000,), 0.5, dtype=torch.float64)
    batch = ForwardProcess(MASK, prefix_length=0, token_weights=weights)(ids, ids > 0, torch.arange(2000), t)
    assert (batch.is_masked.sum(-1) == 4).all()
    assert float((batch.is_masked & (ids == 6)).sum() / batch.is_masked.sum()) > 0.7
    assert not batch.is_masked[~batch.maskable].any()


def test_a_token_four_times_as_rare_has_twice_the_weight():
    rows = [{"input_ids": [0, 5, 5, 5, 6, 2]}, {"input_ids": [0, 5, 7, 2]}]
    counts = token_counts(rows, 9)
    assert counts.tolist() == [2, 0, 2, 0, 0, 4, 1, 1, 0]
    assert torch.equal(token_counts(Dataset.from_list(rows), 9), counts)
    weights = rare_token_weights(torch.tensor([3, 15, 0]))
    assert weights.tolist() == pytest.approx([1 / 2, 1 / 4, 1])


def test_rare_tokens_are_masked_more_often_in_training_and_evaluation_stays_as_it_is(tmp_path):
    shares, bounds = [], []
    rows = make_rows(40)
    common = token_counts(rows, len(TOKENIZER)) > 40
    for token_weights in (None, "rare"):
        trainer = make_trainer(
            tmp_path,
            rows=rows,
            trainer_class=RecordingTrainer,
            token_weights=token_weights,
            per_device_train_batch_size=40,
            max_steps=1,
        )
        bounds.append(trainer.evaluate(make_rows(4, first=50))["eval_loss"])
        trainer.train()
        (batch,) = trainer.micro_batches
        shares.append(float(common[batch.targets[batch.is_masked]].double().mean()))
    assert shares[1] < 0.85 * shares[0]
    assert bounds[0] == bounds[1]


def test_a_stream_cannot_be_counted(tmp_path):
    stream = Dataset.from_list(make_rows(8)).to_iterable_dataset()
    with pytest.raises(ValueError, match="`token_weights` are counted before training"):
        make_trainer(tmp_path, rows=stream, token_weights="rare", max_steps=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"token_weights": torch.tensor([1.0, 0.0])},
        {"token_weights": torch.tensor([1.0, float("nan")])},
        {"token_weights": torch.ones(2, 2)},
        {"token_weights": torch.ones(3), "masking": "bernoulli"},
        {"token_weights": torch.ones(3), "span_length": 2.0},
    ],
)
def test_impossible_weights_are_refused(settings):
    with pytest.raises(ValueError, match="`token_weights`"):
        ForwardProcess(MASK, **settings)


def test_a_collator_wants_a_weight_for_each_token():
    with pytest.raises(
        ValueError, match=f"`token_weights` must hold a weight for each of the {len(TOKENIZER)} tokens"
    ):
        DataCollatorForMaskedDiffusion(TOKENIZER, token_weights=torch.ones(3))
