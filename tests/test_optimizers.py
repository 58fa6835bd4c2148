import copy

import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM

from diffusion_mlm import DiffusionTrainer, DiffusionTrainingArguments, story_language
from diffusion_mlm.optimizers import Muon, MuonWithAdamW, orthogonalize


def tiny_model() -> RobertaForMaskedLM:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(story_language.tokenizer()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=82,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return RobertaForMaskedLM(config)


def step(model, optimizer, seed):
    ids = story_language.sample_ids(4, seed)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_of_hidden_layers_go_to_muon_and_all_else_to_adamw():
    model = tiny_model()
    optimizer = MuonWithAdamW(model, 1e-2, 0.01, (0.9, 0.98))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    tables, vectors, matrices = ({name_of[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert all("encoder.layer" in name and name.endswith("weight") for name in matrices)
    assert len(matrices) == 6, "query, key, value, output, and two of the feed-forward part"
    assert any("word_embeddings" in name for name in tables)
    assert "lm_head.dense.weight" in tables
    assert all(name.endswith(("bias", "LayerNorm.weight", "layer_norm.weight")) for name in vectors)
    assert tables | vectors | matrices == set(name_of.values())


def test_a_schedule_reaches_both_parts():
    model = tiny_model()
    optimizer = MuonWithAdamW(model, 1e-2, 0.0, (0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer, 0)
    schedule.step()
    assert [group["lr"] for part in optimizer._parts for group in part.param_groups] == [0.0, 0.0, 0.0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_saved_and_loaded_optimizer_goes_on_bit_for_bit():
    model = tiny_model()
    optimizer = MuonWithAdamW(model, 1e-2, 0.01, (0.9, 0.98))
    step(model, optimizer, 0)
    other = copy.deepcopy(model)
    resumed = MuonWithAdamW(other, 5e-3, 0.01, (0.9, 0.98))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        step(model, optimizer, seed)
        step(other, resumed, seed)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 4), (2, 4, 16)])
def test_orthogonalized_matrices_have_singular_values_near_1(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular_values = torch.linalg.svdvals(orthogonalize(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7))
    assert singular_values.min() > 0.4 and singular_values.max() < 1.4
    alone = orthogonalize(matrices[:1], (3.4445, -4.7750, 2.0315), 5, 1e-7)
    torch.testing.assert_close(orthogonalize(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7)[:1], alone)


def test_muon_steps_as_torch_does_but_for_rounding():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((8, 8), (8, 8), (16, 4), (4, 16))]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    settings = {"lr": 0.1, "weight_decay": 0.1}
    pair = Muon(ours, **settings), torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.03 * (b - before).norm(), "bfloat16 has 8 bits"


@pytest.mark.parametrize("optim", ["muon", "adamw_torch_fused"])
def test_the_trainer_learns_and_resumes_with_it(optim, tmp_path):
    rows = [{"input_ids": row.tolist()} for row in story_language.sample_ids(32, 0)]
    digests = []
    for resume in (False, True):
        arguments = DiffusionTrainingArguments(
            str(tmp_path / str(resume)),
            optim=optim,
            max_steps=8,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            save_steps=4,
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=8,
        )
        trainer = DiffusionTrainer(
            tiny_model(), arguments, processing_class=story_language.tokenizer(), train_dataset=rows
        )
        source = str(tmp_path / "False" / "checkpoint-4")
        trainer.train(resume_from_checkpoint=source if resume else None)
        assert trainer.args.optim == optim
        digests.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    assert all(torch.equal(value, digests[1][name]) for name, value in digests[0].items())
