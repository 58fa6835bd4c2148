"""The model card: what was measured, and nothing else."""

import pytest
from huggingface_hub import ModelCard

from diffusion_mlm.model_card import CardFacts, model_card

CONFIG = {
    "architectures": ["RobertaForMaskedLM"],
    "diffusion": {"schedule": "cosine", "objective": "elbo", "row_length": 80, "generates_end": True, "version": "1"},
}
SUMMARY = {
    "steps": 12000,
    "nelbo_nats_per_token": 2.0,
    "eval_tokens": 4096,
    "draws": 8,
    "loss_by_mask_rate": [[0.1, 1.25], [1.0, 3.5]],
    "training_text": "3 texts",
    "source": {"base_model": "FacebookAI/roberta-base", "dataset": "me/data", "dataset_config": "raw"},
}


def test_the_card_has_the_figures_and_where_they_come_from():
    text = model_card(CardFacts("me/writer", CONFIG, 125, SUMMARY, licence="mit", language="en"))
    card = ModelCard(text)
    assert "| nats per token | 2.0000 |" in text and "| 95 % interval of it | not measured |" in text
    assert "| up to 10% | 1.250 |" in text and "| optimizer steps | 12,000 |" in text
    assert card.data.base_model == "FacebookAI/roberta-base" and card.data.datasets == ["me/data"]
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_config, result.metric_value) == ("me/data", "raw", 7.3891)
    assert "Training goes on" not in text and "Samples" not in text


def test_filling_masks_needs_the_code_of_the_repository_only_if_transformers_lacks_the_architecture():
    kinds = ("roberta", "eurobert", "eurobert-qk-norm", "time-conditioned-masked-lm")
    cards = [model_card(CardFacts("me/writer", {"model_type": kind})) for kind in kinds]
    trusted = ['pipeline("fill-mask", model="me/writer", trust_remote_code=True)' in card for card in cards]
    assert trusted == [False, False, True, True]


def test_the_card_says_what_is_unusual_in_the_recipe():
    recipe = {"rate_distribution": "beta", "rate_parameters": [3.0, 1.0], "ema_decay": 0.999, "lora_rank": 8}
    text = model_card(CardFacts("me/writer", {"diffusion": {"objective": "elbo", "recipe": recipe}}))
    assert "| distribution of the mask rate | beta |" in text and "| parameters of that distribution | 3, 1 |" in text
    assert "| decay of the mean of the weights, which this is | 0.999 |" in text
    assert "| rank of LoRA, merged into the weights | 8 |" in text
    assert "random length" not in text


def test_a_report_is_preferred_for_it_has_intervals():
    figures = {
        "nats_per_token": 1.0,
        "confidence_interval": [0.9, 1.125],
        "bits_per_byte": 1.5,
        "num_tokens": 50_000,
    }
    report = {
        "checkpoints": [{"likelihood": figures, "loss_by_mask_rate": [[0.5, 0.75]]}],
        "settings": {"draws": 128},
    }
    text = model_card(CardFacts("me/writer", CONFIG, 125, SUMMARY, report, plots=["figures/calibration.png"]))
    assert "| 95 % interval of it | 0.9000 to 1.1250 |" in text and "| bits per byte | 1.5000 |" in text
    assert "| masks drawn per row | 128 |" in text and "2.0000" not in text
    assert "![calibration](figures/calibration.png)" in text
    assert [result.metric_type for result in ModelCard(text).data.eval_results] == ["perplexity", "bits_per_byte"]


def test_what_is_not_known_is_not_made_up():
    text = model_card(CardFacts("me/writer", {}))
    card = ModelCard(text)
    assert "Not evaluated." in text and "not recorded" in text and "not stated a licence" in text
    assert card.data.eval_results is None and card.data.license is None and card.data.base_model is None


def test_a_card_of_a_run_that_goes_on_says_so():
    text = model_card(CardFacts("me/writer", CONFIG, summary={"steps": 3}, in_progress=True))
    assert "Training goes on: this is the model of step 3" in text and "Not evaluated yet." in text


def test_samples_cannot_break_out_of_their_block():
    text = model_card(
        CardFacts("me/writer", CONFIG, samples=[("a ```` b", "\n# c")], sample_settings="1 text with seed 0")
    )
    assert "`````text\na ```` b\n# c\n`````" in text and "Not chosen: 1 text with seed 0." in text


@pytest.mark.parametrize("name", ["me/writer", "writer"])
def test_the_lines_to_copy_name_the_repository(name):
    text = model_card(CardFacts(name, CONFIG))
    assert text.count(f'"{name}"') == 3
    assert ModelCard(text).content.splitlines()[0] == "---"
