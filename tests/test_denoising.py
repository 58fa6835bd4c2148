"""Denoising: what is promised at every step, for every row, whatever the model returns."""

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import SuppressTokensLogitsProcessor

from diffusion_mlm.denoising import DenoisingStep, denoise
from diffusion_mlm.randomness import fold_in, uniform
from diffusion_mlm.remasking import REMASKS, Remasking
from diffusion_mlm.repetition import Repetition
from diffusion_mlm.sampling import NonFiniteLogitsError, Sampling
from diffusion_mlm.schedules import SCHEDULES
from diffusion_mlm.unmasking import ORDERS, AdaptiveCount

NO_IDS = torch.tensor([], dtype=torch.int64)
PLAIN = Sampling("nucleus", temperature=1.0, top_p=1.0)
VOCABULARY, SPECIAL, PAD, MASK_ID = 7, 4, 5, 6
FORBIDDEN = torch.tensor([SPECIAL, PAD])
Model = Callable[[Tensor], Tensor]  # canvas (B, L) -> logits (B, L, V), row by row


def random_model(canvas: Tensor) -> Tensor:
    key = torch.zeros(len(canvas), dtype=torch.int64)
    for column in canvas.unbind(-1):
        key = fold_in(key, column)
    return (8 * uniform(key, canvas.shape[1] * VOCABULARY) - 4).view(*canvas.shape, VOCABULARY).float()


def one_model(winner: int) -> Model:
    return lambda canvas: 30.0 * torch.nn.functional.one_hot(torch.full_like(canvas, winner), VOCABULARY).float()


def tied_model(canvas: Tensor) -> Tensor:
    return torch.zeros(*canvas.shape, VOCABULARY)


def half_tied_model(canvas: Tensor) -> Tensor:
    return random_model(canvas).round()


def coarse_model(canvas: Tensor) -> Tensor:
    return random_model(canvas).bfloat16()


def impossible_model(canvas: Tensor) -> Tensor:
    """Most of the vocabulary at -inf: legal, as long as one word is left."""
    return random_model(canvas).masked_fill(torch.arange(VOCABULARY) % 2 == 1, -math.inf)


MODELS: list[Model] = [
    random_model,
    one_model(0),
    one_model(MASK_ID),
    one_model(PAD),
    tied_model,
    half_tied_model,
    coarse_model,
    impossible_model,
]
SAMPLINGS = [
    Sampling("greedy"),
    PLAIN,
    Sampling(),
    Sampling("topk", 0.7, top_k=2),
    Sampling("nucleus", 2.0, top_p=1e-9),
]


@st.composite
def requests(draw) -> dict:
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    cells = batch * length
    to_fill = draw(st.lists(st.booleans(), min_size=cells, max_size=cells))
    canvas = draw(
        st.lists(st.integers(0, VOCABULARY - 1), min_size=cells, max_size=cells)
    )  # masks and pads as text too
    remask = draw(st.sampled_from(REMASKS))
    order = "confidence" if remask == "low_confidence" else draw(st.sampled_from(ORDERS))
    return {
        "canvas": torch.tensor(canvas).view(batch, length),
        "to_fill": torch.tensor(to_fill).view(batch, length),
        "keys": torch.tensor(draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=batch, max_size=batch))),
        "steps": draw(st.none() | st.integers(1, 12)),
        "schedule": draw(st.sampled_from(sorted(SCHEDULES))),
        "sampling": draw(st.sampled_from(SAMPLINGS)),
        "order": order,
        "order_noise": draw(st.sampled_from([0.0, 1.0])),
        "order_from": draw(st.sampled_from(["distribution", "sample"])) if order == "confidence" else "distribution",
        "remask": draw(st.sampled_from([remask, Remasking(remask, eta=0.1)])),
        "mask_id": MASK_ID,
        "forbidden_ids": FORBIDDEN,
    }


def run(model: Model, request: dict, **changes: object) -> Iterator[DenoisingStep]:
    return denoise(lambda canvas, needed: model(canvas)[needed], **{**request, **changes})


quietly = settings(deadline=None, derandomize=True, database=None, max_examples=200)
briefly = settings(quietly, max_examples=50)


@quietly
@given(requests(), st.sampled_from(MODELS))
def test_every_promise_holds_at_every_step(request_, model):
    canvas, to_fill, steps = request_["canvas"], request_["to_fill"], request_["steps"]
    masks = to_fill.sum(-1).tolist()
    remasking = request_["remask"] if isinstance(request_["remask"], Remasking) else Remasking(request_["remask"])
    planned = []
    for n in masks:
        planned.append(remasking.counts(request_["schedule"], n, steps or n) if n else [])
    given_canvas, given_fill, random_state = canvas.clone(), to_fill.clone(), torch.get_rng_state()
    sent = []

    def counting_model(seen: Tensor, needed: Tensor) -> Tensor:
        assert seen.shape == needed.shape and (seen[needed] == MASK_ID).all()
        sent.append(len(seen))
        return model(seen)[needed]

    was_masked, was = to_fill, canvas.masked_fill(to_fill, MASK_ID)
    for index, step in enumerate(denoise(counting_model, **request_)):
        assert step.index == index
        # 1. Nothing but the positions to fill changes, and nothing forbidden is generated.
        assert torch.equal(step.canvas[~to_fill], given_canvas[~to_fill])
        visible = to_fill & ~step.is_masked
        assert not torch.isin(step.canvas[visible], torch.tensor([SPECIAL, PAD, MASK_ID])).any()
        assert (step.canvas[step.is_masked] == MASK_ID).all()
        # 2. What is said to have happened did happen, and nothing else did.
        assert not (step.revealed & ~was_masked).any() and not (step.remasked & (was_masked | ~to_fill)).any()
        assert torch.equal(step.is_masked, (was_masked & ~step.revealed) | step.remasked)
        unchanged = ~step.revealed & ~step.remasked
        assert torch.equal(step.canvas[unchanged], was[unchanged])
        # 3. The plan is kept to the token, and forwards are counted.
        for row, counts in enumerate(planned):
            grown = counts[index] if index < len(counts) else 0
            assert step.revealed[row].sum() - step.remasked[row].sum() == grown
            assert step.num_forwards[row] == min(index + 1, len(counts))
        assert sent[index] == sum(index < len(counts) for counts in planned), "rows that are done are not sent"
        # 4. Confidence stands exactly where a generated token stands.
        assert torch.equal(~step.confidence.isnan(), visible)
        assert ((step.confidence[visible] > 0) & (step.confidence[visible] <= 1)).all()
        was_masked, was = step.is_masked, step.canvas

    assert not was_masked.any(), "no mask is left"
    expected = [(steps or n if remasking.revises else min(steps or n, n)) if n else 0 for n in masks]
    assert [len(counts) for counts in planned] == expected
    assert len(sent) == max(expected) and sum(sent) == sum(expected)
    assert torch.equal(canvas, given_canvas) and torch.equal(to_fill, given_fill), "arguments are not changed"
    assert torch.equal(torch.get_rng_state(), random_state), "the global random state is not touched"


@settings(quietly, max_examples=100)
@given(requests(), st.sampled_from(MODELS), st.randoms(use_true_random=False))
def test_a_row_does_not_depend_on_its_batch(request_, model, random):
    """Alone, in another place, or with other neighbours: the same tokens, in the same steps, equally sure."""
    together = list(run(model, request_))
    rows = list(range(len(request_["canvas"])))
    groups = [[row] for row in rows] + [random.sample(rows, len(rows))]
    for group in groups:
        part = {name: request_[name][group] for name in ("canvas", "to_fill", "keys")}
        apart = list(run(model, request_, **part))
        for ours, theirs in zip(apart, together, strict=False):
            assert torch.equal(ours.canvas, theirs.canvas[group])
            assert torch.equal(ours.revealed, theirs.revealed[group])
            assert torch.equal(ours.remasked, theirs.remasked[group])
            assert torch.equal(ours.confidence.nan_to_num(-1), theirs.confidence[group].nan_to_num(-1))
            assert torch.equal(ours.num_forwards, theirs.num_forwards[group])
        if together:
            finished = apart[-1].canvas if apart else part["canvas"]
            assert torch.equal(finished, together[-1].canvas[group])


@settings(quietly, max_examples=60)
@given(requests(), st.sampled_from(MODELS))
def test_equal_keys_give_equal_text_whatever_the_global_random_state(request_, model):
    torch.manual_seed(1)
    first = [step.canvas for step in run(model, request_)]
    torch.manual_seed(2)
    second = [step.canvas for step in run(model, request_)]
    assert len(first) == len(second) and all(map(torch.equal, first, second))


@settings(quietly, max_examples=60)
@given(requests(), st.sampled_from(MODELS), st.sampled_from(["confidence", "left_to_right", "entropy", "margin"]))
def test_greedy_ignores_the_keys(request_, model, order):
    greedy = {
        "sampling": Sampling("greedy"),
        "order": order,
        "order_noise": 0.0,
        "remask": "none",
        "order_from": "distribution",
    }
    first = [step.canvas for step in run(model, request_, **greedy)]
    second = [step.canvas for step in run(model, request_, **greedy, keys=request_["keys"] + 1)]
    assert len(first) == len(second) and all(map(torch.equal, first, second))


@quietly
@given(requests(), st.integers(0, 12), st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_non_finite_logits_raise_at_the_step_where_they_appear(request_, broken_step, value, data):
    calls = []

    def model(canvas: Tensor, needed: Tensor) -> Tensor:
        logits = random_model(canvas)[needed]
        if len(calls) == broken_step and len(logits):
            broken_row = data.draw(st.integers(0, len(logits) - 1))
            logits[broken_row] = value
            calls.append("broken")
        else:
            calls.append("sound")
        return logits

    made = 0
    try:
        for _ in denoise(model, **request_):
            made += 1
        assert "broken" not in calls, "a broken step must not pass"
    except NonFiniteLogitsError:
        assert calls[-1] == "broken" and made == broken_step


def test_different_keys_give_different_text():
    canvas = torch.full((40, 8), MASK_ID)
    request_ = {"canvas": canvas, "to_fill": canvas.eq(MASK_ID), "mask_id": MASK_ID, "forbidden_ids": FORBIDDEN}
    *_, last = run(tied_model, request_, sampling=PLAIN, keys=torch.arange(40))
    assert len(last.canvas.unique(dim=0)) == 40
    *_, last = run(tied_model, request_, sampling=PLAIN, keys=torch.zeros(40, dtype=torch.int64))
    assert len(last.canvas.unique(dim=0)) == 1


# --- single facts ----------------------------------------------------------------------------------------------------


def example(**changes: object) -> dict:
    canvas = torch.tensor([[1, 2, MASK_ID, MASK_ID, MASK_ID, MASK_ID, 3]])
    request_ = {"canvas": canvas, "to_fill": canvas.eq(MASK_ID), "mask_id": MASK_ID, "forbidden_ids": FORBIDDEN}
    return {**request_, "keys": torch.tensor([0]), "sampling": PLAIN, **changes}


def test_a_mask_id_in_the_prefix_is_text():
    canvas = torch.tensor([[MASK_ID, 1, MASK_ID, MASK_ID]])
    to_fill = torch.tensor([[False, False, True, True]])
    *_, last = run(random_model, example(canvas=canvas, to_fill=to_fill))
    assert last.canvas[0, :2].tolist() == [MASK_ID, 1] and (last.canvas[0, 2:] < 4).all()
    assert last.num_forwards.tolist() == [2]


def test_positions_to_fill_that_hold_a_token_start_masked():
    canvas = torch.tensor([[1, 2, 3]])
    seen = []
    list(
        run(
            lambda canvas: seen.append(canvas.tolist()) or tied_model(canvas),
            example(canvas=canvas, to_fill=canvas > 1),
        )
    )
    assert seen[0] == [[1, MASK_ID, MASK_ID]]


def test_left_to_right_fills_from_the_left():
    places = [
        step.revealed.nonzero()[:, 1].tolist() for step in run(random_model, example(order="left_to_right", steps=2))
    ]
    assert places == [[2, 3], [4, 5]]


def test_confidence_order_reveals_the_surest_position_first():
    sureness = torch.tensor([0.0, 0.0, 1.0, 4.0, 2.0, 3.0, 0.0])
    logits = torch.zeros(7, VOCABULARY)
    logits[:, 1] = sureness
    places = [
        step.revealed.nonzero()[:, 1].item()
        for step in run(lambda canvas: logits.expand(len(canvas), -1, -1), example(sampling=Sampling("greedy")))
    ]
    assert places == [3, 5, 4, 2]


def test_large_noise_on_the_order_makes_it_random_and_its_scale_falls_to_the_last_step():
    logits = torch.zeros(7, VOCABULARY)
    logits[:, 1] = torch.tensor([0.0, 0.0, 1.0, 4.0, 2.0, 3.0, 0.0])
    canvas = torch.tensor([[1, 2, MASK_ID, MASK_ID, MASK_ID, MASK_ID, 3]]).expand(8000, -1)
    request_ = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), keys=torch.arange(8000), order_noise=1e6)
    first, second, *_ = run(lambda canvas: logits.expand(len(canvas), -1, -1), request_)
    assert (first.revealed[:, 2:6].double().mean(0) - 0.25).abs().max() < 0.02
    assert (second.revealed[:, 2:6].double().mean(0) - 0.25).abs().max() < 0.02
    small = run(lambda canvas: logits.expand(len(canvas), -1, -1), {**request_, "order_noise": 1e-6})
    assert next(small).revealed[:, 3].all()


@pytest.mark.parametrize(("order", "asked"), [("random", [2, 2]), ("left_to_right", [2, 2]), ("confidence", [4, 2])])
def test_only_the_logits_that_matter_are_asked_for(order, asked):
    sizes = []

    def predict_logits(canvas: Tensor, needed: Tensor) -> Tensor:
        sizes.append(int(needed.sum()))
        return random_model(canvas)[needed]

    list(denoise(predict_logits, **example(order=order, steps=2)))
    assert sizes == asked


def test_confidence_is_the_probability_before_temperature_and_truncation():
    sampling = Sampling("nucleus", temperature=0.3, top_p=0.5)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 9.0, 9.0, 9.0])
    *_, last = run(lambda canvas: logits.expand(*canvas.shape, -1), example(sampling=sampling))
    assert last.canvas[0, 2:6].tolist() == [0] * 4
    expected = torch.softmax(logits[:4], -1)[0].expand(4)
    torch.testing.assert_close(last.confidence[0, 2:6], expected)


def test_confidence_belongs_to_the_token_that_stands_there_after_remasking():
    request_ = example(remask="renoise", steps=30)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 9.0, 9.0, 9.0])
    for step in run(lambda canvas: logits.expand(*canvas.shape, -1), request_):
        visible = request_["to_fill"] & ~step.is_masked
        torch.testing.assert_close(step.confidence[visible], torch.softmax(logits[:4], -1)[step.canvas[visible]])


def test_edited_logits_decide_token_and_confidence():
    processors = LogitsProcessorList([SuppressTokensLogitsProcessor([0, 1, 2])])
    *_, last = run(tied_model, example(edit_logits=processors))
    assert last.canvas[0, 2:6].tolist() == [3] * 4
    assert last.confidence[0, 2:6].tolist() == [1.0] * 4


def test_the_editor_sees_the_canvas_row_of_each_row_of_logits():
    canvas = torch.tensor([[0, MASK_ID, MASK_ID], [1, 2, MASK_ID], [2, 3, 1]])
    seen = []

    def edit_logits(ids: Tensor, logits: Tensor) -> Tensor:
        seen.append((ids.tolist(), tuple(logits.shape)))
        assert logits[:, FORBIDDEN].isneginf().all()
        return logits

    request_ = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), keys=torch.arange(3), edit_logits=edit_logits)
    list(run(tied_model, request_))
    assert seen[0] == ([[0, 6, 6], [0, 6, 6], [1, 2, 6]], (3, VOCABULARY))


def test_the_editor_cannot_bring_a_forbidden_id_back():
    edited = example(
        edit_logits=lambda ids, logits: one_model(MASK_ID)(logits.new_zeros(len(logits), dtype=torch.int64))
    )
    *_, last = run(random_model, edited)
    assert (last.canvas[0, 2:6] < 4).all()


def test_an_editor_that_forbids_everything_is_an_error():
    with pytest.raises(NonFiniteLogitsError, match="all tokens are forbidden"):
        list(run(tied_model, example(edit_logits=lambda ids, logits: torch.full_like(logits, -math.inf))))


def test_steps_belong_to_whoever_receives_them():
    untouched = [step.canvas for step in run(random_model, example())]
    for kept, step in zip(untouched, run(random_model, example()), strict=True):
        assert torch.equal(step.canvas, kept)
        for tensor in (step.canvas, step.is_masked, step.confidence, step.num_forwards):
            tensor.zero_()


def test_a_model_that_writes_into_its_input_does_not_change_the_prefix():
    *_, last = run(lambda canvas: random_model(canvas.clone()) + canvas.zero_().unsqueeze(-1), example())
    assert last.canvas[0, [0, 1, 6]].tolist() == [1, 2, 3]


def test_gradients_are_off_inside_a_step_and_as_before_between_steps():
    weight = torch.ones(VOCABULARY, requires_grad=True)
    for step in run(lambda canvas: tied_model(canvas) * weight, example()):
        assert torch.is_grad_enabled() and not step.confidence.requires_grad


def test_nothing_to_fill_makes_no_step():
    assert list(run(random_model, example(to_fill=torch.zeros(1, 7, dtype=torch.bool)))) == []
    empty = {"canvas": torch.zeros(0, 3, dtype=torch.int64), "to_fill": torch.zeros(0, 3, dtype=torch.bool)}
    assert list(run(random_model, example(**empty, keys=NO_IDS))) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "`steps` must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "`steps`"),
        ({"steps": -3, "to_fill": torch.zeros(1, 7, dtype=torch.bool)}, "`steps`"),
        ({"schedule": "cosin"}, "`schedule`.*'cosine'"),
        ({"order": "best"}, "`order` must be one of random, confidence"),
        ({"order_from": "token"}, "`order_from`"),
        ({"order_from": "sample", "order": "random"}, "`order_from='sample'` needs `order='confidence'`"),
        ({"order_noise": -1.0}, "`order_noise`"),
        ({"order_noise": math.nan}, "`order_noise`"),
        ({"order_noise": math.inf}, "`order_noise`"),
        ({"remask": "always"}, "`remask` must be one of none, renoise"),
        ({"remask": "low_confidence", "order": "random"}, "`remask='low_confidence'` keeps"),
        ({"remask": "low_confidence", "min_gap": 1}, "`remask='low_confidence'` keeps"),
        ({"min_gap": -1}, "`min_gap`"),
        ({"min_gap": 0.5}, "`min_gap`"),
        ({"block_length": 2, "steps": 1}, "`steps` is 1"),
        ({"reveal_counts": [3]}, "`reveal_counts` sum to 3"),
        ({"adaptive": AdaptiveCount("threshold", 0.9), "remask": "renoise"}, "`adaptive` decides.*`remask`"),
        ({"adaptive": AdaptiveCount("threshold", 0.9), "reveal_counts": [4]}, "`adaptive` decides.*`reveal_counts`"),
        ({"adaptive": AdaptiveCount("threshold", 0.9), "steps": 2, "block_length": 2}, "`adaptive` decides.*`steps`"),
        ({"constraint": object(), "order_from": "sample"}, "`constraint` needs places"),
        ({"constraint": object(), "final_pass": True}, "`final_pass` would predict.*`constraint`"),
        ({"final_pass": 1}, "`final_pass` must be True or False"),
        ({"final_pass": True, "repetition": Repetition(penalty=1.2)}, "`final_pass`.*`repetition_penalty`"),
        ({"reveal": "all"}, "`reveal` must be one of planned, ancestral"),
        ({"reveal": "ancestral", "remask": "renoise"}, "`reveal='ancestral'`.*`remask`"),
        ({"reveal": "ancestral", "block_length": 2}, "`reveal='ancestral'`.*`block_length`"),
        ({"reveal": "ancestral", "adaptive": AdaptiveCount("threshold", 0.9)}, "`reveal='ancestral'`.*`adaptive`"),
        ({"reveal": "ancestral", "reveal_counts": [7]}, "`reveal_counts`.*`reveal='ancestral'`"),
        ({"reveal": "ancestral", "steps": 0}, "`steps` must be a whole number"),
        ({"keys": torch.tensor([1, 2])}, "`keys`"),
        ({"keys": torch.tensor([1.0])}, "`keys`"),
        ({"canvas": torch.zeros(7, dtype=torch.int64)}, "`canvas`"),
        ({"canvas": torch.zeros(1, 7)}, "`canvas`"),
        ({"to_fill": torch.zeros(1, 6, dtype=torch.bool)}, "`to_fill`"),
        ({"to_fill": torch.zeros(1, 7)}, "`to_fill`"),
    ],
)
def test_impossible_arguments_are_refused_at_the_call(changes, message):
    with pytest.raises(ValueError, match=message):
        run(random_model, example(**changes))


def test_logits_of_the_wrong_shape_are_refused():
    for wrong in (
        lambda canvas, needed: random_model(canvas),
        lambda canvas, needed: random_model(canvas)[needed][:-1],
    ):
        with pytest.raises(ValueError, match=r"`predict_logits` must return logits of shape \(4, vocabulary\)"):
            list(denoise(wrong, **example()))


# --- ends of text ----------------------------------------------------------------------------------------------------

END = 3


def ending_model(place: int) -> Model:
    """Sure of an end at `place` and behind it, and of word 1 before, a little less so."""

    def model(canvas: Tensor) -> Tensor:
        ends = torch.arange(canvas.shape[1]) >= place
        logits = torch.where(
            ends[:, None], torch.tensor([0.0, 0, 0, 30, 0, 0, 0]), torch.tensor([0.0, 9, 0, 0, 0, 0, 0])
        )
        return logits.expand(len(canvas), -1, -1)

    return model


def test_behind_an_end_all_is_given_without_a_forward():
    canvas = torch.full((1, 8), MASK_ID)
    steps = list(run(ending_model(3), example(canvas=canvas, to_fill=canvas.eq(MASK_ID), end_id=END)))
    assert steps[0].canvas[0].tolist() == [MASK_ID] * 3 + [END] * 5
    assert steps[0].revealed[0].tolist() == [False] * 3 + [True] * 5
    assert steps[-1].canvas[0].tolist() == [1] * 3 + [END] * 5
    assert steps[-1].num_forwards.tolist() == [4] == [len(steps)]
    assert [step.index for step in steps] == [0, 1, 2, 3]


def test_a_row_that_ends_early_stops_and_leaves_the_others_as_they_are():
    canvas = torch.full((2, 6), MASK_ID)
    canvas[0, 0] = 2

    def model(canvas: Tensor) -> Tensor:
        return torch.where(canvas[:, :1, None] == 2, ending_model(1)(canvas), random_model(canvas))

    request_ = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), keys=torch.arange(2), end_id=END)
    *_, last = run(model, request_)
    alone = {name: request_[name][1:] for name in ("canvas", "to_fill", "keys")}
    *_, by_itself = run(model, request_, **alone)
    assert last.num_forwards[0] == 1 and last.canvas[0].tolist() == [2] + [END] * 5
    assert torch.equal(last.canvas[1:], by_itself.canvas) and last.num_forwards[1] == by_itself.num_forwards[0]


def test_with_remasking_an_end_gives_nothing_away():
    canvas = torch.full((1, 8), MASK_ID)
    request_ = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), end_id=END, remask="remdm_cap", steps=8)
    assert len(list(run(ending_model(3), request_))) == 8


def test_no_end_is_generated_where_none_may_stand():
    canvas = torch.full((1, 8), MASK_ID)
    may_end = torch.arange(8)[None] >= 5
    *_, last = run(ending_model(0), example(canvas=canvas, to_fill=canvas.eq(MASK_ID), end_id=END, may_end=may_end))
    assert not (last.canvas[0, :5] == END).any() and last.canvas[0, 5:].tolist() == [END] * 3


def test_deferred_ends_are_revealed_last():
    canvas = torch.full((1, 8), MASK_ID)
    request_ = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), end_id=END, defer_end=True)
    places = [step.revealed.nonzero()[:, 1].tolist() for step in run(ending_model(3), request_)]
    assert places == [[0], [1], [2], [3, 4, 5, 6, 7]]


# --- how many, and where ---------------------------------------------------------------------------------------------


def test_an_adaptive_rule_reveals_what_is_sure_and_the_best_one_at_least():
    logits = torch.zeros(7, VOCABULARY)
    logits[:, 1] = torch.tensor([0.0, 0.0, 9.0, 9.5, 0.5, 1.0, 0.0])
    request_ = example(adaptive=AdaptiveCount("threshold", 0.9), sampling=Sampling("greedy"))
    steps = list(run(lambda canvas: logits.expand(len(canvas), -1, -1), request_))
    assert [step.revealed.nonzero()[:, 1].tolist() for step in steps] == [[2, 3], [5], [4]]
    assert steps[-1].num_forwards.tolist() == [3]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rule", ["threshold", "factor", "entropy_bound"])
def test_adaptive_rules_end_within_the_steps_under_every_order(order, rule):
    canvas = torch.full((5, 8), MASK_ID)
    request_ = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), keys=torch.arange(5), order=order)
    for steps, most in ((None, 8), (3, 3)):
        *_, last = run(random_model, request_, adaptive=AdaptiveCount(rule, 0.5), steps=steps)
        assert not last.is_masked.any() and (last.num_forwards <= most).all()


def test_adaptive_rules_that_accept_nothing_reveal_one_by_one():
    adaptive = AdaptiveCount("entropy_bound", 0.0)
    plain = list(run(random_model, example(order="entropy")))
    one_by_one = list(run(random_model, example(order="entropy", adaptive=adaptive)))
    assert len(plain) == len(one_by_one) == 4
    assert all(torch.equal(a.canvas, b.canvas) for a, b in zip(plain, one_by_one, strict=True))


@pytest.mark.parametrize("changes", [{}, {"adaptive": AdaptiveCount("threshold", 0.3)}, {"remask": "renoise"}])
def test_a_block_is_finished_before_the_next_begins(changes):
    canvas = torch.full((3, 9), MASK_ID)
    request_ = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), keys=torch.arange(3), block_length=4)
    for step in run(random_model, request_, **changes):
        for row in step.is_masked:
            open_blocks = {int(place) // 4 for place in row.nonzero()}
            begun = {int(place) // 4 for place in (~row).nonzero()}
            assert all(block >= max(begun) for block in open_blocks)
    assert not step.is_masked.any()


def test_counts_that_are_given_are_kept_to():
    sizes = [int(step.revealed.sum()) for step in run(random_model, example(reveal_counts=[1, 3]))]
    assert sizes == [1, 3]


def test_positions_of_one_step_keep_their_distance():
    canvas = torch.full((50, 9), MASK_ID)
    request_ = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), keys=torch.arange(50), steps=3)
    for order in ORDERS:
        first = next(run(half_tied_model, request_, order=order, min_gap=1)).revealed
        assert not (first[:, 1:] & first[:, :-1]).any() and (first.sum(-1) == 3).all()


def test_the_temperature_falls_as_the_masks_go():
    shares = []

    class Watching(Sampling):
        def choose_from(self, log_probs, u, masked_share=None):
            shares.append(masked_share.tolist())
            return super().choose_from(log_probs, u, masked_share)

    list(run(random_model, example(steps=2, sampling=Watching(temperature_end=0.1))))
    assert shares == [[1.0, 1.0], [0.5, 0.5]]


# --- remasking by confidence -----------------------------------------------------------------------------------------


def test_low_confidence_lets_committed_tokens_compete_again():
    """What was revealed when little was sure gives way to what has become surer."""

    def model(canvas: Tensor) -> Tensor:
        sure = torch.tensor([3.0, 2.0, 1.0, 0.5]) if (canvas == MASK_ID).all() else torch.tensor([9.0, 8.0, 7.0, 6.0])
        logits = torch.zeros(*canvas.shape, VOCABULARY)
        logits[..., 1] = sure
        return logits

    canvas = torch.full((1, 4), MASK_ID)
    request_ = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), sampling=Sampling("greedy"), steps=4)
    steps = list(run(model, request_, remask="low_confidence"))
    assert [(~step.is_masked).nonzero()[:, 1].tolist() for step in steps[:2]] == [[0], [1, 2]]
    assert steps[1].remasked[0].tolist() == [True, False, False, False]
    assert not steps[-1].is_masked.any()


# --- hooks -----------------------------------------------------------------------------------------------------------


def test_the_guide_is_asked_only_where_a_token_is_drawn_and_decides_it():
    asked = []

    def guide(canvas: Tensor, position: Tensor, logits: Tensor) -> Tensor:
        asked.append(position.tolist())
        return torch.nn.functional.one_hot(torch.full((len(logits),), 2), VOCABULARY) * 50.0

    *_, last = run(random_model, example(steps=2, guide_logits=guide))
    assert last.canvas[0, 2:6].tolist() == [2] * 4
    assert sorted(itertools.chain(*asked)) == [2, 3, 4, 5] and [len(places) for places in asked] == [2, 2]


def test_on_step_may_finish_the_run_in_one_more_forward():
    calls = []
    steps = list(run(random_model, example(on_step=lambda step: calls.append(step) or "finish")))
    assert [int(step.is_masked.sum()) for step in steps] == [3, 0]
    surest = AdaptiveCount("entropy_bound", 0.0)
    steps = list(run(random_model, example(on_step=lambda step: "finish", adaptive=surest)))
    assert [int(step.is_masked.sum()) for step in steps] == [3, 0]
    calls.clear()
    steps = list(run(random_model, example(on_step=lambda step: calls.append(step) or "finish")))
    assert steps[-1].num_forwards.tolist() == [2] and len(calls) == 2


def test_on_step_may_put_tokens_and_masks_where_text_is_generated():
    def change(step: DenoisingStep) -> Tensor | None:
        if step.index > 1:
            return None
        canvas = step.canvas.clone()
        canvas[0, 2] = 3 if step.index == 0 else MASK_ID
        return canvas

    first, second, *_, last = run(one_model(0), example(on_step=change, order="left_to_right"))
    assert first.canvas[0, 2] == 3 and not first.is_masked[0, 2] and first.confidence[0, 2] == 1
    assert second.canvas[0, 2] == MASK_ID and second.is_masked[0, 2]
    assert last.canvas[0, 2:6].tolist() == [0] * 4 and not last.is_masked.any()


def test_on_step_may_finish_some_rows_and_change_others():
    """One row finishes after its first step, the other goes by its plan, as each does alone."""
    canvas = torch.full((2, 5), MASK_ID)
    request_ = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), keys=torch.arange(2))

    def first_row_only(step: DenoisingStep) -> tuple[Tensor, Tensor]:
        return step.canvas, torch.tensor([True, False])

    *_, last = run(random_model, request_, on_step=first_row_only)
    assert last.num_forwards.tolist() == [2, 5]
    for row, on_step in enumerate((lambda step: "finish", None)):
        alone = example(canvas=canvas[:1], to_fill=canvas[:1].eq(MASK_ID), keys=torch.tensor([row]), on_step=on_step)
        assert torch.equal([*run(random_model, alone)][-1].canvas[0], last.canvas[row])


@pytest.mark.parametrize("remask", REMASKS)
@pytest.mark.parametrize("finish_at", (0, 2, 99))
def test_on_step_cannot_keep_a_run_from_ending(remask: str, finish_at: int):
    """However often it masks everything again, one forward after the last step reveals it for good."""
    again = []

    def mask_all(step: DenoisingStep) -> tuple[Tensor, Tensor]:
        again.append(step.index)
        return step.canvas.masked_fill(example()["to_fill"], MASK_ID), torch.tensor([step.index >= finish_at])

    order = "confidence" if remask == "low_confidence" else "random"
    *_, last = run(random_model, example(steps=4, on_step=mask_all, remask=remask, order=order))
    assert not last.is_masked.any() and not last.canvas.eq(MASK_ID).any()
    assert last.num_forwards.tolist() == [min(finish_at + 3, 6)] and len(again) == last.num_forwards


@pytest.mark.parametrize("token", (PAD, -1, 99))
def test_on_step_may_put_no_token_that_is_forbidden_or_none(token: int):
    def put(step: DenoisingStep) -> Tensor:
        return step.canvas.masked_fill(example()["to_fill"], token)

    with pytest.raises(ValueError, match=f"`on_step` put the token {token} into the text"):
        list(run(random_model, example(on_step=put)))


def test_on_step_may_only_mask_again_where_there_is_a_constraint():
    def mask_or_put(step: DenoisingStep) -> Tensor | None:
        return step.canvas.masked_fill(example()["to_fill"], MASK_ID if step.index < 3 else 1)

    steps = []
    with pytest.raises(ValueError, match="`on_step` may only mask tokens again"):
        steps += run(random_model, example(on_step=mask_or_put, constraint=EvenSum(), steps=4))
    assert len(steps) == 3


def test_on_step_may_not_touch_the_prefix():
    with pytest.raises(ValueError, match="`on_step` returned a canvas that differs"):
        list(run(random_model, example(on_step=lambda step: step.canvas + 1)))
    with pytest.raises(ValueError, match="`on_step` must return None, a canvas or 'finish', got 'stop'"):
        list(run(random_model, example(on_step=lambda step: "stop")))


class EvenSum:
    """The words of a row must have an even sum: a constraint that joins all positions."""

    def allowed(self, row: int, canvas: Tensor, is_masked: Tensor) -> Tensor:
        allowed = torch.ones(int(is_masked.sum()), VOCABULARY, dtype=torch.bool)
        if len(allowed) == 1:
            allowed[0] = (torch.arange(VOCABULARY) + canvas[~is_masked].sum()) % 2 == 0
        return allowed

    def draw(self, row, canvas, is_masked, reveal, logits, u):
        canvas, is_masked, tokens = canvas.clone(), is_masked.clone(), []
        for place, position in enumerate(reveal.nonzero().squeeze(-1).tolist()):
            index = int(is_masked[:position].sum())
            forbidden = ~self.allowed(row, canvas, is_masked)[index]
            both = logits[:, place].masked_fill(forbidden, -math.inf)
            kept = both[0] if both[0].isfinite().any() else both[1]
            tokens.append(int(kept.argmax()))
            canvas[position], is_masked[position] = tokens[-1], False
        return torch.tensor(tokens)


@pytest.mark.parametrize("steps", (1, 2, 4))
def test_a_constraint_on_the_whole_row_holds_however_many_are_revealed_at_once(steps):
    canvas = torch.full((30, 5), MASK_ID)
    request_ = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), keys=torch.arange(30), steps=steps)
    free = [step.canvas for step in run(random_model, request_)][-1]
    assert (free.sum(-1) % 2 == 1).any(), "without it some are odd"
    *_, last = run(random_model, request_, constraint=EvenSum())
    assert (last.canvas.sum(-1) % 2 == 0).all() and (last.canvas < 4).all()


def test_independent_positions_leave_ends_to_the_last_if_asked():
    end, mask = 3, 4
    canvas = torch.full((1, 8), mask)

    def predict_logits(canvas, needed):  # unsure of words on the left, sure of ends on the right
        logits = torch.zeros(canvas.shape[1], 5)
        logits[4:, end] = 20.0
        return logits.expand(len(canvas), -1, -1)[needed]

    firsts = {}
    for deferred in (False, True):
        steps = denoise(
            predict_logits,
            canvas,
            canvas.eq(mask),
            mask_id=mask,
            keys=torch.tensor([0]),
            forbidden_ids=torch.tensor([mask]),
            sampling=Sampling("greedy"),
            adaptive=AdaptiveCount("independent", 0.25),
            order="entropy",
            end_id=end,
            may_end=torch.arange(8)[None] >= 4,
            defer_end=deferred,
        )
        firsts[deferred] = next(iter(steps)).revealed[0].nonzero().squeeze(-1).tolist()
    assert firsts[False][1:] == [4, 5, 6, 7]
    assert len(firsts[True]) == 1 and firsts[True][0] < 4


# --- the pass at t = 0, and ancestral reveals ------------------------------------------------------------------------


@briefly
@given(requests(), st.sampled_from(MODELS))
def test_the_final_pass_puts_the_most_probable_word_everywhere_it_filled(request_, model):
    plain = list(run(model, request_))
    steps = list(run(model, request_, final_pass=True))
    to_fill = request_["to_fill"]
    if not to_fill.any():
        assert steps == []
        return
    assert all(torch.equal(a.canvas, b.canvas) for a, b in zip(plain, steps[:-1], strict=True))
    logits = model(plain[-1].canvas).float()
    logits[..., [*FORBIDDEN.tolist(), MASK_ID]] = -math.inf
    last = steps[-1]
    assert torch.equal(last.canvas, torch.where(to_fill, logits.argmax(-1), plain[-1].canvas))
    assert torch.equal(last.revealed, to_fill) and not last.remasked.any() and not last.is_masked.any()
    assert torch.equal(last.num_forwards, plain[-1].num_forwards + to_fill.any(-1).long())
    filled = last.confidence[to_fill]
    torch.testing.assert_close(filled, logits.softmax(-1).amax(-1)[to_fill], rtol=1e-5, atol=1e-6)


def test_the_final_pass_keeps_the_end_of_a_text():
    """The model wants the word 0 everywhere once it sees an end: neither the end nor what is behind it may go."""
    end = 3

    def ends_at_2(canvas: Tensor) -> Tensor:
        wanted = torch.where(torch.arange(canvas.shape[1]) < 2, 1, end).expand_as(canvas)
        wanted = torch.where((canvas == end).any(-1, keepdim=True), 0, wanted)
        return 30.0 * torch.nn.functional.one_hot(wanted, VOCABULARY).float()

    canvas = torch.full((1, 6), MASK_ID)
    blank = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), end_id=end, order="left_to_right")
    *_, before, last = run(ends_at_2, blank, final_pass=True)
    assert before.canvas.tolist() == [[1, 1, end, end, end, end]]
    assert last.canvas.tolist() == [[0, 0, end, end, end, end]]


def test_there_is_no_final_pass_where_nothing_but_ends_was_filled():
    end = 3

    def ends(canvas: Tensor) -> Tensor:
        assert len(canvas) > 0
        return 30.0 * torch.nn.functional.one_hot(torch.full_like(canvas, end), VOCABULARY).float()

    canvas = torch.full((1, 4), MASK_ID)
    blank = example(canvas=canvas, to_fill=canvas.eq(MASK_ID), end_id=end, order="left_to_right")
    *_, last = run(ends, blank, final_pass=True)
    assert last.canvas.tolist() == [[end] * 4]


@briefly
@given(requests(), st.sampled_from(MODELS))
def test_ancestral_reveals_fill_everything_in_at_most_the_steps_asked_for(request_, model):
    request_ = {**request_, "remask": "none", "reveal": "ancestral"}
    to_fill, steps = request_["to_fill"], list(run(model, request_))
    revealed = torch.zeros_like(to_fill)
    for step in steps:
        assert step.revealed.any() and not (step.revealed & revealed).any()
        revealed |= step.revealed
    assert torch.equal(revealed, to_fill)
    if steps:
        most = to_fill.sum(-1) if request_["steps"] is None else torch.full_like(to_fill.sum(-1), request_["steps"])
        assert (steps[-1].num_forwards <= torch.minimum(most, to_fill.sum(-1))).all()
        assert not torch.isin(steps[-1].canvas[to_fill], torch.tensor([*FORBIDDEN.tolist(), MASK_ID])).any()
