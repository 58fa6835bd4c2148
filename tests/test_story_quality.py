"""Stories measured by the grammar: its own are perfect, what it cannot write is refused, repeats are too probable."""

import math

import pytest

from diffusion_mlm import story_language
from diffusion_mlm.evaluation.story_quality import story_figures, writes_stories

STORIES = story_language.sample(256, seed=11)


def test_stories_of_the_language_are_accepted_and_as_probable_as_they_are():
    figures = story_figures(STORIES, confidence=0.99)
    assert (figures.num_stories, figures.num_distinct, figures.valid_share) == (256, 256, 1.0)
    low, high = figures.log_prob_interval
    assert low < -story_language.entropy_per_token() < high and not figures.is_too_probable
    assert figures.gap == pytest.approx(abs(figures.log_prob + story_language.entropy_per_token()))


def test_the_mean_is_over_tokens_of_accepted_stories_and_counts_one_end():
    texts = [*STORIES[:5], "Once upon a time.", STORIES[5].replace(" ", "  ", 1)]
    figures = story_figures(texts)
    ids = story_language.sample_ids(5, seed=11)
    tokens = int((ids[:, 1:] != 2).sum()) + 5
    assert figures.valid_share == 5 / 7
    assert figures.log_prob == pytest.approx(float(story_language.log_prob(STORIES[:5]).sum()) / tokens)


def test_the_likeliest_stories_are_too_probable_and_the_least_likely_are_not():
    ranked = [STORIES[place] for place in story_language.log_prob(STORIES).argsort()]
    assert story_figures(ranked[-64:], confidence=0.99).is_too_probable
    assert not story_figures(ranked[:64], confidence=0.99).is_too_probable


def test_without_two_accepted_stories_nothing_is_said_of_their_probability():
    none, one = story_figures(["", "Hello."]), story_figures(["", STORIES[0]])
    assert (none.valid_share, none.log_prob, none.log_prob_interval, none.gap) == (0, None, None, None)
    assert math.isfinite(one.log_prob) and one.log_prob_interval is None
    assert not none.is_too_probable and not one.is_too_probable


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="`texts` is empty"):
        story_figures([])


def test_the_tokenizer_of_the_stories_is_known_by_its_words(story_tokenizer):
    assert writes_stories(story_tokenizer)
    other = story_language.tokenizer()
    other.add_tokens(["dragonfly"])
    assert not writes_stories(other)
