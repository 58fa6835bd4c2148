"""What decides the weights of a run: the rows themselves, not where they come from, and every setting that counts."""

from dataclasses import fields

import pytest
import torch
from datasets import Dataset, IterableDataset

from diffusion_mlm import (
    DataCollatorForMaskedDiffusion,
    DiffusionTrainer,
    DiffusionTrainingArguments,
    story_language,
)
from diffusion_mlm.cli.train_arguments import TrainCommandArguments
from diffusion_mlm.corruption import ForwardProcess
from diffusion_mlm.modeling import build_model, preset_config
from diffusion_mlm.run_facts import _HARMLESS, _spread, data_digest, differences, masking_words, run_facts

ROWS = [{"input_ids": [0, 10 + row, 20 + row, 2][: 2 + row % 3]} for row in range(40)]


def test_equal_rows_have_one_digest_and_any_change_another() -> None:
    digest = data_digest(Dataset.from_list(ROWS))
    assert digest == data_digest(Dataset.from_list(ROWS))
    assert digest == data_digest(Dataset.from_list([*ROWS, ROWS[0]]).select(range(40)))  # read through indices
    changed = [dict(row) for row in ROWS]
    changed[39] = {"input_ids": [*ROWS[39]["input_ids"][:-1], 99]}
    moved = [dict(row) for row in ROWS]
    moved[3] = {"input_ids": ROWS[3]["input_ids"] + ROWS[4]["input_ids"][:1]}
    moved[4] = {"input_ids": ROWS[4]["input_ids"][1:]}
    prompts = [{**row, "prompt_length": 1} for row in ROWS]
    others = [changed, moved, ROWS[:-1], ROWS[1:] + ROWS[:1], prompts]
    for make in (Dataset.from_list, list):
        digests = {data_digest(make(rows)) for rows in (ROWS, *others)}
        assert len(digests) == 1 + len(others)
    for make in (Dataset.from_list, list):
        assert len({data_digest(make([{"text": text}])) for text in ("a fox", "a fox", "a dog")}) == 2
    assert data_digest(None) is None


def test_a_stream_is_known_by_its_first_rows_and_one_that_can_be_read_once_is_left_alone() -> None:
    def stream(rows):
        return Dataset.from_list(rows).to_iterable_dataset()

    assert data_digest(stream(ROWS)) == data_digest(stream(ROWS)) != data_digest(stream(ROWS[1:]))
    assert data_digest(IterableDataset.from_generator(lambda: iter(ROWS))) == data_digest(stream(ROWS))

    class Once(torch.utils.data.IterableDataset):
        def __iter__(self):
            raise AssertionError("read")

    assert data_digest(Once()) == "Once"


@pytest.mark.parametrize("count, size, blocks", [(0, 10, 5), (1, 10, 5), (50, 10, 5), (51, 10, 6), (1001, 10, 7)])
def test_the_blocks_that_are_read_lie_evenly_from_the_first_on(count: int, size: int, blocks: int) -> None:
    starts = list(_spread(count, size, blocks))
    assert starts == sorted(set(starts)) and len(starts) <= blocks
    assert starts[:1] == ([0] if count else [])
    if count <= size * blocks:
        assert starts == list(range(0, count, size))
    else:
        assert starts[-1] > 0.8 * count


def facts(**settings):
    args = DiffusionTrainingArguments(use_cpu=True, **settings)
    return run_facts(args, torch.nn.Linear(2, 2), story_language.tokenizer(), ROWS)


def test_differences_name_both_values() -> None:
    assert differences(facts(), facts()) == []
    assert differences(facts(seed=1), facts(seed=2, max_steps=3)) == [
        "`max_steps` was -1, is 3",
        "`num_train_epochs` was 3.0, is None",
        "`seed` was 1, is 2",
    ]
    assert (
        differences(facts(save_steps=1), facts(save_steps=2, logging_steps=3, eval_strategy="steps", eval_steps=1))
        == []
    )
    threads = torch.get_num_threads()
    try:
        before = facts()
        torch.set_num_threads(threads + 1)
        assert differences(before, facts()) == [f"`threads` was {threads}, is {threads + 1}"]
    finally:
        torch.set_num_threads(threads)


def test_what_is_taken_as_harmless_is_known_by_name() -> None:
    """A new argument counts until somebody says that it changes no weight."""
    names = {field.name for field in fields(TrainCommandArguments)}
    for start in _HARMLESS:
        assert any(name.startswith(start) for name in names), f"{start} is the beginning of no argument any more"
    harmless = {name for name in names if name.startswith(_HARMLESS)}
    for name in ("seed", "data_seed", "max_grad_norm", "dropout", "objective", "optim", "lr_scheduler_type", "bf16"):
        assert name not in harmless


def test_a_density_is_known_by_its_values_and_not_by_where_it_lies():
    def words(density):
        return masking_words(ForwardProcess(mask_id=4, rate_distribution=density))

    assert words(lambda u: u + 1) == words(lambda u: 1 + u) != words(lambda u: u + 2)
    assert "rate_distribution='uniform'" in words("uniform")


def test_weights_of_a_collator_are_known_by_their_values_and_functions_by_their_name(tmp_path):
    def words(weights):
        collator = DataCollatorForMaskedDiffusion(story_language.tokenizer(), token_weights=weights)
        args = DiffusionTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True)
        model = build_model(preset_config("roberta-tiny", collator.tokenizer), seed=0)
        return DiffusionTrainer(model, args, data_collator=collator, train_dataset=ROWS).run_facts()["masking process"]

    def doubled(ids):
        return torch.full(ids.shape, 2.0)

    ones = torch.ones(len(story_language.tokenizer()))
    assert words(ones) == words(ones.clone()) != words(2 * ones)
    assert ".doubled, end token" in words(doubled)
    assert "token weights" not in words(None)
