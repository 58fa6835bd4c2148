"""The grid of settings, their quality and the frontier: against brute force, real text and the sampler itself."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

from diffusion_mlm import DiffusionGenerationConfig, generate, story_language
from diffusion_mlm.evaluation.judge import Judge
from diffusion_mlm.evaluation.judged_quality import JudgedQuality, held_out_texts
from diffusion_mlm.evaluation.story_quality import StoryQuality
from diffusion_mlm.evaluation.sweep import (
    SweepPoint,
    _effect,
    best_place,
    config_of,
    frontier,
    measure_setting,
    names_of,
    settings_grid,
)
from diffusion_mlm.generation_config import PRESETS

SHARED = Path(__file__).parents[2] / "shared"
STORIES = story_language.sample(64, seed=21)


# The frontier

points = st.lists(
    st.builds(
        SweepPoint,
        settings=st.just({}),
        forwards=st.sampled_from([1.0, 2.0, 2.5, 8.0, 9.0]),
        quality=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
        collapsed=st.booleans(),
        figures=st.just({}),
        samples=st.just([]),
    ),
    max_size=9,
)


def beats(one: SweepPoint, other: SweepPoint) -> bool:
    at_least = one.forwards <= other.forwards and one.quality >= other.quality
    return at_least and (one.forwards < other.forwards or one.quality > other.quality)


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(points)
def test_the_frontier_is_what_no_sound_point_beats(points: list[SweepPoint]) -> None:
    sound = [place for place, point in enumerate(points) if not point.collapsed and point.quality > 0]
    expected = [place for place in sound if not any(beats(points[other], points[place]) for other in sound)]
    found = frontier(points)
    assert sorted(found) == expected
    assert [points[place].forwards for place in found] == sorted(points[place].forwards for place in found)


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(points, st.sampled_from([None, 1.0, 2.2, 100.0]))
def test_the_best_has_the_highest_quality_that_the_budget_allows(
    points: list[SweepPoint], budget: float | None
) -> None:
    allowed = [
        (-point.quality, point.forwards, place)
        for place, point in enumerate(points)
        if not point.collapsed and point.quality > 0 and (budget is None or point.forwards <= budget)
    ]
    if allowed:
        assert best_place(points, budget) == min(allowed)[2]
    else:
        with pytest.raises(ValueError, match="`max_forwards` is|No setting is the best"):
            best_place(points, budget)


# The grid


def test_combinations_come_in_order_behind_the_presets() -> None:
    grid = settings_grid({"steps": [2, 4], "order": ["random", "margin"]}, ["fast"])
    assert grid.settings == [
        {"preset": "fast"},
        {"steps": 2, "order": "random"},
        {"steps": 2, "order": "margin"},
        {"steps": 4, "order": "random"},
        {"steps": 4, "order": "margin"},
    ]
    assert (grid.num_impossible, grid.num_same) == (0, 0)
    assert [config_of(setting).order for setting in grid.settings][:3] == ["entropy", "random", "margin"]


def test_what_is_left_out_is_at_the_default_and_not_as_the_checkpoint_has_it() -> None:
    base = DiffusionGenerationConfig("greedy", max_new_tokens=7, stride=3, order="random")
    config = config_of({"steps": 2}, base)
    assert (config.sampling, config.order, config.steps) == ("nucleus", "entropy", 2)
    assert (config.max_new_tokens, config.stride) == (7, 3)


def test_impossible_combinations_are_left_out_and_counted() -> None:
    orders, remasks = ["random", "confidence"], ["none", "low_confidence"]
    grid = settings_grid({"steps": [4], "adaptive": [None, "threshold"], "order": orders, "remask": remasks})
    assert grid.num_impossible == 3  # low_confidence in random order, and with adaptive in both orders
    assert grid.settings == [
        {"steps": 4, "order": "random", "remask": "none"},
        {"steps": 4, "order": "confidence", "remask": "none"},
        {"steps": 4, "order": "confidence", "remask": "low_confidence"},
        {"steps": 4, "adaptive": "threshold", "order": "random", "remask": "none"},
        {"steps": 4, "adaptive": "threshold", "order": "confidence", "remask": "none"},
    ]


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"temperature": [0.5, -1.0]},
            "`temperature` -1.0 is in no possible combination: `temperature` must be a fin",
        ),
        ({"order": ["random"], "remask": ["none", "low_confidence"]}, "`remask` 'low_confidence' is in no possible"),
        ({"adaptive_bound": [0.5]}, "it belongs to `adaptive`"),
        ({"steps": [8, 0]}, "`steps` 0 is in no possible combination"),
        ({}, "There is no setting to try"),
    ],
)
def test_a_value_without_any_possible_combination_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_grid(values)


def test_too_few_steps_for_the_blocks_are_known_with_the_length() -> None:
    values = {"steps": [2, 8], "block_length": [0, 2]}
    assert settings_grid(values).num_impossible == 0
    assert settings_grid(values, num_new=5).num_impossible == 1
    assert settings_grid(values, num_new=4).num_impossible == 0
    with pytest.raises(ValueError, match="`steps` 2 is in no possible .* 5 tokens in blocks of 2 need at least 3"):
        settings_grid({"steps": [2, 8], "block_length": [2]}, num_new=5)


def test_all_presets_differ() -> None:
    grid = settings_grid({}, list(PRESETS))
    assert grid.settings == [{"preset": preset} for preset in PRESETS]
    again = settings_grid({"order": ["entropy"], "sampling": ["greedy", "nucleus"]}, list(PRESETS))
    assert again.num_same == 2 and len(again.settings) == len(PRESETS)


def test_settings_that_count_as_the_same_write_the_same(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    schedules, remasks = ["linear", "exponential"], ["none", "remdm_cap"]
    plans = itertools.product(schedules, [None, 3, 9], [None, "entropy_bound"], remasks)
    of_plans = [dict(zip(("schedule", "steps", "adaptive", "remask"), plan, strict=True)) for plan in plans]
    tokens = itertools.product(["greedy", "nucleus", "topk"], [0.7, 1.0], [3, 9])
    of_tokens = [dict(zip(("sampling", "temperature", "top_k"), chosen, strict=True)) for chosen in tokens]
    base = DiffusionGenerationConfig(max_new_tokens=6)
    texts: dict[tuple[Any, ...], list[str]] = {}
    num_same = 0
    for setting in (*of_plans, *of_tokens):
        try:
            config = config_of(setting, base)
        except ValueError:
            continue
        written = generate(tiny_roberta, story_tokenizer, "", config, seed=3).texts
        num_same += _effect(config, 6) in texts
        assert texts.setdefault(_effect(config, 6), written) == written, setting
    assert (num_same, len(texts)) == (10, 20) and len({tuple(written) for written in texts.values()}) > 5


def test_names_leave_out_what_all_have_in_common() -> None:
    made = [
        SweepPoint({"steps": steps, "order": "random", **more}, 1.0, 1.0, False, {}, [])
        for steps, more in ((2, {}), (4, {}), (4, {"adaptive": "factor"}))
    ]
    assert names_of(made) == (["steps 2", "steps 4", "steps 4, adaptive factor"], "order random")
    assert names_of(made[:1]) == (["steps 2, order random"], "")


# Quality by the grammar


def test_stories_of_the_language_have_almost_all_quality() -> None:
    measured = StoryQuality(64).measure(STORIES)
    assert measured.quality > 0.95 and not measured.collapsed


def test_what_the_grammar_refuses_takes_quality_away_by_its_share() -> None:
    quality = StoryQuality(64)
    half = quality.measure([*STORIES[:32], *(story + " Ende" for story in STORIES[32:])])
    assert 0.4 < half.quality <= 0.5 and not half.collapsed
    nothing = quality.measure(["The cat sat."] * 64)
    assert nothing.quality == 0 and not nothing.collapsed


def test_likely_stories_again_and_again_have_collapsed() -> None:
    likeliest = STORIES[int(story_language.log_prob(STORIES).argmax())]
    measured = StoryQuality(64).measure([likeliest] * 64)
    assert measured.collapsed and measured.quality < 0.1


def test_a_setting_is_measured_by_its_texts_and_forwards(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: PreTrainedTokenizerFast
) -> None:
    base = DiffusionGenerationConfig(max_new_tokens=6, num_return_sequences=3)
    quality, seen = StoryQuality(3), []
    setting = {"steps": 2, "order": "random"}
    point = measure_setting(
        tiny_roberta, story_tokenizer, setting, quality, [""], base, 5, lambda *made: seen.append(made)
    )
    texts = generate(tiny_roberta, story_tokenizer, "", config_of(setting, base), seed=5).texts
    assert (point.forwards, point.samples) == (2.0, texts[:2])
    assert point.figures["num_distinct"] == len(set(texts)) and seen[-1] == (18, 18)
    assert SweepPoint(**point.to_dict()) == point


# Quality by a judge


class Echo(nn.Module):
    """A judge that expects every token to come again, and all others evenly."""

    def __init__(self, size: int, again: float = 0.5) -> None:
        super().__init__()
        self.size, self.again = size, again
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input_ids: Tensor, **other: Any) -> Any:
        probs = torch.full((*input_ids.shape, self.size), (1 - self.again) / (self.size - 1))
        probs = probs.scatter(-1, input_ids.unsqueeze(-1), self.again)
        return type("Output", (), {"logits": probs.log() * self.scale})


def test_real_text_has_all_quality_and_an_echo_has_collapsed(story_tokenizer: PreTrainedTokenizerFast) -> None:
    quality = JudgedQuality(Judge(Echo(len(story_tokenizer)), story_tokenizer), STORIES)
    assert quality.measure(STORIES).quality == 1 and not quality.measure(STORIES).collapsed
    echo = quality.measure(["lake lake lake lake"] * 64)
    assert echo.collapsed and echo.quality < 0.01
    assert quality.measure(["", " "]).collapsed and quality.measure(["", " "]).quality == 0
    with pytest.raises(ValueError, match="`--eval-file` holds no text"):
        JudgedQuality(Judge(Echo(len(story_tokenizer)), story_tokenizer), [" "])


def test_blank_texts_have_no_quality(story_tokenizer: PreTrainedTokenizerFast) -> None:
    quality = JudgedQuality(Judge(Echo(len(story_tokenizer), again=1e-3), story_tokenizer), STORIES)
    share = 4 / len(STORIES)
    assert quality.measure(STORIES[:4] + [""] * (len(STORIES) - 4)).quality < 1.1 * share


def test_held_out_texts_are_as_long_as_samples(story_tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["the lake", *STORIES[:3]]
    found = held_out_texts(texts, story_tokenizer, 3, 9)
    assert [len(story_tokenizer(text, add_special_tokens=False).input_ids) for text in found] == [9, 9, 9]
    assert all(story.startswith(text) for story, text in zip(STORIES, found, strict=False))
    assert held_out_texts(texts, story_tokenizer, 4, 9) == [*found, "the lake"]
    with pytest.raises(ValueError, match="`--eval-file` holds 4 texts, and 5 are needed"):
        held_out_texts(texts, story_tokenizer, 5, 9)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the judge model is not there")
def test_a_real_judge_ranks_real_text_over_shuffled_words_and_sees_repetition() -> None:
    judge = Judge.from_pretrained(str(SHARED / "models" / "stories260k"))
    text = (SHARED / "data" / "tinystories" / "tiny_stories.txt").read_text(encoding="utf-8")[:9000]
    pieces = [" ".join(text.split()[first : first + 50]) for first in range(0, 1200, 50)]
    real, held_out = pieces[::2], pieces[1::2]
    quality = JudgedQuality(judge, real)
    shuffled = [" ".join(sorted(piece.split(), key=lambda word: word[::-1])) for piece in held_out]
    again = [" ".join(["Once upon a time there was a little girl named Lily."] * 5)] * 12
    figures = [quality.measure(texts) for texts in (held_out, shuffled, again)]
    assert figures[0].quality > 0.8 > 0.5 > figures[1].quality > figures[2].quality
    assert not figures[0].collapsed and not figures[1].collapsed and figures[2].collapsed
