"""Options of transformers that touch the forward: recomputed activations and compiled models train as without."""

from types import SimpleNamespace

import pytest
import torch
from test_modeling import CONFIGS, ids_and_rows
from test_trainer import KeepGradients, logged, make_trainer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from diffusion_mlm import DiffusionTrainingArguments, story_language
from diffusion_mlm.cli.parsing import parse
from diffusion_mlm.modeling import build_model, logits_at, selects_rows

ROWS = [{"input_ids": row} for row in story_language.sample_ids(16, seed=1).tolist()]


def losses_and_gradients(directory, family="roberta", **settings):
    model = build_model(CONFIGS[family], seed=0)
    keep, num_logits, runs_of_layer = KeepGradients(), [], []
    layer = next(module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear))
    layer.register_forward_hook(lambda *_: runs_of_layer.append(1))
    model.register_forward_hook(lambda _model, _args, output: num_logits.append(output.logits.shape[:2]))
    trainer = make_trainer(
        directory,
        rows=ROWS,
        model=model,
        callbacks=[keep],
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=2,
        max_grad_norm=0.0,
        **settings,
    )
    assert selects_rows(model)
    num_logits.clear()
    runs_of_layer.clear()
    trainer.train()
    assert all(batch == 1 and rows < 4 * 79 for batch, rows in num_logits), "Logits of masked rows only."
    return logged(trainer), keep.gradients, len(runs_of_layer)


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_recomputed_activations_give_the_same_loss_and_gradients(tmp_path, family, monkeypatch):
    """Dropout included, which must be drawn alike when a layer runs a second time."""
    monkeypatch.setattr("diffusion_mlm.modeling.last_layer", lambda _encoder: None)  # recomputed ones run on all rows
    found = []
    for recompute in (False, True):
        losses, found_gradients, runs_of_layer = losses_and_gradients(
            tmp_path, family, activation_checkpointing=recompute
        )
        assert runs_of_layer == (8 if recompute else 4), "one layer, four micro-batches"
        found.append((losses, found_gradients))
    (losses, first), (other_losses, others) = found
    assert other_losses == losses
    assert all(torch.equal(others[name], gradient) for name, gradient in first.items())
    assert max(float(gradient.abs().max()) for gradient in first.values()) > 1e-3


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_both_names_of_recomputing_are_understood_on_the_command_line(tmp_path):
    for flag in ("--gradient-checkpointing", "--activation-checkpointing"):
        (args,) = parse([DiffusionTrainingArguments], [flag, "--output-dir", str(tmp_path)], "train")
        assert args.activation_checkpointing is True


class ToyModel(torch.nn.Module):
    """Encoder and head, because tracing a real model takes a minute."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=30)
        self.base_model, self.head = ToyEncoder(), torch.nn.Linear(8, 30)

    def forward(self, input_ids):
        return MaskedLMOutput(logits=self.head(self.base_model(input_ids).last_hidden_state))


class ToyEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(30, 8)

    def forward(self, input_ids):
        return BaseModelOutput(last_hidden_state=self.table(input_ids) + self.table(input_ids).mean(1, keepdim=True))


def test_a_compiled_model_gives_the_logits_of_each_mask():
    """Also of a second mask with as many tokens as the first: a forward traced for one must not serve both."""
    torch.manual_seed(0)
    model = ToyModel()
    compiled = torch.compile(model, backend="eager")
    ids, rows = ids_and_rows()
    ids = ids % 30
    for mask in (rows, rows.flip(0, 1), rows & (ids > 9)):
        logits, expected = logits_at(compiled, mask, input_ids=ids), model(ids).logits[mask]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
