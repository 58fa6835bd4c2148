"""The likelihood of texts: estimators against exact values, and figures that depend on texts and model alone."""

import copy
import math

import pytest
import torch
from datasets import Dataset

from diffusion_mlm import DiffusionTrainer, DiffusionTrainingArguments, evaluate_texts, load_generator, story_language
from diffusion_mlm.checkpoints import STORIES_GENERATOR
from diffusion_mlm.errors import NonFiniteLossError
from diffusion_mlm.packing import tokenize_and_pack
from diffusion_mlm.tokenization import train_characters

TOKENIZER = story_language.tokenizer()
STORIES = story_language.sample(64, seed=5)
NUM_TOKENS = [len(story_language.automaton.split_text(story)) + 1 for story in STORIES]  # and one </s>


def exact_per_token(texts):
    """-log p of the texts in nats per token."""
    return -float(story_language.log_prob(texts).sum()) / sum(NUM_TOKENS[STORIES.index(text)] for text in texts)


@pytest.fixture(scope="module")
def exact_report():
    """Bound and integrated curve by the exact denoiser."""
    return evaluate_texts(
        story_language.ExactDenoiser(), TOKENIZER, STORIES[:24], draws=12, estimators=["curve"], batch_size=64
    )


@pytest.fixture(scope="module")
def generator():
    return load_generator(STORIES_GENERATOR)[0]


def test_bound_and_curve_of_the_exact_denoiser_are_the_exact_likelihood(exact_report):
    """Within 3 standard errors; the errors are over texts, and count what the masks add as well."""
    exact = exact_per_token(STORIES[:24])
    for estimate in (exact_report.bound, exact_report.others["curve"]):
        assert abs(estimate.nats_per_token - exact) < 3 * estimate.standard_error
        assert estimate.standard_error < 0.08 * exact  # or the line above would say nothing


def test_the_loss_of_the_exact_denoiser_rises_with_the_mask_rate(exact_report):
    rates, nats = zip(*exact_report.curve, strict=True)
    assert rates[0] < 0.02 and rates[-1] == pytest.approx(1)
    assert nats[-1] == pytest.approx(max(nats))
    assert sum(nats[:5]) < sum(nats[-5:]) / 2
    upper, means = zip(*exact_report.loss_by_mask_rate, strict=True)
    assert upper == pytest.approx([k / 10 for k in range(1, 11)])
    assert max(means) == means[-1]


def test_one_token_at_a_time_the_exact_denoiser_gives_the_exact_probability_in_every_order():
    """So the fixed order, the importance-weighted bound and the bound of the sampler have no error at all."""
    texts = STORIES[:2]
    report = evaluate_texts(
        story_language.ExactDenoiser(),
        TOKENIZER,
        texts,
        draws=1,
        estimators=["chain", "importance", "steps"],
        orders=1,
        steps=[10**6],
        batch_size=64,
    )
    exact = exact_per_token(texts)
    assert report.others["chain"].nats_per_token == pytest.approx(exact, rel=1e-5)
    assert report.others["importance"].nats_per_token == pytest.approx(exact, rel=1e-5)
    (every_token,) = report.others["steps"]
    assert every_token.nats_per_token == pytest.approx(exact, rel=1e-5)


def test_the_packaged_generator_lies_above_the_exact_value_and_the_importance_bound_between(generator):
    texts = STORIES[:6]
    report = evaluate_texts(generator, TOKENIZER, texts, draws=16, estimators=["importance"], orders=2, batch_size=128)
    exact, tighter = exact_per_token(texts), report.others["importance"]
    mean_of_orders = tighter.settings["nats_per_token_of_one_order"]
    assert exact < tighter.nats_per_token < mean_of_orders
    assert exact < report.bound.nats_per_token + 3 * report.bound.standard_error
    assert abs(mean_of_orders - report.bound.nats_per_token) < 3 * report.bound.standard_error


def test_with_fewer_steps_the_packaged_generator_is_worse(generator):
    report = evaluate_texts(
        generator, TOKENIZER, STORIES[:12], draws=8, estimators=["steps"], steps=[2, 8, 32], batch_size=128
    )
    two, eight, many = (estimate.nats_per_token for estimate in report.others["steps"])
    assert two > 1.3 * eight > 1.3 * 1.1 * many > report.bound.nats_per_token
    assert [estimate.settings["orders"] for estimate in report.others["steps"]] == [4, 1, 1]  # as many as 8 draws pay


@pytest.mark.parametrize("packing", ["packed", "one_per_row"])
def test_one_checkpoint_has_the_same_figures_with_every_batch_size(shared_roberta, packing):
    texts = [" ".join(story.split()[: 5 + 9 * place]) for place, story in enumerate(STORIES[:4])]
    reports = [
        evaluate_texts(
            shared_roberta,
            TOKENIZER,
            texts,
            packing=packing,
            max_length=24,
            draws=3,
            estimators=["curve", "steps", "chain", "importance"],
            steps=[4],
            orders=2,
            batch_size=batch_size,
        ).to_dict()
        for batch_size in (1, 7, 32)
    ]
    first, *others = reports
    for other in others:
        assert flat(other) == pytest.approx(flat(first), rel=1e-5)


def flat(found, name=""):
    """All numbers of a nested report, by path."""
    if isinstance(found, dict):
        return {key: value for part in found for key, value in flat(found[part], f"{name}.{part}").items()}
    if isinstance(found, list | tuple):
        return {k: v for place, part in enumerate(found) for k, v in flat(part, f"{name}[{place}]").items()}
    return {name: found} if isinstance(found, int | float) else {}


def test_the_report_is_what_the_trainer_reports_of_the_same_rows(shared_roberta, tmp_path):
    texts = [" ".join(story.split()[:20]) for story in STORIES[:10]]
    model = copy.deepcopy(shared_roberta)
    model.config.diffusion = {"generates_end": True, "row_length": 32}
    arguments = DiffusionTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", mask_end_token=True, eval_draws=5, seed=3
    )
    rows = tokenize_and_pack(Dataset.from_dict({"text": texts}), TOKENIZER, 32, "one_per_row")
    trainer = DiffusionTrainer(model, arguments, processing_class=TOKENIZER, eval_dataset=rows)
    metrics = trainer.evaluate()
    report = evaluate_texts(model, TOKENIZER, texts, draws=5, seed=3)
    assert report.bound.nats_per_token == pytest.approx(metrics["eval_loss"], rel=1e-5)
    assert report.num_tokens == metrics["eval_num_tokens"]
    buckets = {f"eval_loss_mask_rate_{rate:.1f}": nats for rate, nats in report.loss_by_mask_rate}
    assert buckets == pytest.approx({name: nats for name, nats in metrics.items() if "mask_rate" in name}, rel=1e-5)


def uniform_model(words):
    """A model to which each of so many words is as likely as any other, and nothing else possible."""

    class Uniform(torch.nn.Module):
        config = copy.copy(story_language.ExactDenoiser().config)
        device = torch.device("cpu")

        def forward(self, input_ids, attention_mask):
            logits = torch.zeros(*input_ids.shape, 5 + words)
            return type("Output", (), {"logits": logits})

    model = Uniform()
    model.config.vocab_size = 5 + words
    model.config.diffusion = {}
    return model


def test_units_are_nats_per_token_and_bits_per_byte_of_the_raw_text():
    characters = train_characters(["abcdé"])
    texts = ["aé", "bcd", "éé"]
    for packing in ("packed", "one_per_row"):
        report = evaluate_texts(uniform_model(5), characters, texts, packing=packing, max_length=6, draws=2)
        assert report.num_tokens == 7
        assert report.bound.nats_per_token == pytest.approx(math.log(5), rel=1e-6)
        assert report.bound.perplexity == pytest.approx(5, rel=1e-6)
        assert report.bound.bits_per_byte == pytest.approx(7 * math.log2(5) / 10, rel=1e-6)  # 3 + 3 + 4 bytes


def test_unknown_characters_are_given_and_neither_they_nor_their_bytes_count():
    characters = train_characters(["abcdé"])
    report = evaluate_texts(uniform_model(5), characters, ["aé🙂", "bcdx"], packing="packed", draws=2, max_length=20)
    assert (report.num_tokens, report.rows.num_bytes) == (5, 6)
    assert report.bound.bits_per_byte == pytest.approx(5 * math.log2(5) / 6, rel=1e-6)
    assert report.to_dict()["left_out"] == {
        "unknown_tokens": 2,
        "unknown_bytes": 5,
        "separators": 1,
        "texts_without_tokens": 0,
    }


def test_windows_of_a_text_add_up_to_one_text(shared_roberta):
    """Left to right, each token is predicted from what its window shows: the sum over windows is one text's."""
    report = evaluate_texts(
        shared_roberta, TOKENIZER, STORIES[:3], packing="one_per_row", max_length=16, draws=2, estimators=["chain"]
    )
    assert report.rows.num_split == 3 and len(report.rows.rows) > 12
    assert report.num_tokens == sum(NUM_TOKENS[:3]) - 3
    assert report.settings["interval_over"] == "texts"
    assert report.bound.confidence_interval is not None
    alone = evaluate_texts(shared_roberta, TOKENIZER, STORIES[:1], packing="one_per_row", max_length=16, draws=2)
    assert alone.bound.confidence_interval is None and alone.bound.standard_error is None


def test_other_seeds_give_other_masks_and_more_draws_less_noise(shared_roberta):
    options = {"packing": "one_per_row", "max_length": 32}
    few = [
        evaluate_texts(shared_roberta, TOKENIZER, STORIES[:2], draws=1, seed=seed, **options).bound.nats_per_token
        for seed in range(6)
    ]
    many = [
        evaluate_texts(shared_roberta, TOKENIZER, STORIES[:2], draws=8, seed=seed, **options).bound.nats_per_token
        for seed in range(6)
    ]
    assert len(set(few)) == 6
    assert torch.tensor(many).std() < torch.tensor(few).std()


def test_the_model_comes_back_in_the_mode_it_was_in_and_dropout_is_off(tiny_roberta):
    tiny_roberta.train()
    first, second = (
        evaluate_texts(tiny_roberta, TOKENIZER, STORIES[:2], draws=1).bound.nats_per_token for _ in range(2)
    )
    assert tiny_roberta.training and first == second


def test_a_model_that_answers_nan_is_reported(tiny_roberta):
    torch.nn.init.constant_(tiny_roberta.lm_head.bias, math.nan)
    with pytest.raises(NonFiniteLossError, match="of 2 texts is not finite"):
        evaluate_texts(tiny_roberta, TOKENIZER, STORIES[:2], packing="one_per_row", draws=1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"texts": []}, "`texts` is empty"),
        ({"texts": "one text"}, "`texts` must be several texts, not the string 'one text'"),
        ({"texts": ["zzz xxx"]}, "`texts` has no token that could be scored"),
        ({"texts": [3]}, "`texts` must hold strings"),
        ({"estimators": ["elbo"]}, "`estimators` must be of curve, steps, chain, importance, not 'elbo'"),
        ({"draws": 0}, "`draws` must be a whole number of at least 1, not 0"),
        ({"draws": 1.5}, "`draws` must be a whole number"),
        ({"orders": 0}, "`orders` must be a whole number"),
        ({"batch_size": True}, "`batch_size` must be a whole number"),
        ({"steps": [8, 0]}, "`steps` must be a whole number of at least 1, not 0"),
        ({"steps": [], "estimators": ["steps"]}, "`steps` is empty"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"order": "random"}, "`order` must be one of left_to_right, right_to_left"),
        ({"packing": "pack"}, "`packing` must be one of"),
        ({"max_length": 33}, "`max_length` is 33, but this model reads 32 tokens"),
        ({"max_length": 2}, "`max_length` must be a whole number of at least 3"),
    ],
)
def test_mistakes_are_named_before_anything_is_computed(shared_roberta, options, message):
    options = {"texts": STORIES[:1], **options}
    with pytest.raises(ValueError, match=message):
        evaluate_texts(shared_roberta, TOKENIZER, options.pop("texts"), **options)
