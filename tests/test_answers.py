"""Answers: what `generate` writes, cut at the first stop string, for fewer forwards, the same in every batch."""

import copy

import pytest

from diffusion_mlm import DiffusionGenerationConfig, generate, story_language
from diffusion_mlm.evaluation.answers import cut_at, longest_context, write_answers
from diffusion_mlm.tokenization import encode_text

TOKENIZER = story_language.tokenizer()
STORIES = story_language.sample(4, seed=8)
CONTEXTS = ["One day", "Once upon a time, Mia", "", "One day", "Ben lived near the lake."]
EXACT = story_language.ExactDenoiser()


def answers_of(model, config, contexts=CONTEXTS, **options):
    found = dict(write_answers(model, TOKENIZER, contexts, config, **options))
    return [found[place] for place in range(len(contexts))]


class CountedRows:
    """A copy of a model that counts the rows it was asked about."""

    def __init__(self, model):
        self.rows = 0
        self.model = copy.deepcopy(model)
        self.model.register_forward_pre_hook(self.record, with_kwargs=True)

    def record(self, model, args, inputs):
        self.rows += int(inputs["input_ids"].eq(TOKENIZER.mask_token_id).any(-1).sum())


@pytest.mark.parametrize(
    "text, stop_strings, expected",
    [
        ("Paris. Q: next", ["Q:", "."], "Paris"),
        ("Paris. Q: next", ["Q:"], "Paris. "),
        ("Paris", ["London", ""], "Paris"),
        ("Paris", [], "Paris"),
        ("Paris", ["P"], ""),
    ],
)
def test_a_text_is_cut_at_the_first_stop_string(text, stop_strings, expected):
    assert cut_at(text, stop_strings) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sampling": "greedy", "order": "left_to_right"},
        {"order": "random", "steps": 4, "block_length": 0},
        {"preset": "quality", "remask": "remdm_cap", "steps_per_token": 2.0},
        {"max_new_tokens": 28, "stride": 10},  # in several windows
    ],
    ids=lambda settings: " ".join(settings) or "default",
)
def test_an_answer_is_what_generate_writes_up_to_the_stop_string(shared_roberta, settings):
    config = DiffusionGenerationConfig(**{"max_new_tokens": 12} | settings)
    written = generate(shared_roberta, TOKENIZER, CONTEXTS, config, seed=5).samples
    assert len({sample.completion for sample in written}) >= 4
    stop_strings = [sample.completion.split()[5] for sample in written[:3]]  # some are in the others too
    found = answers_of(shared_roberta, config.updated(batch_size=2), stop_strings=stop_strings, seed=5)
    assert found == [cut_at(sample.completion, stop_strings) for sample in written]
    assert found != [sample.completion for sample in written]


def test_without_stop_strings_the_whole_text_is_the_answer(shared_roberta):
    config = DiffusionGenerationConfig(max_new_tokens=6)
    written = generate(shared_roberta, TOKENIZER, CONTEXTS, config, seed=5).samples
    assert answers_of(shared_roberta, config, seed=5) == [sample.completion for sample in written]


def test_the_same_context_asked_twice_is_answered_twice(shared_roberta):
    found = answers_of(shared_roberta, DiffusionGenerationConfig(max_new_tokens=6))
    assert found[0] != found[3]
    assert found == answers_of(shared_roberta, DiffusionGenerationConfig(max_new_tokens=6))


def test_what_comes_after_a_stop_string_is_not_written(shared_roberta):
    config = DiffusionGenerationConfig(max_new_tokens=24, order="left_to_right", block_length=0)
    (sample,) = generate(shared_roberta, TOKENIZER, "One day", config, seed=0).samples
    third = TOKENIZER.decode(sample.token_ids[2:3])
    assert third not in TOKENIZER.decode(sample.token_ids[:2])
    counted = CountedRows(shared_roberta)
    (answer,) = answers_of(counted.model, config, ["One day"], stop_strings=[third])
    assert answer == cut_at(sample.completion, [third]) != sample.completion
    assert counted.rows == 4  # three tokens, and the rest at once


def test_windows_behind_a_stop_string_are_not_written(shared_roberta):
    config = DiffusionGenerationConfig(max_new_tokens=200, stride=10)
    (whole,) = answers_of(shared_roberta, config.updated(max_new_tokens=40), ["One day"])
    stop = whole.split(" ")[2]
    counted = CountedRows(shared_roberta)
    answers_of(counted.model, config, ["One day"], stop_strings=[stop])
    assert counted.rows <= 10


def test_an_answer_of_the_exact_denoiser_ends_where_the_sentence_does():
    context = STORIES[0][: STORIES[0].index(".") + 1]
    config = DiffusionGenerationConfig(sampling="greedy", order="left_to_right", max_new_tokens=20)
    (sentence,) = answers_of(EXACT, config, [context], stop_strings=["."])
    (text,) = generate(EXACT, TOKENIZER, context, config).samples
    assert sentence and text.completion.startswith(f"{sentence}.")


@pytest.mark.parametrize("max_new_tokens", [8, 22, 23])
def test_a_long_context_is_cut_so_that_an_answer_has_room(shared_roberta, caplog, max_new_tokens):
    config = DiffusionGenerationConfig(max_new_tokens=max_new_tokens, sampling="greedy")
    longest = longest_context(shared_roberta, TOKENIZER, config)
    assert 32 - 2 - longest == (max_new_tokens if max_new_tokens <= 22 else 15)
    contexts = [STORIES[0], "One day", STORIES[1]]
    found = answers_of(shared_roberta, config, contexts)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert messages == ["2 of 3 prefixes are too long, and are cut from the left."]
    words = STORIES[0].split(" ")
    while len(encode_text(TOKENIZER, " ".join(words))) > longest:
        del words[0]
    if len(encode_text(TOKENIZER, " ".join(words))) == longest:  # the cut lies before a word, not before a mark
        assert found[0] == answers_of(shared_roberta, config, [" ".join(words)])[0]
    assert found[1] == answers_of(shared_roberta, config, ["One day"])[0]


def test_a_model_that_writes_ends_keeps_a_quarter_of_a_row_for_its_answer():
    row = story_language.BLOCK_LENGTH
    assert longest_context(EXACT, TOKENIZER, DiffusionGenerationConfig()) == row - 1 - row // 4


def test_progress_grows_to_all_tokens(shared_roberta):
    seen = []
    config = DiffusionGenerationConfig(max_new_tokens=8, batch_size=2)
    answers_of(shared_roberta, config, stop_strings=["a"], progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (40, 40)


def test_the_model_comes_back_in_the_mode_it_was_in(tiny_roberta):
    tiny_roberta.train()
    answers_of(tiny_roberta, DiffusionGenerationConfig(max_new_tokens=2))
    assert tiny_roberta.training
