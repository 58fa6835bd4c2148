"""Guidance: the given text weighs more, or a score judges candidates; off, everything is as without, bit for bit."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification

from diffusion_mlm import CandidateGuidance, Constraints, edit, generate, infill, stream
from diffusion_mlm.cli import main
from diffusion_mlm.denoising import denoise
from diffusion_mlm.generation_config import DiffusionGenerationConfig
from diffusion_mlm.randomness import fold_in, uniform
from diffusion_mlm.sampling import NonFiniteLogitsError, Sampling, guide
from diffusion_mlm.unmasking import ORDERS

properties = settings(deadline=None, derandomize=True, database=None, max_examples=25)
PREFIXES = ["", "One day", "Poor", "Once upon a time, Mia lived near the"]
logits = st.lists(st.floats(-20, 20, width=32) | st.just(-math.inf), min_size=4, max_size=4).filter(
    lambda row: max(row) > -math.inf
)


class Recorder:
    """Counts the rows sent to a model, and keeps what it read."""

    def __init__(self, model: RobertaForMaskedLM, tokenizer: Any) -> None:
        generate(model, tokenizer, seed=0, max_new_tokens=1)  # the first use finds out about the head
        self.canvases: list[Tensor] = []
        model.register_forward_pre_hook(
            lambda _module, _args, inputs: self.canvases.append(inputs["input_ids"].clone()), with_kwargs=True
        )

    @property
    def num_rows(self) -> int:
        return sum(len(canvas) for canvas in self.canvases)


# Classifier-free guidance: the formula


@properties
@given(logits, logits, st.floats(0, 8))
def test_guided_probabilities_are_a_product_of_powers(conditional: Any, unconditional: Any, scale: float) -> None:
    c, u = (torch.tensor([row], dtype=torch.float64) for row in (conditional, unconditional))
    guided = guide(c, u, scale)
    both = c.isfinite() & u.isfinite()
    assert torch.equal(guided[~both], c[~both]), "where one is -inf the conditional logit stands"
    product = torch.softmax(c, -1) ** scale * torch.softmax(u, -1) ** (1 - scale)
    ratios = (guided - product.log())[both]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), atol=1e-9, rtol=1e-9)


def test_a_scale_of_one_is_the_condition_and_of_zero_forgets_it() -> None:
    conditional, unconditional = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[3.0, 0.25, -1.0]])
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_forward_without_the_condition_that_is_not_finite_is_an_error(value: float) -> None:
    def predict_logits(canvas: Tensor, needed: Tensor) -> Tensor:
        return torch.full((int(needed.sum()), 4), value if canvas[0, 0] == 3 else 0.0)

    canvas = torch.tensor([[1, 3, 3]])
    with pytest.raises(NonFiniteLogitsError):
        list(denoise(predict_logits, canvas, canvas.eq(3), **ids_alone(guidance_scale=2.0, condition=canvas.eq(1))))


# Classifier-free guidance: the loop


def ids_alone(**changes: Any) -> dict[str, Any]:
    plain = {
        "mask_id": 3,
        "keys": torch.tensor([0]),
        "forbidden_ids": torch.tensor([3]),
        "sampling": Sampling("greedy"),
    }
    return {**plain, **changes}


def test_only_rows_with_a_condition_take_a_second_forward_with_masks_in_its_place() -> None:
    sent = []

    def predict_logits(canvas: Tensor, needed: Tensor) -> Tensor:
        sent.append(canvas.tolist())
        return torch.zeros(int(needed.sum()), 4)

    canvas = torch.tensor([[0, 1, 3, 3], [0, 3, 3, 2]])
    condition = torch.tensor([[False, True, False, False], [False] * 4])
    how = ids_alone(keys=torch.zeros(2, dtype=torch.int64), guidance_scale=2.0, condition=condition, steps=1)
    (step,) = denoise(predict_logits, canvas, canvas.eq(3), **how)
    assert sent == [[[0, 1, 3, 3], [0, 3, 3, 2]], [[0, 3, 3, 3]]]
    assert step.num_forwards.tolist() == [2, 1]
    assert step.canvas.tolist() == [[0, 1, 0, 0], [0, 0, 0, 2]]


def test_a_condition_that_is_not_there_or_would_be_generated_is_refused() -> None:
    canvas = torch.tensor([[1, 3, 3]])
    for condition, message in (
        (None, "`guidance_scale` is 2.0, but there is no `condition`"),
        (canvas.eq(3), "`condition` must be bool"),
        (canvas.eq(1)[0], "`condition` must be bool"),
        (canvas, "`condition` must be bool"),
    ):
        with pytest.raises(ValueError, match=message):
            denoise(lambda *_: canvas, canvas, canvas.eq(3), **ids_alone(guidance_scale=2.0, condition=condition))


# Classifier-free guidance: generate, infill, edit


@properties
@given(
    prefix=st.sampled_from(PREFIXES),
    order=st.sampled_from(ORDERS),
    sampling=st.sampled_from(["greedy", "nucleus"]),
    remask=st.sampled_from(["none", "renoise"]),
    steps=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_a_guidance_scale_of_one_changes_no_bit_and_costs_nothing(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any, prefix: str, **asked: Any
) -> None:
    plain, off = (
        list(stream(shared_roberta, story_tokenizer, prefix, max_new_tokens=8, **asked, **more))
        for more in ({}, {"guidance_scale": 1.0})
    )
    for one, other in zip(plain, off, strict=True):
        assert torch.equal(one.canvas, other.canvas) and torch.equal(one.num_forwards, other.num_forwards)
        assert torch.equal(one.confidence.nan_to_num(-1), other.confidence.nan_to_num(-1))


@settings(properties, max_examples=10)
@given(
    prefixes=st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=4),
    scale=st.sampled_from([0.0, 0.5, 1.5, 4.0]),
    order=st.sampled_from(ORDERS),
    batch_size=st.integers(1, 4),
    steps=st.sampled_from([None, 3]),
)
def test_guided_rows_do_not_depend_on_their_batch_and_keep_their_prefix(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any, prefixes: list[str], scale: float, **asked: Any
) -> None:
    asked = {**asked, "guidance_scale": scale, "max_new_tokens": 6}
    together = generate(shared_roberta, story_tokenizer, prefixes, seed=3, num_return_sequences=2, **asked)
    for sample in together.samples:
        alone = generate(shared_roberta, story_tokenizer, sample.prefix, seed=sample.seed, **asked | {"batch_size": 1})
        assert alone.samples == [sample]
        assert sample.text == sample.prefix + sample.completion
        assert sample.num_forwards == (asked["steps"] or 6) * (2 if sample.prefix else 1)
        assert not set(sample.token_ids) & set(story_tokenizer.all_special_ids)


def test_guided_rows_may_be_done_before_those_without_a_prefix(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    def stop_guided(step: Any) -> str | None:
        return "finish" if "One day" in story_tokenizer.decode(step.canvas.flatten()) else None

    asked: dict[str, Any] = {"seed": 3, "max_new_tokens": 6, "guidance_scale": 2.0}
    samples = generate(shared_roberta, story_tokenizer, ["", "One day"], on_step=stop_guided, **asked).samples
    assert samples[0] == generate(shared_roberta, story_tokenizer, "", **asked).samples[0]
    assert samples[1].num_forwards < 12


def test_guidance_without_a_prefix_is_no_guidance(shared_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    plain, guided = (
        generate(shared_roberta, story_tokenizer, "", seed=3, max_new_tokens=9, guidance_scale=scale).samples
        for scale in (1.0, 5.0)
    )
    assert plain == guided


def test_forwards_with_guidance_are_the_rows_that_the_model_reads(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    recorder = Recorder(tiny_roberta, story_tokenizer)
    asked: dict[str, Any] = {"seed": 0, "max_new_tokens": 9, "steps": 4, "guidance_scale": 2.0}
    output = generate(tiny_roberta, story_tokenizer, ["", "One day", "Poor"], **asked)
    assert [sample.num_forwards for sample in output.samples] == [4, 8, 8]
    assert output.samples[1].tokens_per_forward == 9 / 8
    assert recorder.num_rows == 20


def test_start_and_end_stay_where_the_prefix_is_masked(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    recorder = Recorder(tiny_roberta, story_tokenizer)
    generate(tiny_roberta, story_tokenizer, "One day", seed=0, max_new_tokens=2, steps=1, guidance_scale=2.0)
    start, mask, end = story_tokenizer.convert_tokens_to_ids(["<s>", "<mask>", "</s>"])
    given_ids = story_tokenizer("One day", add_special_tokens=False)["input_ids"]
    assert [canvas.tolist() for canvas in recorder.canvases] == [
        [[start, *given_ids, mask, mask, end]],
        [[start, mask, mask, mask, mask, end]],
    ]


def test_in_later_windows_the_condition_is_what_is_left_of_the_prefix(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    """Windows of 30 tokens, 7 of them new, hold 12, 12, 9, 2 and 0 tokens of a prefix of 12."""
    prefix = " ".join(["One day"] * 6)
    recorder = Recorder(tiny_roberta, story_tokenizer)
    asked: dict[str, Any] = {"seed": 1, "max_new_tokens": 35, "stride": 7}
    (sample,) = generate(tiny_roberta, story_tokenizer, prefix, guidance_scale=2.0, **asked).samples
    assert sample.num_forwards == recorder.num_rows == 4 * 2 * 7 + 7
    conditional, blank = recorder.canvases[28:30]  # as the third window begins
    assert blank[0, 1:10].eq(story_tokenizer.mask_token_id).all()
    assert blank[0, 10:24].tolist() == sample.token_ids[:14], "what earlier windows wrote is seen by both forwards"
    assert torch.equal(conditional[0, 10:], blank[0, 10:]) and conditional[0, 0] == blank[0, 0]


def test_the_text_around_blanks_is_the_condition_of_infilling(
    tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    recorder = Recorder(tiny_roberta, story_tokenizer)
    asked: dict[str, Any] = {"seed": 2, "steps": 1, "guidance_scale": 2.0}
    (text,) = infill(tiny_roberta, story_tokenizer, "One <mask:2> day", **asked)
    _, blank = recorder.canvases
    assert blank[0, 1:-1].eq(story_tokenizer.mask_token_id).all()
    assert text.num_forwards == 2 and text.text.startswith("One ") and text.text.endswith(" day")
    (bare,) = infill(tiny_roberta, story_tokenizer, "<mask:2>", **asked)
    assert bare.num_forwards == 1


def test_what_an_edit_leaves_is_its_condition(tiny_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    recorder = Recorder(tiny_roberta, story_tokenizer)
    asked: dict[str, Any] = {"seed": 2, "steps": 1, "guidance_scale": 2.0}
    (text,) = edit(tiny_roberta, story_tokenizer, "One day in May", strength=0.5, protect="May", **asked)
    _, blank = recorder.canvases
    assert blank[0, 1:-1].eq(story_tokenizer.mask_token_id).all()
    assert text.num_forwards == 2 and "May" in text.text
    (whole,) = edit(tiny_roberta, story_tokenizer, "One day in May", strength=1.0, **asked)
    assert whole.num_forwards == 1


@pytest.mark.parametrize("scale", [-0.5, math.nan, math.inf, "2", None, True])
def test_an_impossible_guidance_scale_is_refused(scale: Any) -> None:
    with pytest.raises(ValueError, match="`guidance_scale` must be a finite number of at least 0, 1 for off"):
        DiffusionGenerationConfig(guidance_scale=scale)


def test_the_command_line_guides_and_counts_both_forwards(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shared_roberta.save_pretrained(tmp_path)
    story_tokenizer.save_pretrained(tmp_path)
    asked = ["--seed", "3", "--max-new-tokens", "5", "--guidance-scale", "2", "--output-format", "json"]
    assert main(["generate", "--checkpoint", str(tmp_path), "--prefix", "One day", *asked]) == 0
    found = json.loads(capsys.readouterr().out)
    (expected,) = generate(
        shared_roberta, story_tokenizer, "One day", seed=3, max_new_tokens=5, guidance_scale=2.0
    ).samples
    assert found == vars(expected) and found["num_forwards"] == 10 and found["tokens_per_forward"] == 0.5


# Guidance by a score


def noise(canvases: Tensor) -> Tensor:
    """A score that depends on every token of the row, on its place and on the length of the row."""
    key = torch.full((len(canvases),), canvases.shape[1])
    for column in canvases.unbind(-1):
        key = fold_in(key, column)
    return 4 * uniform(key, 1).squeeze(-1).log()


@properties
@given(
    st.lists(
        st.lists(st.floats(-9, 9, width=32) | st.just(-math.inf), min_size=6, max_size=6), min_size=1, max_size=4
    ),
    st.integers(2, 7),
    st.floats(0.1, 3),
    st.integers(1, 30),
)
def test_the_logits_of_the_best_candidates_move_by_their_scores_and_the_rest_go(
    rows: list[list[float]], num_candidates: int, scale: float, batch_size: int
) -> None:
    logits = torch.tensor([[0.0, *row] for row in rows])
    canvas, position = torch.arange(5).repeat(len(rows), 1), torch.arange(len(rows))
    sizes = []

    def score(canvases: Tensor) -> Tensor:
        sizes.append(len(canvases))
        return noise(canvases)

    guided = CandidateGuidance(score, num_candidates, scale, batch_size)(canvas, position, logits)
    for row, (before, after) in enumerate(zip(logits, guided, strict=True)):
        best = before.sort(descending=True, stable=True).indices[:num_candidates]
        for token in range(7):
            put = canvas[row].clone()
            put[row] = token
            moved = before[token] + scale * noise(put[None])[0].float()
            expected = moved if token in best else torch.tensor(-math.inf)
            torch.testing.assert_close(after[token], expected)
    assert max(sizes) <= batch_size and sum(sizes) == int(guided.isfinite().sum())


def test_the_score_sees_whole_canvases_without_padding(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    start, mask, end = story_tokenizer.convert_tokens_to_ids(["<s>", "<mask>", "</s>"])
    day = story_tokenizer("One day", add_special_tokens=False)["input_ids"]
    seen = []

    def score(canvases: Tensor) -> Tensor:
        seen.append(canvases)
        return torch.zeros(len(canvases))

    generate(
        shared_roberta,
        story_tokenizer,
        ["", "One day"],
        guidance=CandidateGuidance(score, num_candidates=3),
        order="left_to_right",
        max_new_tokens=2,
        steps=2,
        seed=0,
    )
    assert [canvases.shape for canvases in seen] == [(3, 4), (3, 6)] * 2, "row by row of one length, 3 candidates each"
    for canvases, given_ids in zip(seen[:2], ([], day), strict=True):
        assert canvases[:, : 1 + len(given_ids)].tolist() == [[start, *given_ids]] * 3
        assert canvases[:, -2:].tolist() == [[mask, end]] * 3
        assert len(canvases[:, -3].unique()) == 3


@settings(properties, max_examples=10)
@given(
    prefixes=st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=4),
    batch_size=st.integers(1, 4),
    order=st.sampled_from(ORDERS),
    steps=st.sampled_from([None, 3]),
    asked=st.sampled_from([{}, {"guidance_scale": 2.0}, {"no_repeat_ngram_size": 2}]),
)
def test_texts_guided_by_a_score_do_not_depend_on_their_batch(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any, prefixes: list[str], asked: Any, **others: Any
) -> None:
    asked = {**asked, **others, "max_new_tokens": 5, "guidance": CandidateGuidance(noise, 4, batch_size=7)}
    together = generate(shared_roberta, story_tokenizer, prefixes, seed=3, num_return_sequences=2, **asked).samples
    for sample in together:
        (alone,) = generate(shared_roberta, story_tokenizer, sample.prefix, seed=sample.seed, **asked).samples
        assert alone == sample and sample.text.startswith(sample.prefix)
        scale = asked.get("guidance_scale", 1.0)
        assert sample.num_forwards == (asked["steps"] or 5) * (2 if sample.prefix and scale != 1 else 1)


def test_every_way_to_write_is_guided(shared_roberta: RobertaForMaskedLM, story_tokenizer: Any) -> None:
    """A score that wants one word, which is always a candidate, gets nothing else."""
    fox = story_tokenizer("One fox", add_special_tokens=False)["input_ids"][-1]
    size = shared_roberta.config.vocab_size
    wanted = CandidateGuidance(lambda canvases: 1e3 * canvases.eq(fox).sum(-1), num_candidates=size)
    asked: dict[str, Any] = {"guidance": wanted, "seed": 1, "steps": 2}
    (sample,) = generate(shared_roberta, story_tokenizer, "One day", max_new_tokens=4, **asked).samples
    assert sample.token_ids == [fox] * 4
    *_, last = stream(shared_roberta, story_tokenizer, "One day", max_new_tokens=4, **asked)
    assert last.canvas[0, 3:7].tolist() == [fox] * 4
    assert infill(shared_roberta, story_tokenizer, "One <mask:2> day", **asked)[0].text == "One fox fox day"
    (edited,) = edit(shared_roberta, story_tokenizer, "One day in May", protect="May", strength=1.0, **asked)
    assert edited.text == "fox fox fox May"


def test_guidance_cannot_bring_back_what_is_ruled_out(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    special = story_tokenizer.all_special_ids

    def towards_special_tokens(canvas: Tensor, position: Tensor, logits: Tensor) -> Tensor:
        guided = logits.clone()
        guided[:, special] = 1e9
        return guided

    (sample,) = generate(
        shared_roberta, story_tokenizer, seed=0, max_new_tokens=9, guidance=towards_special_tokens
    ).samples
    assert not set(sample.token_ids) & set(special)


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("sampling", ["greedy", "nucleus"])
def test_constraints_hold_under_guidance(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any, steps: int, sampling: str
) -> None:
    """One candidate per position, another at each, and an expression that joins two: the first word is the last."""

    def whim(canvas: Tensor, position: Tensor, logits: Tensor) -> Tensor:
        liking = uniform(position, logits.shape[1]).masked_fill(logits.isneginf(), -1)
        return logits.masked_fill(liking < liking.amax(-1, keepdim=True), -math.inf)

    words = ("fox", "dog", "saw", "day", "near", "lived", "until", "was")
    pattern = "|".join(f" {word}( [a-z]+){{4}} {word}" for word in words)
    output = generate(
        shared_roberta,
        story_tokenizer,
        "One day",
        guidance=whim,
        constraints=Constraints(regex=pattern),
        num_return_sequences=6,
        max_new_tokens=6,
        steps=steps,
        sampling=sampling,
        seed=0,
    )
    for text in output.samples:
        first, *_, last = text.completion.split()
        assert first == last and first in words


# Guidance by a classifier


@pytest.fixture(scope="module")
def classifier(shared_roberta: RobertaForMaskedLM) -> RobertaForSequenceClassification:
    """Random weights, and two labels."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return RobertaForSequenceClassification(
            RobertaConfig(
                **{
                    **shared_roberta.config.to_dict(),
                    "id2label": {0: "sad", 1: "happy"},
                    "label2id": {"sad": 0, "happy": 1},
                }
            )
        )


def test_a_classifier_scores_by_the_log_probability_of_its_label(
    classifier: RobertaForSequenceClassification, shared_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    classifier.train()
    guidance = CandidateGuidance.from_classifier(classifier, "happy")
    assert not classifier.training
    canvases = torch.randint(5, 99, (6, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.log_softmax(classifier(input_ids=canvases).logits, -1)[:, 1]
    torch.testing.assert_close(guidance.score(canvases), expected)
    torch.testing.assert_close(CandidateGuidance.from_classifier(classifier, 1).score(canvases), expected)
    classifier.config.problem_type = "multi_label_classification"
    several = CandidateGuidance.from_classifier(classifier, "happy").score(canvases)
    classifier.config.problem_type = None
    with torch.no_grad():
        torch.testing.assert_close(
            several, torch.nn.functional.logsigmoid(classifier(input_ids=canvases).logits[:, 1])
        )


def test_texts_guided_by_a_classifier_please_it_more(
    classifier: RobertaForSequenceClassification, shared_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    asked: dict[str, Any] = {"num_return_sequences": 8, "seed": 0, "max_new_tokens": 8}
    means = []
    for guidance in (
        None,
        CandidateGuidance.from_classifier(classifier, "happy", scale=3.0),
        CandidateGuidance.from_classifier(classifier, "happy", num_candidates=40, scale=20.0, batch_size=33),
    ):
        output = generate(shared_roberta, story_tokenizer, ["One day"], guidance=guidance, **asked)
        scores = CandidateGuidance.from_classifier(classifier, "happy").score(output.sequences)
        means.append(scores.mean().item())
    assert means[0] < means[1] < means[2]


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": None}, "`score` must be a function of canvases, not NoneType"),
        *[
            ({"num_candidates": value}, "`num_candidates` must be a whole number of at least 2")
            for value in (1, 2.0, True)
        ],
        *[({"batch_size": value}, "`batch_size` must be a whole number of at least 1") for value in (0, None)],
        *[({"scale": value}, "`scale` must be a finite number above 0") for value in (0, -1, math.inf, "2", True)],
    ],
)
def test_impossible_candidate_guidance_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CandidateGuidance(**{"score": noise, **changes})


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda canvases: torch.zeros(len(canvases), 2), r"`score` must return.*one score per canvas.*\(8, 2\)"),
        (lambda canvases: [0.0] * len(canvases), "one score per canvas, not of type list"),
        (lambda canvases: torch.full((len(canvases),), math.nan), "`score` returned NaN"),
        (lambda canvases: torch.full((len(canvases),), math.inf), "`score` returned NaN or .inf"),
        (lambda canvases: torch.full((len(canvases),), -math.inf), "`score` is -inf for all 8.*`num_candidates`"),
    ],
)
def test_impossible_scores_are_errors(
    shared_roberta: RobertaForMaskedLM, story_tokenizer: Any, score: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(shared_roberta, story_tokenizer, seed=0, max_new_tokens=1, guidance=CandidateGuidance(score))


def test_what_is_no_guidance_is_refused_at_the_call(
    classifier: RobertaForSequenceClassification, shared_roberta: RobertaForMaskedLM, story_tokenizer: Any
) -> None:
    for write, text in ((generate, "One"), (stream, "One"), (infill, "<mask>"), (edit, "One")):
        for wrong in (3, classifier):
            with pytest.raises(ValueError, match="`guidance` must be a function.*from_classifier"):
                write(shared_roberta, story_tokenizer, text, guidance=wrong)  # type: ignore[operator]
    with pytest.raises(ValueError, match="`guidance` must return logits of shape"):
        generate(shared_roberta, story_tokenizer, seed=0, max_new_tokens=1, guidance=lambda *_: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("label", ["glad", 2, -1, True, None, 1.0])
def test_a_label_that_the_classifier_lacks_is_refused(
    classifier: RobertaForSequenceClassification, label: Any
) -> None:
    with pytest.raises(ValueError, match=r"`label` is .*must be one of.*0 \('sad'\), 1 \('happy'\)"):
        CandidateGuidance.from_classifier(classifier, label)


def test_a_classifier_that_cannot_read_the_canvases_is_told(classifier: RobertaForSequenceClassification) -> None:
    score = CandidateGuidance.from_classifier(classifier, "happy").score
    with pytest.raises(ValueError, match="The classifier reads 32 tokens, a canvas has 33"):
        score(torch.ones(1, 33, dtype=torch.int64))
    with pytest.raises(ValueError, match="The classifier knows 364 tokens, a canvas holds number 364"):
        score(torch.tensor([[0, 364]]))
