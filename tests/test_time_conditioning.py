"""Models that are told the time: what they are told in training and generation, and that all else stays as it was."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from diffusion_mlm import (
    DiffusionTrainer,
    DiffusionTrainingArguments,
    evaluate_texts,
    generate,
    load_generator,
    load_model,
    story_language,
)
from diffusion_mlm.cli import main
from diffusion_mlm.modeling import build_model, logits_at
from diffusion_mlm.presets import preset_config
from diffusion_mlm.time_conditioning import TIME_CONDITIONINGS, TimeConditionedMaskedLM, mask_share

TOKENIZER = story_language.tokenizer()
MASK = TOKENIZER.mask_token_id
KINDS = TIME_CONDITIONINGS[1:]
TINY = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}


def model_of(kind, preset="modern-tiny", time_steps=16, qk_norm=False):
    how = {"time_conditioning": kind, "time_steps": time_steps, "qk_norm": qk_norm}
    return build_model(preset_config(preset, TOKENIZER, 64, dropout=0.0, **TINY, **how), attn_implementation="sdpa")


def told(model):
    """The model with a map of time that is no longer zero, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.time.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def masked_ids(rows=3, length=12, num_masked=5):
    ids = story_language.sample_ids(rows, seed=0)[:, :length]
    return torch.cat([ids[:, : length - num_masked], torch.full((rows, num_masked), MASK)], dim=1)


@pytest.fixture
def times(monkeypatch):
    """What each forward of a model of these tests is told, `(B,)`."""
    told, of_time = [], TimeConditionedMaskedLM._of_time

    def record(self, t):
        told.append(t.detach().clone())
        return of_time(self, t)

    monkeypatch.setattr(TimeConditionedMaskedLM, "_of_time", record)
    return told


# What the time is


def test_the_time_is_the_share_of_attended_tokens_that_are_masks():
    ids = torch.tensor([[0, MASK, 7, 8], [0, MASK, MASK, MASK], [0, 7, MASK, MASK]])
    attention_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])
    assert mask_share(ids, None, MASK).tolist() == [0.25, 0.75, 0.5]
    assert mask_share(ids, attention_mask, MASK).tolist() == [0.25, 0.75, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_of_masks_is_what_a_model_takes_if_it_is_told_nothing(kind):
    model, ids = told(model_of(kind)), masked_ids()
    with torch.no_grad():
        untold = model(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids, timesteps=torch.full((3,), 5 / 12)).logits, untold)
        other = model(input_ids=ids, timesteps=torch.tensor([5 / 12, 0.9, 5 / 12])).logits
    assert torch.equal(other[::2], untold[::2])
    assert (other[1] - untold[1]).abs().max() > 1e-2


@pytest.mark.parametrize("timesteps", [[0.5], [0.5, 0.5, 1.5], [0.5, -0.1, 0.5], [0.5, float("nan"), 0.5]])
def test_steps_instead_of_times_and_times_of_too_few_rows_are_refused(timesteps):
    with pytest.raises(ValueError, match="`timesteps` must (be of shape|lie in)"):
        model_of("learned")(input_ids=masked_ids(), timesteps=torch.tensor(timesteps))


def test_the_learned_table_has_a_row_for_each_of_its_evenly_spread_times():
    model = told(model_of("learned", time_steps=5))
    assert model.time.weight.shape == (5, 32)
    assert model._of_time(torch.tensor([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])).tolist() == [0, 0, 1, 2, 4, 4]


def test_sinusoids_tell_neighbouring_times_apart():
    sinusoids = model_of("sinusoidal", time_steps=128)._of_time(torch.arange(129) / 128)
    assert torch.pdist(sinusoids).min() > 0.2
    assert torch.allclose(sinusoids.norm(dim=-1), torch.ones(129))


def test_time_falls_by_a_token_a_step_while_a_text_is_written(times):
    model = told(model_of("sinusoidal"))
    generate(model, TOKENIZER, "Once", steps=1, max_new_tokens=1, seed=0)  # finds out how the model may be called
    times.clear()
    generate(model, TOKENIZER, "Once upon", steps=6, max_new_tokens=6, seed=0)
    length = 1 + 2 + 6 + 1  # <s>, the prefix, what is new and </s>
    assert [float(t) for t in times] == pytest.approx([masks / length for masks in (6, 5, 4, 3, 2, 1)])


# In training


def first_batch(directory, model, **settings):
    stories = story_language.sample_ids(8, seed=1).tolist()
    rows = [{"input_ids": ids[: 20 + 5 * place]} for place, ids in enumerate(stories)]
    args = DiffusionTrainingArguments(
        str(directory), use_cpu=True, report_to="none", per_device_train_batch_size=8, **settings
    )
    trainer = DiffusionTrainer(model, args, processing_class=TOKENIZER, train_dataset=rows)
    (batch,), _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    return trainer, batch


def test_independent_masks_come_with_the_share_that_is_expected(tmp_path, times):
    trainer, batch = first_batch(tmp_path, model_of("learned"), masking="bernoulli")
    corrupted, lengths = batch["corrupted"], batch["attention_mask"].sum(-1)
    expected = corrupted.mask_rate * corrupted.maskable.sum(-1) / lengths
    trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(times[-1], expected.float())
    assert not torch.allclose(times[-1], corrupted.is_masked.sum(-1) / lengths)


def test_counted_masks_speak_for_themselves(tmp_path, times):
    trainer, batch = first_batch(tmp_path, model_of("learned"))
    corrupted, lengths = batch["corrupted"], batch["attention_mask"].sum(-1)
    assert "timesteps" not in batch
    trainer.compute_loss(trainer.model, batch)
    expected = corrupted.mask_rate * corrupted.maskable.sum(-1) / lengths
    assert (times[-1] - expected).abs().max() <= (1 / lengths).max()  # the rate asks for no whole number of tokens


def test_a_model_that_is_told_nothing_gets_no_times(tmp_path):
    model = build_model(preset_config("modern-tiny", TOKENIZER, 64, **TINY))
    assert "timesteps" not in first_batch(tmp_path, model, masking="bernoulli")[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_of_time_learns_although_it_starts_at_zero(kind):
    model = model_of(kind)
    model(input_ids=masked_ids(), labels=masked_ids(num_masked=0)).loss.backward()
    for name, parameter in model.time.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind):
    gradients = []
    for checkpointing in (False, True):
        model = told(model_of(kind)).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(input_ids=masked_ids(), labels=masked_ids(num_masked=0)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


# What stays as it was


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["roberta-tiny", "modern-tiny"])
def test_a_new_model_predicts_what_the_encoder_inside_predicts(preset, kind):
    model, ids = model_of(kind, preset).eval(), masked_ids()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, model.model(input_ids=ids).logits)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_adaln_moves_every_norm_of_hidden_states_and_none_of_queries(qk_norm):
    assert len(model_of("adaln", qk_norm=qk_norm).time) == 2 * 2 + 1  # two a layer and the last
    assert len(model_of("adaln", "roberta-tiny").time) == 2 * 2 + 1  # two a layer and that of the embeddings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["roberta-tiny", "modern-tiny"])
def test_padding_changes_no_logits_and_chosen_rows_are_those_of_all(preset, kind):
    model, ids = told(model_of(kind, preset)), masked_ids()
    padded = torch.nn.functional.pad(ids, (0, 4), value=TOKENIZER.pad_token_id)
    attention_mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 4))
    with torch.no_grad():
        alone = model(input_ids=ids).logits
        together = model(input_ids=padded, attention_mask=attention_mask).logits[:, :12]
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        rows = ids.eq(MASK)
        torch.testing.assert_close(logits_at(model, rows, input_ids=ids), alone[rows], rtol=0, atol=1e-5)


def test_a_copy_is_told_its_own_time():
    model = told(model_of("adaln")).train()
    model(input_ids=masked_ids()).logits.sum().backward()
    twin, ids = copy.deepcopy(model), masked_ids()
    with torch.no_grad():
        for parameter in twin.time.parameters():
            parameter.zero_()
        assert torch.equal(twin(input_ids=ids).logits, twin.eval().model(input_ids=ids).logits)
        assert not torch.equal(model(input_ids=ids).logits, twin(input_ids=ids).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["roberta-tiny", "modern-tiny"])
def test_a_model_comes_back_from_its_directory_with_tied_weights_stored_once(preset, kind, tmp_path):
    model, ids = told(model_of(kind, preset, qk_norm=preset == "modern-tiny")), masked_ids()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        for loaded in (load_model(str(tmp_path)), AutoModelForMaskedLM.from_pretrained(tmp_path)):
            assert type(loaded) is TimeConditionedMaskedLM
            assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
            assert torch.equal(loaded(input_ids=ids).logits, expected)
    tables = [t for t in load_file(tmp_path / "model.safetensors").values() if t.shape == (len(TOKENIZER), 32)]
    assert len(tables) == 1


def test_the_command_trains_and_writes_with_a_model_that_is_told_the_time(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("One day a fox lived in a small house.\n" * 60)
    argv = ["train", "--preset", "modern-tiny", "--num-hidden-layers", "1", "--num-attention-heads", "2"]
    argv += ["--hidden-size", "32", "--qk-norm", "--time-conditioning", "adaln", "--time-steps", "64"]
    argv += ["--train-file", "text.txt", "--tokenizer", "bpe", "--max-length", "12", "--max-steps", "2"]
    argv += ["--batch-size", "4", "--masking", "bernoulli", "--validation", "4", "--eval-draws", "2"]
    argv += ["--report-to", "none", "--disable-tqdm", "true", "--use-cpu", "true", "--output-dir", "out"]
    assert main(argv) == 0, capsys.readouterr().err
    assert "tokenizer: byte-level BPE of" in capsys.readouterr().err
    config = json.loads(Path("out/final-model/config.json").read_text())
    assert (config["time_conditioning"], config["time_steps"]) == ("adaln", 64)
    assert (config["encoder"]["model_type"], config["encoder"]["num_hidden_layers"]) == ("eurobert-qk-norm", 1)
    asked = ["generate", "--checkpoint", "out/final-model", "--prefix", "One", "--max-new-tokens", "4", "--seed", "0"]
    assert main([*asked, "--output-format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_forwards"] == 4
    model, tokenizer = load_generator("out/final-model")
    assert 0 < evaluate_texts(model, tokenizer, ["One day a fox"], draws=2).bound.nats_per_token < 10


@pytest.mark.parametrize("name, value", [("qk-norm", "true"), ("hidden-size", "64"), ("time-conditioning", "adaln")])
def test_settings_of_an_encoder_from_scratch_need_a_preset(name, value, capsys):
    assert main(["train", f"--{name}", value]) == 2
    assert f"`--{name}` is" in capsys.readouterr().err
