"""`TextDiffusionPipeline`: what `generate` writes, by the habits of transformers."""

import pytest
import torch
from torch.utils.data import Dataset
from transformers import pipeline

from diffusion_mlm import DiffusionGenerationConfig, TextDiffusionPipeline, generate
from diffusion_mlm.pipeline import repository_code
from diffusion_mlm.remote_code import CODE_FILE, CUSTOM_PIPELINES, remote_source

PREFIXES = ["Once upon a time", "", "Once upon a time"]


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return TextDiffusionPipeline.from_pretrained(checkpoint, device="cpu")


class Prefixes(Dataset):
    def __len__(self):
        return len(PREFIXES)

    def __getitem__(self, place):
        return PREFIXES[place] if place < len(PREFIXES) else [][place]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"schedule": "cosine", "sampling": "topk", "top_k": 3, "steps": 2, "num_return_sequences": 3, "batch_size": 2},
    ],
)
def test_texts_are_those_of_generate(pipe, settings):
    expected = generate(pipe.model, pipe.tokenizer, PREFIXES, seed=7, **settings).samples
    found = pipe(PREFIXES, seed=7, **settings)
    each = settings.get("num_return_sequences", 1)
    assert [len(samples) for samples in found] == [each] * 3
    assert [sample for samples in found for sample in samples] == [
        {"generated_text": sample.text, **vars(sample)} for sample in expected
    ]
    assert pipe(PREFIXES[0], seed=7, **settings) == found[0]


def test_settings_of_the_checkpoint_hold_where_nothing_is_said(pipe):
    assert pipe.model.generation_config.max_new_tokens == 5
    (sample,) = pipe("Once upon a time", seed=0)
    assert len(sample["token_ids"]) == 5


def test_settings_of_the_constructor_hold_for_all_calls(pipe):
    own = TextDiffusionPipeline(pipe.model, pipe.tokenizer, num_return_sequences=2, batch_size=1, seed=3)
    assert own("") == own("", seed=3) == pipe("", num_return_sequences=2, seed=3)
    assert len(own("", num_return_sequences=1)) == 1


def test_generators_and_data_sets_are_answered_while_they_are_read(pipe):
    read = []
    found = pipe((read.append(prefix) or prefix for prefix in PREFIXES), seed=1)
    first = next(found)
    assert read == PREFIXES[:1]
    assert [first, *found] == list(pipe(Prefixes(), seed=1)) == [pipe(prefix, seed=1) for prefix in PREFIXES]


def test_what_generate_takes_goes_through(pipe):
    steps = []
    pipe("Once", on_step=steps.append, seed=0, steps=3)
    assert len(steps) == 3
    seeds = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    assert pipe("", generator=seeds[0]) == pipe("", generator=seeds[1])
    assert pipe([]) == []


@pytest.mark.parametrize(
    "settings, says",
    [({"stepz": 3}, "Did you mean `steps`"), ({"steps": 0}, "`steps` must be"), ({"schedule": "x"}, "schedule")],
)
def test_impossible_settings_are_refused_at_the_call_and_in_the_constructor(pipe, settings, says):
    with pytest.raises(ValueError, match=says):
        pipe("Once", **settings)
    with pytest.raises(ValueError, match=says):
        TextDiffusionPipeline(pipe.model, pipe.tokenizer, **settings)


def test_a_model_in_memory_has_the_default_settings(tiny_roberta, story_tokenizer):
    pipe = TextDiffusionPipeline(tiny_roberta, story_tokenizer)
    assert pipe.model.generation_config.to_dict() == DiffusionGenerationConfig().to_dict()


def test_the_task_is_registered(pipe):
    assert isinstance(pipeline("text-diffusion", model=pipe.model, tokenizer=pipe.tokenizer), TextDiffusionPipeline)


def test_saving_writes_what_a_repository_needs_and_loads_again(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / CODE_FILE).read_text(encoding="utf-8") == repository_code() == remote_source()
    again = TextDiffusionPipeline.from_pretrained(tmp_path)
    assert again("Once", seed=2) == pipe("Once", seed=2)
    saved = again.model.config.custom_pipelines
    assert saved.keys() == CUSTOM_PIPELINES.keys() and saved["text-diffusion"]["impl"].endswith(
        "TextDiffusionPipeline"
    )
