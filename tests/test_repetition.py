"""Repetition: no n-gram comes twice, from whichever side it would be closed, in one step or in many."""

import itertools
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor, RobertaForMaskedLM

from diffusion_mlm import Constraints, edit, generate, infill, load_generator
from diffusion_mlm.checkpoints import STORIES_GENERATOR
from diffusion_mlm.cli import main
from diffusion_mlm.denoising import denoise
from diffusion_mlm.generation_config import DiffusionGenerationConfig
from diffusion_mlm.randomness import fold_in, uniform
from diffusion_mlm.repetition import Repetition
from diffusion_mlm.sampling import Sampling
from diffusion_mlm.unmasking import ORDERS, AdaptiveCount

properties = settings(deadline=None, derandomize=True, database=None)


def closes_a_repetition(text: list[int], position: int, token: int, n: int) -> bool:
    """Whether an n-gram through `position` stands elsewhere too, once `token` stands there: from the definition."""
    text = [*text[:position], token, *text[position + 1 :]]
    grams = [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]
    return any(
        -1 not in grams[a] and grams[a] == grams[b]
        for a, b in itertools.permutations(range(len(grams)), 2)
        if a <= position < a + n
    )


def repeated(ids: list[int], n: int, given: set[int] = frozenset()) -> set[tuple[int, ...]]:  # type: ignore[assignment]
    """The n-grams that occur twice, at least once with a place that is not given; -1 is no token."""
    starts = [start for start in range(len(ids) - n + 1) if -1 not in ids[start : start + n]]
    return {
        tuple(ids[a : a + n])
        for a, b in itertools.combinations(starts, 2)
        if ids[a : a + n] == ids[b : b + n] and not set(range(a, a + n)) | set(range(b, b + n)) <= given
    }


# The ban and the penalty


@settings(properties, max_examples=300)
@given(
    st.lists(st.integers(-1, 2), min_size=1, max_size=9),
    st.integers(0, 8),
    st.integers(1, 4),
)
def test_exactly_the_tokens_that_would_repeat_an_ngram_are_banned(text: list[int], position: int, n: int) -> None:
    position %= len(text)
    text[position] = -1
    banned = Repetition(ngram_size=n).ban(torch.zeros(1, 4), torch.tensor([text]), torch.tensor([position]))
    assert banned[0].isneginf().tolist() == [closes_a_repetition(text, position, token, n) for token in range(4)]


def test_where_everything_would_repeat_nothing_is_banned() -> None:
    logits = torch.tensor([[1.0, 2.0], [-math.inf, 2.0], [1.0, 2.0]])
    text = torch.tensor([[0, 1, -1], [1, -1, -1], [1, -1, -1]])
    banned = Repetition(ngram_size=1).ban(logits, text, torch.tensor([2, 1, 2]))
    assert torch.equal(banned, torch.tensor([[1.0, 2.0], [-math.inf, 2.0], [1.0, -math.inf]]))


@properties
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
    st.lists(st.floats(-9, 9, width=32), min_size=6, max_size=6),
    st.floats(0.1, 9),
)
def test_the_penalty_is_that_of_transformers(text: list[int], logits: list[float], penalty: float) -> None:
    ids, scores = torch.tensor([text]), torch.tensor([logits])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores.clone())
    with_a_mask = torch.tensor([[*text, -1]])
    torch.testing.assert_close(Repetition(penalty).penalize(scores, with_a_mask), expected)


# The loop

WORDS, MASK, END = 12, 12, 11  # more words than places: something is always possible


def few_words(canvas: Tensor, needed: Tensor) -> Tensor:
    """Likes three of the words, so that it repeats itself when it may."""
    key = torch.zeros(len(canvas), dtype=torch.int64)
    for column in canvas.unbind(-1):
        key = fold_in(key, column)
    noise = 2 * uniform(key, canvas.shape[1] * (WORDS + 1)).view(*canvas.shape, WORDS + 1)
    noise[..., :3] += 6
    return noise[needed].float()


@st.composite
def requests(draw: Any) -> dict[str, Any]:
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    cells = rows * length
    canvas = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=cells, max_size=cells))).view(rows, length)
    to_fill = torch.tensor(draw(st.lists(st.booleans(), min_size=cells, max_size=cells))).view(rows, length)
    adaptive = draw(st.sampled_from([None, AdaptiveCount("threshold", 0.3)]))
    return {
        "canvas": canvas,
        "to_fill": to_fill,
        "mask_id": MASK,
        "keys": torch.tensor(draw(st.lists(st.integers(0, 99), min_size=rows, max_size=rows))),
        "forbidden_ids": torch.tensor([MASK]),
        "sampling": draw(st.sampled_from([Sampling("greedy"), Sampling(), Sampling("topk", temperature_end=0.1)])),
        "steps": draw(st.none() | st.integers(1, 12)),
        "order": draw(st.sampled_from(ORDERS)),
        "adaptive": adaptive,
        "remask": "none" if adaptive else draw(st.sampled_from(["none", "renoise", "remdm_cap"])),
        "min_gap": draw(st.integers(0, 1)),
        "end_id": draw(st.sampled_from([None, END])),
    }


@settings(properties, max_examples=150)
@given(requests(), st.integers(1, 4))
def test_no_ngram_comes_twice_at_any_number_of_steps(request_: dict[str, Any], n: int) -> None:
    """Two that were given both stay, of course, and ends follow one another."""
    for step in denoise(few_words, **request_, repetition=Repetition(ngram_size=n)):
        no_text = step.is_masked | step.canvas.eq(END if request_["end_id"] else MASK)
        for ids, fill in zip(step.canvas.masked_fill(no_text, -1).tolist(), request_["to_fill"], strict=True):
            assert not repeated(ids, n, given=set((~fill).nonzero().flatten().tolist()))


def test_without_the_ban_the_same_model_repeats_itself() -> None:
    canvas = torch.full((20, 9), MASK)
    how = {"mask_id": MASK, "keys": torch.arange(20), "forbidden_ids": torch.tensor([MASK]), "sampling": Sampling()}
    for steps in (1, 9):
        *_, free = denoise(few_words, canvas, canvas.eq(MASK), steps=steps, **how)  # type: ignore[arg-type]
        assert sum(bool(repeated(ids, 2)) for ids in free.canvas.tolist()) > 10


@settings(properties, max_examples=60)
@given(requests())
def test_a_ban_that_never_bites_changes_no_bit(request_: dict[str, Any]) -> None:
    """N-grams longer than the row: the tokens of a step are drawn one by one, and come out as those drawn at once."""
    plain = list(denoise(few_words, **request_))
    banned = list(denoise(few_words, **request_, repetition=Repetition(ngram_size=10)))
    for one, other in zip(plain, banned, strict=True):
        assert torch.equal(one.canvas, other.canvas)
        assert torch.equal(one.confidence.nan_to_num(-1), other.confidence.nan_to_num(-1))


def test_ends_are_neither_penalized_nor_banned() -> None:
    canvas = torch.tensor([[0, MASK, MASK, END, END]])
    scores = torch.zeros(WORDS + 1)
    scores[0], scores[1], scores[END] = 3.0, 1.0, 2.0
    (step,) = denoise(
        lambda canvas, needed: scores.expand(int(needed.sum()), -1),
        canvas,
        canvas.eq(MASK),
        mask_id=MASK,
        keys=torch.tensor([0]),
        forbidden_ids=torch.tensor([MASK]),
        sampling=Sampling("greedy"),
        steps=1,
        end_id=END,
        repetition=Repetition(penalty=4.0, ngram_size=1),
    )
    assert step.canvas.tolist() == [[0, END, END, END, END]]


def test_a_text_that_can_only_repeat_itself_goes_on() -> None:
    canvas = torch.full((1, 6), 3)
    for steps in (1, 2, 6):
        *_, last = denoise(
            lambda canvas, needed: torch.zeros(int(needed.sum()), 4),
            canvas,
            canvas.eq(3),
            mask_id=3,
            keys=torch.tensor([0]),
            forbidden_ids=torch.tensor([3]),
            sampling=Sampling(),
            steps=steps,
            repetition=Repetition(ngram_size=1),
        )
        assert sorted(last.canvas[0, :].unique().tolist()) == [0, 1, 2], "all three words come before one comes twice"
        assert (last.confidence > 0).all()


# Generation


@pytest.fixture(scope="module")
def stories() -> tuple[Any, Any]:
    """The packaged generator of stories."""
    return load_generator(STORIES_GENERATOR)


@pytest.mark.parametrize("steps", [None, 12])
def test_stories_repeat_no_ngram(stories: tuple[Any, Any], steps: int | None) -> None:
    """Left to themselves they do: a story names its treasure more than once."""
    model, tokenizer = stories
    asked: dict[str, Any] = {"num_return_sequences": 6, "seed": 0, "steps": steps}
    prefix = "Once upon a time, Mia lived near the"
    prefix_ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    free = generate(model, tokenizer, prefix, **asked).samples
    assert any(repeated(prefix_ids + sample.token_ids, 3) for sample in free)
    for n in (2, 3):
        for sample in generate(model, tokenizer, prefix, no_repeat_ngram_size=n, **asked).samples:
            assert not repeated(prefix_ids + sample.token_ids, n)
            assert sample.text.startswith(prefix)


@settings(properties, max_examples=12)
@given(
    prefixes=st.lists(st.sampled_from(["", "One day", "The fox saw the dog", "day day"]), min_size=1, max_size=4),
    order=st.sampled_from(ORDERS),
    steps=st.sampled_from([None, 3]),
    batch_size=st.integers(1, 3),
    asked=st.sampled_from(
        [
            {"no_repeat_ngram_size": 1},
            {"no_repeat_ngram_size": 2, "repetition_penalty": 1.5},
            {"repetition_penalty": 3.0, "guidance_scale": 2.0},
        ]
    ),
)
def test_rows_do_not_depend_on_their_batch(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any, prefixes: list[str], asked: Any, **others: Any
) -> None:
    asked = {**asked, **others, "max_new_tokens": 6}
    together = generate(shared_roberta, story_tokenizer, prefixes, seed=3, num_return_sequences=2, **asked).samples
    for sample in together:
        (alone,) = generate(shared_roberta, story_tokenizer, sample.prefix, seed=sample.seed, **asked).samples
        assert alone == sample
        if size := asked.get("no_repeat_ngram_size"):
            given_ids = story_tokenizer(sample.prefix, add_special_tokens=False)["input_ids"]
            assert not repeated(given_ids + sample.token_ids, size, given=set(range(len(given_ids))))


def test_a_high_penalty_lets_no_word_come_twice(shared_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    asked: dict[str, Any] = {"seed": 0, "max_new_tokens": 12, "sampling": "greedy", "repetition_penalty": 1e9}
    for sample in generate(shared_roberta, story_tokenizer, ["One day a fox", ""], **asked).samples:
        ids = story_tokenizer(sample.prefix, add_special_tokens=False)["input_ids"] + sample.token_ids
        assert len(set(ids)) == len(ids)


def test_the_ban_and_the_penalty_are_off_by_default_and_change_no_bit(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    plain, off = (
        generate(shared_roberta, story_tokenizer, "One day", seed=3, max_new_tokens=9, steps=3, **more).samples
        for more in ({}, {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0})
    )
    assert plain == off


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_constraints_hold_too_and_come_first(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any, steps: int
) -> None:
    """Three words for six places: every one of them comes once before one comes twice."""
    output = generate(
        shared_roberta,
        story_tokenizer,
        "One day",
        constraints=Constraints(regex=r"( (fox|dog|saw)){6}"),
        no_repeat_ngram_size=1,
        num_return_sequences=8,
        max_new_tokens=6,
        steps=steps,
        seed=0,
    )
    for sample in output.samples:
        assert set(sample.completion.split()) == {"fox", "dog", "saw"}


def test_blanks_and_edits_repeat_nothing_that_stands_around_them(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    for text in infill(
        shared_roberta,
        story_tokenizer,
        "One day <mask:4> a fox",
        seed=0,
        num_return_sequences=9,
        no_repeat_ngram_size=1,
    ):
        ids = story_tokenizer(text.text, add_special_tokens=False)["input_ids"]
        assert len(set(ids)) == len(ids)
    for edited in edit(
        shared_roberta, story_tokenizer, "One day a fox saw", seed=0, num_return_sequences=9, no_repeat_ngram_size=1
    ):
        ids = story_tokenizer(edited.text, add_special_tokens=False)["input_ids"]
        assert len(set(ids)) == len(ids)


# What is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("repetition_penalty", value) for value in (0, -1.0, math.inf, math.nan, "2", True, None)],
        *[("no_repeat_ngram_size", value) for value in (-1, 2.0, "3", True, None)],
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a .* number.* for off, got"):
        DiffusionGenerationConfig(**{name: value})


@pytest.mark.parametrize("others", [{"order": "confidence", "order_from": "sample"}, {"remask": "low_confidence"}])
def test_a_ban_needs_places_before_tokens(others: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`no_repeat_ngram_size` is 2.*order_from='sample'.*low_confidence"):
        DiffusionGenerationConfig(no_repeat_ngram_size=2, **{"order": "confidence", **others})


def test_the_command_line_takes_both(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shared_roberta.save_pretrained(tmp_path)
    story_tokenizer.save_pretrained(tmp_path)
    asked = ["--checkpoint", str(tmp_path), "--seed", "3", "--output-format", "json"]
    settings_ = ["--repetition-penalty", "1.3", "--no-repeat-ngram-size", "2"]
    assert main(["generate", "--prefix", "One day", "--max-new-tokens", "5", *asked, *settings_]) == 0
    how: dict[str, Any] = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    (expected,) = generate(shared_roberta, story_tokenizer, "One day", seed=3, max_new_tokens=5, **how).samples
    assert json.loads(capsys.readouterr().out) == vars(expected)
    assert main(["generate", *asked, "--no-repeat-ngram-size", "-1"]) == 2
    assert "`no_repeat_ngram_size` must be a whole number, 0 for off, got -1" in capsys.readouterr().err
