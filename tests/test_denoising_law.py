"""The law of what `denoise` generates, against exact enumeration: the sampler's own mathematics, with nothing trained.

The source is a Markov chain over 3 words and 5 positions, 243 texts. Its exact denoiser is a table: the distribution
of each position in each of the 4^5 contexts of words and masks.
"""

import functools
import itertools

import pytest
import torch
from torch import Tensor

from diffusion_mlm.denoising import DenoisingStep, denoise
from diffusion_mlm.guidance import CandidateGuidance
from diffusion_mlm.randomness import fold_in, uniform
from diffusion_mlm.remasking import REMASKS, Remasking
from diffusion_mlm.sampling import Sampling
from diffusion_mlm.schedules import SCHEDULES, unmask_counts, unmask_counts_with_remasking
from diffusion_mlm.unmasking import ORDERS, AdaptiveCount

WORDS, LENGTH, MASK = 3, 5, 3
NO_IDS = torch.tensor([], dtype=torch.int64)
PLAIN = Sampling("nucleus", temperature=1.0, top_p=1.0)

START = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
TRANSITION = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.2, 0.7], [0.3, 0.65, 0.05]], dtype=torch.float64)
TEXTS = torch.cartesian_prod(*[torch.arange(WORDS)] * LENGTH)  # (243, 5)
CONTEXTS = torch.cartesian_prod(*[torch.arange(WORDS + 1)] * LENGTH)  # (1024, 5)
PLACE_VALUE = (WORDS + 1) ** torch.arange(LENGTH - 1, -1, -1)  # context @ PLACE_VALUE is its row in CONTEXTS

TRUTH = START[TEXTS[:, 0]] * TRANSITION[TEXTS[:, :-1], TEXTS[:, 1:]].prod(-1)  # (243,)


def exact_conditionals() -> Tensor:
    """p(x_i = v | context), (1024, 5, 3), by summing over all texts that agree with the context."""
    agrees = ((CONTEXTS[:, None] == TEXTS) | (CONTEXTS[:, None] == MASK)).all(-1)  # (1024, 243)
    words = torch.nn.functional.one_hot(TEXTS, WORDS).double()  # (243, 5, 3)
    joint = torch.einsum("ct,t,tiv->civ", agrees.double(), TRUTH, words)
    return joint / joint.sum(-1, keepdim=True)


CONDITIONALS = exact_conditionals()
LOGITS = torch.cat([CONDITIONALS.log(), torch.full((1024, LENGTH, 1), 5.0)], -1)  # the mask would win, were it allowed


def exact_logits(canvas: Tensor, needed: Tensor) -> Tensor:
    return LOGITS[canvas @ PLACE_VALUE][needed]


def sample(rows: int, seed: int, **settings: object) -> Tensor:
    """Which of the 243 texts each of `rows` runs of the sampler gave, (rows,)."""
    canvas = torch.full((rows, LENGTH), MASK)
    arguments = {"mask_id": MASK, "forbidden_ids": NO_IDS, "sampling": PLAIN, **settings}
    *_, last = denoise(exact_logits, canvas, canvas.eq(MASK), keys=fold_in(seed, torch.arange(rows)), **arguments)
    return last.canvas @ WORDS ** torch.arange(LENGTH - 1, -1, -1)


def total_variation(counts: Tensor, law: Tensor) -> Tensor:
    return (counts / counts.sum(-1, keepdim=True) - law).abs().sum(-1) / 2


def g_statistic(counts: Tensor, law: Tensor) -> Tensor:
    return 2 * torch.special.xlogy(counts, counts / (counts.sum(-1, keepdim=True) * law)).sum(-1)


@functools.cache
def null_counts(law: tuple[float, ...], n: int) -> Tensor:
    """Counts of the texts in 500 samples of size `n` from `law` itself, (500, texts)."""
    edges = torch.tensor(law, dtype=torch.float64).cumsum(0)
    samples = (torch.searchsorted(edges, uniform(fold_in(99, key), n)) for key in torch.arange(500))
    last = len(law) - 1
    return torch.stack([texts.clamp(max=last).bincount(minlength=len(law)) for texts in samples]).double()


def is_drawn_from(law: Tensor, texts: Tensor) -> bool:
    """Whether total variation and G-statistic both lie below the 99 % quantile of samples of `law` itself.

    Raises an error if they disagree: then the sample is too small to tell.
    """
    null, counts = null_counts(tuple(law.tolist()), len(texts)), texts.bincount(minlength=len(law)).double()
    near, likely = (bool(d(counts, law) < d(null, law).quantile(0.99)) for d in (total_variation, g_statistic))
    if near != likely:
        raise RuntimeError("Total variation and G-test disagree.")
    return near


# --- T4: one token per step and an exact denoiser give the exact distribution ----------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_from_the_distribution_samples_the_truth(order):
    assert is_drawn_from(TRUTH, sample(20_000, seed=ORDERS.index(order), order=order))


def test_noise_on_the_order_leaves_it_unbiased():
    assert is_drawn_from(TRUTH, sample(20_000, seed=7, order="confidence", order_noise=1.0))


def test_the_order_from_the_sample_is_biased_as_computed():
    """Proves the power of the tests above: drawing first is a hidden low temperature."""
    texts = sample(20_000, seed=8, order="confidence", order_from="sample")
    assert not is_drawn_from(TRUTH, texts)
    share = texts.bincount(minlength=243).double() / 20_000
    entropy, true_entropy = torch.special.entr(share).sum(), torch.special.entr(TRUTH).sum()
    assert entropy < 0.8 * true_entropy
    assert total_variation(share, TRUTH) > 0.1


def test_a_low_temperature_is_noticed():
    texts = sample(20_000, seed=9, order="random", sampling=Sampling("topk", 0.8, top_k=0))
    assert not is_drawn_from(TRUTH, texts)


# --- ancestral sampling ----------------------------------------------------------------------------------------------


def test_ancestral_sampling_has_the_law_of_independent_reveals():
    """In 2 linear steps each position comes first or second like a coin; all that comes together is independent."""
    masked = torch.full((LENGTH,), MASK)
    law = torch.zeros(len(TEXTS), dtype=torch.float64)
    for coins in itertools.product((False, True), repeat=LENGTH):
        first = torch.tensor(coins)
        context = torch.where(first, TEXTS, masked)  # (243, 5): what the second step sees
        of_first = CONDITIONALS[masked @ PLACE_VALUE].expand(len(TEXTS), -1, -1)
        of_second = CONDITIONALS[context @ PLACE_VALUE]
        p = torch.where(first[:, None], of_first, of_second).gather(-1, TEXTS[..., None]).squeeze(-1)
        law += p.prod(-1) / 2**LENGTH
    assert is_drawn_from(law, sample(20_000, seed=21, order="random", steps=2, reveal="ancestral"))
    assert not is_drawn_from(law, sample(20_000, seed=22, order="random", steps=2))


# --- guidance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", (0.0, 0.5, 1.0, 2.0, 3.5))
def test_guidance_by_given_words_samples_the_guided_law_as_computed(scale):
    """Words are given at both ends; those between come from the left, from p(v | both) ** w * p(v) ** (1 - w)."""
    start = torch.tensor([2, MASK, MASK, MASK, 0])
    given = start != MASK
    texts = TEXTS[(TEXTS[:, given] == start[given]).all(-1)]  # (27, 5)
    law, context = torch.ones(len(texts), dtype=torch.float64), start.expand(len(texts), -1).clone()
    for position in (1, 2, 3):
        conditional = CONDITIONALS[context @ PLACE_VALUE, position]
        unconditional = CONDITIONALS[context.masked_fill(given, MASK) @ PLACE_VALUE, position]
        guided = conditional**scale * unconditional ** (1 - scale)
        law *= (guided / guided.sum(-1, keepdim=True)).gather(-1, texts[:, [position]]).squeeze(-1)
        context[:, position] = texts[:, position]
    assert law.sum().item() == pytest.approx(1)

    canvas = start.expand(20_000, -1)
    *_, last = denoise(
        exact_logits,
        canvas,
        canvas.eq(MASK),
        mask_id=MASK,
        keys=fold_in(50, torch.arange(20_000)),
        forbidden_ids=NO_IDS,
        sampling=PLAIN,
        order="left_to_right",
        guidance_scale=scale,
        condition=given.expand(20_000, -1),
    )
    between = last.canvas[:, 1:4] @ WORDS ** torch.arange(2, -1, -1)
    assert is_drawn_from(law, between)
    truth = TRUTH[(TEXTS[:, given] == start[given]).all(-1)]
    assert is_drawn_from(truth / truth.sum(), between) == (scale == 1)


@pytest.mark.parametrize("order", ORDERS)
def test_guidance_by_the_exact_score_samples_the_law_given_what_is_asked_for(order):
    """Asked for: word 2 stands twice or more. log p(that | canvas) is summed from the truth."""
    asked_for = TEXTS.eq(2).sum(-1) >= 2
    agrees = ((CONTEXTS[:, None] == TEXTS) | (CONTEXTS[:, None] == MASK)).all(-1).double()  # (1024, 243)
    log_p = (agrees @ (TRUTH * asked_for)).log() - (agrees @ TRUTH).log()
    guidance = CandidateGuidance(lambda canvases: log_p[canvases @ PLACE_VALUE], num_candidates=3)
    texts = sample(20_000, seed=60 + ORDERS.index(order), order=order, guide_logits=guidance)
    assert asked_for[texts].all()
    law = TRUTH[asked_for] / TRUTH[asked_for].sum()
    place = asked_for.long().cumsum(0) - 1
    assert is_drawn_from(law, place[texts])


# --- T5: what parallel steps cost, by enumeration --------------------------------------------------------------------


def curve() -> list[float]:
    """h(j): mean cross-entropy of a masked token when j are visible, over all subsets, positions and texts."""
    h = []
    for j in range(LENGTH):
        losses = []
        for visible in itertools.combinations(range(LENGTH), j):
            context = torch.full_like(TEXTS, MASK)
            context[:, visible] = TEXTS[:, visible]
            for i in set(range(LENGTH)) - set(visible):
                p = CONDITIONALS[context @ PLACE_VALUE, i].gather(-1, TEXTS[:, i : i + 1]).squeeze(-1)
                losses.append(-(TRUTH * p.log()).sum().item())
        h.append(sum(losses) / len(losses))
    return h


def law_given_order(order: tuple[int, ...], counts: list[int]) -> Tensor:
    """q(text | order) of the sampler that reveals the next `count` positions of `order` at once, (243,)."""
    q, context, done = torch.ones(len(TEXTS), dtype=torch.float64), torch.full_like(TEXTS, MASK), 0
    for count in counts:
        block = list(order[done : done + count])
        p = CONDITIONALS[context @ PLACE_VALUE][:, block].gather(-1, TEXTS[:, block].unsqueeze(-1)).squeeze(-1)
        q, done = q * p.prod(-1), done + count
        context[:, block] = TEXTS[:, block]
    return q


def step_cost(counts: list[int], h: list[float]) -> float:
    """NELBO_K = sum of a_k h(n_{k-1}), nats per text."""
    starts = itertools.accumulate([0, *counts[:-1]])
    return sum(count * h[start] for count, start in zip(counts, starts, strict=True))


H = curve()


def test_the_curve_falls_and_its_sum_is_the_entropy():
    assert all(later < earlier for earlier, later in itertools.pairwise(H))
    assert sum(H) == pytest.approx(torch.special.entr(TRUTH).sum().item(), abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", (1, 2, 3, 4, 5, 9))
def test_the_cost_of_parallel_steps_is_equation_5(schedule, steps):
    counts = unmask_counts(schedule, LENGTH, steps)
    laws = torch.stack(
        [law_given_order(order, counts) for order in itertools.permutations(range(LENGTH))]
    )  # (120, 243)
    torch.testing.assert_close(laws.sum(-1), torch.ones(120, dtype=torch.float64))

    given_order = (TRUTH * (TRUTH / laws).log()).sum(-1).mean().item()
    assert given_order == pytest.approx(step_cost(counts, H) - sum(H), abs=1e-12)
    forgotten_order = (TRUTH * (TRUTH / laws.mean(0)).log()).sum().item()
    assert forgotten_order <= given_order + 1e-12
    if len(counts) == LENGTH:
        assert given_order == pytest.approx(0, abs=1e-12)
    else:
        assert forgotten_order > 1e-3


@pytest.mark.parametrize(("schedule", "steps"), [("linear", 2), ("cosine", 3), ("exponential", 3), ("maskgit", 1)])
def test_parallel_random_steps_sample_the_enumerated_law(schedule, steps):
    counts = unmask_counts(schedule, LENGTH, steps)
    law = torch.stack([law_given_order(order, counts) for order in itertools.permutations(range(LENGTH))]).mean(0)
    texts = sample(20_000, seed=10 + steps, order="random", schedule=schedule, steps=steps)
    assert is_drawn_from(law, texts)
    assert not is_drawn_from(TRUTH, texts)


def test_the_bound_falls_whenever_a_plan_refines_another():
    plans = {
        cuts: [b - a for a, b in itertools.pairwise((0, *cuts, LENGTH))]
        for size in range(LENGTH)
        for cuts in itertools.combinations(range(1, LENGTH), size)
    }
    assert len(plans) == 16
    for coarse, fine in itertools.permutations(plans, 2):
        if set(coarse) < set(fine):
            assert step_cost(plans[fine], H) < step_cost(plans[coarse], H)


# --- T6: rare tokens -------------------------------------------------------------------------------------------------

ZIPF = 1 / torch.arange(1, 50_258, dtype=torch.float64)
ZIPF /= ZIPF.sum()
RARE = 5000  # ranks above this one
RARE_MASS = ZIPF[RARE:].sum().item()


def test_rare_tokens_come_as_often_as_they_should_in_1024_steps():
    logits = torch.cat([ZIPF.log(), torch.tensor([0.0])]).float()  # and the mask
    canvas = torch.full((2, 1024), 50_257)
    *_, last = denoise(
        lambda canvas, needed: logits.expand(int(needed.sum()), -1),
        canvas,
        canvas.eq(50_257),
        mask_id=50_257,
        forbidden_ids=NO_IDS,
        sampling=PLAIN,
        order="random",
        steps=1024,
        keys=torch.arange(2),
    )
    assert abs(RARE_MASS - 0.203) < 1e-3
    share = (last.canvas >= RARE).double().mean().item()
    standard_error = (RARE_MASS * (1 - RARE_MASS) / 2048) ** 0.5
    assert abs(share - RARE_MASS) < 3 * standard_error


def test_a_joint_draw_in_float32_would_lose_the_rare_tokens():
    """The control: {token, stay masked} in one Gumbel race with uniforms j / 2^24, 1024 steps, at t = 1/2.

    There a token is revealed with r = 2 / 1024. Token v beats "stay" with noise g where u_v > exp(-exp(-x)),
    x = g + log((1 - r) / (r p_v)); the floor counts the points of the grid that lie above. Averaged over 512 values of
    g. The published figures: .023 of the mass on the rare tokens, and a quarter too few reveals.
    """
    r = 2 / 1024
    stay = -torch.log(-torch.log((torch.arange(512, dtype=torch.float64) + 0.5) / 512))
    wins = torch.zeros_like(ZIPF)
    for g in stay:
        above = -torch.expm1(-torch.exp(-(g + torch.log((1 - r) / (r * ZIPF)))))  # with real numbers
        wins += torch.floor(above * 2**24)
    assert (wins[RARE:].sum() / wins.sum()).item() == pytest.approx(0.023, abs=1e-3)
    assert wins.sum().item() / (2**24 * 512 * r) == pytest.approx(0.75, abs=0.01)


# --- T7: remasking ---------------------------------------------------------------------------------------------------


def run_renoise(rows: int, length: int, steps: int, schedule: str, order: str = "random") -> list[DenoisingStep]:
    """Renoising with a model that knows the text: position i holds word i mod 3."""
    text = torch.arange(length) % WORDS
    canvas = torch.full((rows, length), MASK)
    return list(
        denoise(
            lambda canvas, needed: (
                torch.nn.functional.one_hot(text, 4).float().mul(50).expand(len(canvas), -1, -1)[needed]
            ),
            canvas,
            canvas.eq(MASK),
            mask_id=MASK,
            forbidden_ids=NO_IDS,
            sampling=PLAIN,
            order=order,
            steps=steps,
            schedule=schedule,
            remask="renoise",
            keys=fold_in(20, torch.arange(rows)),
        )
    )


@pytest.mark.parametrize(("schedule", "steps"), [("linear", 6), ("linear", 24), ("cosine", 40), ("exponential", 12)])
def test_renoising_keeps_the_marginals_of_the_schedule(schedule, steps):
    rows, length = 8000, 12
    run = run_renoise(rows, length, steps, schedule)
    planned = torch.tensor(unmask_counts_with_remasking(schedule, length, steps)).cumsum(0)
    assert len(run) == steps
    error = 4.5 * (0.25 / rows) ** 0.5
    for step, num_visible in zip(run, planned.tolist(), strict=True):
        visible = ~step.is_masked
        assert (visible.sum(-1) == num_visible).all()
        assert (visible.double().mean(0) - num_visible / length).abs().max() < error, "at every position"
        assert (step.canvas == torch.where(visible, torch.arange(length) % WORDS, MASK)).all()
    assert not run[-1].is_masked.any()


def test_renoising_moves_as_equation_7_with_sigma_1_minus_alpha():
    """Each step: visible -> mask with sigma = 1 - alpha_s; masked -> visible with alpha_s, whatever alpha_t was."""
    run = run_renoise(rows=8000, length=12, steps=24, schedule="linear")
    for earlier, later in itertools.pairwise(run):
        alpha = 1 - later.is_masked.double().mean().item()
        visible, masked = ~earlier.is_masked, earlier.is_masked
        for flags, group, expected in ((later.remasked, visible, 1 - alpha), (later.revealed, masked, alpha)):
            if group.any():
                spread = 4 * max((expected * (1 - expected) / group.sum().item()) ** 0.5, 1e-9)
                assert (flags & group).sum().item() / group.sum().item() == pytest.approx(expected, abs=spread)


def test_renoising_revises_and_ends_complete_under_every_order():
    for order in ORDERS:
        run = run_renoise(rows=20, length=12, steps=24, schedule="linear", order=order)
        assert sum(step.remasked.sum() for step in run) > 0
        assert not run[-1].is_masked.any() and not run[-1].remasked.any()


def test_remasking_off_is_bit_identical_to_a_sampler_without_it():
    canvas = torch.full((6, LENGTH), MASK)
    arguments = {"mask_id": MASK, "forbidden_ids": NO_IDS, "sampling": PLAIN, "keys": torch.arange(6), "steps": 3}
    plain = list(denoise(exact_logits, canvas, canvas.eq(MASK), **arguments))
    off = list(denoise(exact_logits, canvas, canvas.eq(MASK), remask="none", **arguments))
    for a, b in zip(plain, off, strict=True):
        assert torch.equal(a.canvas, b.canvas) and torch.equal(
            a.confidence.nan_to_num(-1), b.confidence.nan_to_num(-1)
        )
        assert not a.remasked.any()


@pytest.mark.parametrize("rule", [rule for rule in REMASKS if rule.startswith("remdm")])
@pytest.mark.parametrize("steps", (2, 5, 11))
def test_remdm_with_sigma_0_is_bit_identical_to_no_remasking(rule, steps):
    canvas = torch.full((6, LENGTH), MASK)
    arguments = {"mask_id": MASK, "forbidden_ids": NO_IDS, "sampling": PLAIN, "keys": torch.arange(6), "steps": steps}
    plain = list(denoise(exact_logits, canvas, canvas.eq(MASK), **arguments))
    off = list(denoise(exact_logits, canvas, canvas.eq(MASK), remask=Remasking(rule, eta=0.0), **arguments))
    assert len(plain) == len(off) == min(steps, LENGTH)
    for a, b in zip(plain, off, strict=True):
        assert torch.equal(a.canvas, b.canvas) and not b.remasked.any()
        assert torch.equal(a.confidence.nan_to_num(-1), b.confidence.nan_to_num(-1))


@pytest.mark.parametrize("rule", ["remdm_cap", "remdm_rescale", "remdm_conf", "remdm_loop"])
def test_remdm_keeps_the_marginals_of_its_plan_through_a_whole_run(rule):
    rows, length, steps = 4000, 12, 30
    remasking = Remasking(rule, eta={"remdm_cap": 0.2, "remdm_rescale": 0.2, "remdm_conf": 1.0}.get(rule, 0.1))
    canvas, text = torch.full((rows, length), MASK), torch.arange(length) % WORDS
    run = denoise(
        lambda canvas, needed: (
            torch.nn.functional.one_hot(text, 4).float().mul(50).expand(len(canvas), -1, -1)[needed]
        ),
        canvas,
        canvas.eq(MASK),
        mask_id=MASK,
        forbidden_ids=NO_IDS,
        sampling=PLAIN,
        order="random",
        steps=steps,
        remask=remasking,
        keys=fold_in(21, torch.arange(rows)),
    )
    remasked = 0
    for step, visible in zip(run, itertools.accumulate(remasking.counts("linear", length, steps)), strict=True):
        share = (~step.is_masked).double()
        assert (share.sum(-1) == visible).all()
        assert (share.mean(0) - visible / length).abs().max() < 4.5 * (0.25 / rows) ** 0.5, "at every position"
        remasked += int(step.remasked.sum())
    assert remasked > 0


def test_an_adaptive_rule_with_a_tight_bound_is_unbiased():
    """One position at a time unless the model is certain: nothing is lost."""
    adaptive = AdaptiveCount("entropy_bound", 0.0)
    assert is_drawn_from(TRUTH, sample(20_000, seed=22, order="entropy", adaptive=adaptive))
    hasty = AdaptiveCount("entropy_bound", 5.0)
    assert not is_drawn_from(TRUTH, sample(20_000, seed=23, order="entropy", adaptive=hasty))


def law_of_renoising(steps: int) -> Tensor:
    """The exact law over the 243 texts, step by step over all 1024 contexts and all sets of positions kept."""
    visible_after = itertools.accumulate(unmask_counts_with_remasking("linear", LENGTH, steps))
    one_hot = torch.nn.functional.one_hot(CONTEXTS, WORDS + 1).double()  # (1024, 5, 4)
    is_masked = CONTEXTS == MASK
    drawn = torch.cat([CONDITIONALS, torch.zeros(1024, LENGTH, 1, dtype=torch.float64)], -1)
    outcome_if_kept = torch.where(is_masked.unsqueeze(-1), drawn, one_hot)  # a word stays, a mask is drawn
    back_to_mask = one_hot[-1:].expand(1024, -1, -1)  # the last context is all masks
    law = is_masked.all(-1).double()
    for num_visible in visible_after:
        kept_sets = list(itertools.combinations(range(LENGTH), num_visible))
        total = torch.zeros_like(law)
        for kept in kept_sets:
            is_kept = torch.tensor([i in kept for i in range(LENGTH)]).view(1, LENGTH, 1)
            outcome = torch.where(is_kept, outcome_if_kept, back_to_mask)
            total += torch.einsum("x,xa,xb,xc,xd,xe->abcde", law, *outcome.unbind(1)).flatten()
        law = total / len(kept_sets)
    return law[~is_masked.any(-1)]


def test_the_enumerated_law_of_renoising_in_one_step_is_the_product_of_the_marginals():
    torch.testing.assert_close(law_of_renoising(1), law_given_order(tuple(range(LENGTH)), [LENGTH]))


@pytest.mark.parametrize("steps", (4, 9))
def test_renoising_samples_its_enumerated_law(steps):
    texts = sample(20_000, seed=30 + steps, order="random", remask="renoise", steps=steps)
    assert law_of_renoising(steps).sum().item() == pytest.approx(1)
    assert is_drawn_from(law_of_renoising(steps), texts)
    assert not is_drawn_from(TRUTH, texts)
