"""Figures of samples beside those of real text, and what the report warns of."""

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_mlm import Judge, sample_quality, story_language
from diffusion_mlm.evaluation.sample_quality import text_figures
from diffusion_mlm.evaluation.sample_report import SampleReport, TextFigures
from diffusion_mlm.evaluation.sample_warnings import sample_warnings

SHARED = Path(__file__).parents[2] / "shared"
STORIES, STORY_JUDGE = SHARED / "data" / "tinystories" / "tiny_stories.txt", SHARED / "models" / "stories260k"
needs_real_text = pytest.mark.skipif(
    not (STORIES.is_file() and STORY_JUDGE.is_dir()), reason="TinyStories and its judge are not beside the project"
)


@pytest.fixture(scope="module")
def real_stories():
    """Real stories in an order of no meaning: the file is sorted by who wrote them."""
    stories = re.split(r"(?<=[^\n])\n(?=[^\n])", STORIES.read_text(encoding="utf-8"))
    long = [story.strip() for story in stories if len(story.split()) >= 60]
    return random.Random(0).sample(long, 160)


@pytest.fixture(scope="module")
def story_judge():
    return Judge.from_pretrained(str(STORY_JUDGE), end_token="<s>", batch_size=16)


@needs_real_text
def test_a_judge_ranks_real_text_above_text_with_wrong_words_above_shuffled_text(real_stories, story_judge):
    draw = random.Random(0)
    words = [story.split()[:60] for story in real_stories[:16]]
    vocabulary = [word for story in real_stories[100:] for word in story.split()]
    sets = [words]
    for share in (0.05, 0.15, 0.3):
        sets.append([[draw.choice(vocabulary) if draw.random() < share else word for word in text] for text in words])
    sets.append([draw.sample(text, len(text)) for text in words])
    bits = [
        text_figures([" ".join(text) for text in of_set], judge=story_judge).judge_bits_per_character
        for of_set in sets
    ]
    assert bits == sorted(bits)
    assert bits[0] < 1.3 and bits[-1] > 2.5


@needs_real_text
def test_a_collapsed_set_is_flagged_and_a_real_one_is_not(real_stories, story_judge):
    real = real_stories[32:96]
    asked = {"reference_texts": real, "judge": story_judge, "training_texts": real_stories[96:]}
    good = sample_quality([" ".join(story.split()[:60]) for story in real_stories[:32]], **asked)
    assert good.warnings == ()
    greedy = "Once upon a time, there was a little girl named Lily. " + "She was very happy. " * 10
    collapsed = sample_quality([greedy] * 32, **asked)
    assert collapsed.generated.judge_perplexity < collapsed.real.judge_perplexity
    assert collapsed.generated.word_entropy_nats < collapsed.real.word_entropy_nats
    found = " ".join(collapsed.warnings)
    for sign in ("Collapse: the judge", "The samples repeat themselves", "31 of 32 samples", "The samples resemble"):
        assert sign in found


@needs_real_text
def test_a_judge_with_the_wrong_end_token_is_noticed(real_stories):
    wrong = Judge.from_pretrained(str(STORY_JUDGE))  # its eos_token never stood in what it was trained on
    texts = [story for story in real_stories if len(story.split()) < 150][:4]
    found = [
        sample_quality(texts, reference_texts=texts, judge=judge, finished=[True] * 4)
        for judge in (wrong, Judge.from_pretrained(str(STORY_JUDGE), end_token="<s>"))
    ]
    assert [any("end_token" in warning for warning in report.warnings) for report in found] == [True, False]
    assert found[0].real.judge_end_nats > 20 > 2 > found[1].real.judge_end_nats


def test_both_rows_are_about_texts_of_the_same_lengths():
    samples = ["a b c", "d e", "f"]
    report = sample_quality(samples, reference_texts=["p", "q r s t u", " v w x y z ", "k"])
    assert report.generated.num_texts == report.real.num_texts == 3
    assert report.generated.words_per_text == report.real.words_per_text == 2
    assert report.real.characters_per_text == (len("p") + len("q r s") + len("v w")) / 3


def test_without_a_judge_and_training_text_their_figures_are_none():
    figures = sample_quality(["a b"], reference_texts=["c d"]).generated
    empty = ("finished_share", "judge_perplexity", "longest_copy_characters", "copy_share", "mauve", "self_bleu_4")
    assert {getattr(figures, name) for name in empty} == {None}


def test_copies_are_looked_for_in_both_rows():
    training = ["x" * 60 + "y" * 60]
    report = sample_quality(["y" * 55, "z"], reference_texts=["x", "xy"], training_texts=iter(training))
    assert (report.generated.longest_copy_characters, report.generated.copy_share) == (55, 0.5)
    assert (report.real.longest_copy_characters, report.real.copy_share) == (2, 0)
    assert any("is recited" in warning for warning in report.warnings)


def test_what_ended_is_counted():
    report = sample_quality(["a", "b", "c", "d"], reference_texts=["e"] * 4, finished=[True, False, True, True])
    assert (report.generated.finished_share, report.real.finished_share) == (0.75, None)


@pytest.mark.parametrize(
    "texts",
    [[""], ["", " \n"], ["word"], ["", "one two"], ["太晚了", "😀 é\u0301 \u200b"], ["a"] * 3, ["</s>", "<mask>"]],
)
def test_special_texts_give_numbers_or_none(texts, story_tokenizer, tmp_path):
    report = sample_quality(texts, reference_texts=["So be it then"] * len(texts), training_texts=["So be it"])
    json.dumps(report.to_dict(), allow_nan=False)
    for row in (report.generated, report.real):
        assert all(value is None or math.isfinite(value) for value in row.to_dict().values())
    assert report.generated.num_empty == sum(not text.strip() for text in texts)


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"texts": []}, "`texts` is empty"),
        ({"texts": "a b"}, "`texts` must be several texts"),
        ({"texts": ["a", None]}, "`texts` must hold strings; number 1"),
        ({"reference_texts": ["a"]}, "`reference_texts` holds 1 texts, and there are 2 samples"),
        ({"reference_texts": "ab"}, "`reference_texts` must be several texts"),
        ({"finished": [True]}, "`finished` must say of each of the 2 texts"),
        ({"mauve": True}, "`mauve` needs a `judge`"),
        ({"training_texts": "ab"}, "`training_texts` must be several texts"),
        ({"judge": "/nowhere/at/all"}, "`judge` is '/nowhere/at/all', and there is no such directory"),
    ],
)
def test_impossible_arguments_are_refused(options, complaint):
    asked = {"texts": ["a", "b"], "reference_texts": ["c", "d"], **options}
    with pytest.raises(ValueError, match=complaint):
        sample_quality(asked.pop("texts"), **asked)


def test_a_word_may_be_a_character():
    report = sample_quality(["太晚了"], reference_texts=["从前有座山"], word_pattern=r"\S")
    assert (report.generated.words_per_text, report.real.words_per_text) == (3, 3)
    assert report.generated.word_entropy_nats == pytest.approx(math.log(3))


ROW = TextFigures(
    num_texts=2000,
    num_empty=0,
    num_duplicates=0,
    words_per_text=60.0,
    characters_per_text=300.0,
    judge_nats_per_token=2.0,
    judge_standard_error=0.1,
    judge_perplexity=math.exp(2),
    judge_end_nats=1.0,
    judge_unknown_share=0.0,
    word_entropy_nats=3.7,
    word_entropy_standard_error=0.05,
    rep_4=0.01,
    self_bleu_4=0.3,
    copy_share=0.02,
    mauve=0.9,
)
EASIER, POORER = {"judge_perplexity": math.exp(1.9)}, {"word_entropy_nats": 3.5}


def test_equal_rows_give_no_warning():
    assert list(sample_warnings(ROW, ROW)) == []


@pytest.mark.parametrize(
    "changes, opening",
    [
        ({**EASIER, **POORER}, "Collapse: the judge finds the samples easier"),
        ({"rep_4": 0.2}, "The samples repeat themselves: 20% .* 1% in real text"),
        ({"num_duplicates": 21}, "21 of 2000 samples are the same as an earlier one"),
        ({"self_bleu_4": 0.45}, "The samples resemble one another: self-BLEU is 0.45, that of real texts 0.30.$"),
        (
            {"self_bleu_4": 0.45, **EASIER},
            "The samples resemble .* a low perplexity .6.686 against 7.389. is no quality",
        ),
        ({"copy_share": 0.1}, "10% of the samples share 50 characters .*, 2% of the real texts do"),
        ({"num_empty": 3}, "3 of 2000 samples are empty"),
        ({"words_per_text": 70.0}, "The real texts are shorter than the samples"),
        ({"judge_unknown_share": 0.03}, "3.0% of the tokens of the samples are unknown to the judge"),
        ({"num_texts": 64}, "MAUVE of 64 texts says little"),
    ],
)
def test_each_suspicion_has_its_sentence(changes, opening):
    (warning,) = sample_warnings(replace(ROW, **changes), ROW)
    assert re.match(opening, warning)
    assert warning.endswith(".")


@pytest.mark.parametrize(
    "changes",
    [
        EASIER,  # better text is easier and as varied
        POORER,
        {**EASIER, "word_entropy_nats": 3.6},  # two standard errors of the difference are 0.141
        {"judge_perplexity": 9.0, "word_entropy_nats": 4.0},
        {"num_duplicates": 19, "self_bleu_4": 0.35, "rep_4": 0.05, "copy_share": 0.05},
    ],
)
def test_what_is_no_sign_of_anything_is_not_warned_of(changes):
    assert list(sample_warnings(replace(ROW, **changes), ROW)) == []


def test_of_single_texts_collapse_is_plain_comparison():
    alone = replace(ROW, judge_standard_error=None, word_entropy_standard_error=None)
    (warning,) = sample_warnings(replace(alone, judge_perplexity=7.3, word_entropy_nats=3.69), alone)
    assert warning.startswith("Collapse")


def test_a_report_is_a_dictionary_and_a_table():
    real = replace(ROW, mauve=None)
    report = SampleReport(ROW, real, ("Beware.",))
    assert report.to_dict()["generated"]["rep_4"] == 0.01
    table = report.to_markdown()
    assert "| num_texts | 2000 | 2000 |" in table
    assert "| mauve | 0.9 |  |" in table
    assert "distinct_1" not in table
    assert table.endswith("\n* Beware.\n")


def test_figures_of_the_built_in_stories_are_those_of_their_parts(story_tokenizer):
    stories = story_language.sample(6, seed=0)
    report = sample_quality(stories[:3], reference_texts=stories[3:])
    assert report.generated == text_figures(stories[:3])
