"""What a run remembers beside weights and optimizer: with all of it at once, resuming changes no bit."""

import pytest
from test_trainer import run

from diffusion_mlm.rate_distributions import ImportanceRates

RECIPE = {
    "rate_distribution": "importance",
    "token_weights": "rare",
    "random_length_share": 0.3,
    "ema_decay": 0.8,
    "optim": "muon",
}


@pytest.fixture
def quick_to_learn(monkeypatch):
    """Four bins that need two rows each, so that runs of a dozen steps draw from a learnt law."""
    monkeypatch.setattr(ImportanceRates, "NUM_BINS", 4)
    monkeypatch.setattr(ImportanceRates, "WARM_UP", 2)


def test_a_run_with_a_whole_recipe_that_was_resumed_ends_with_the_same_weights(tmp_path, quick_to_learn):
    unbroken = run(tmp_path / "unbroken", eval_strategy="steps", eval_steps=4, **RECIPE)
    stopped = run(tmp_path / "stopped", stop_at=7, **RECIPE)
    checkpoint = tmp_path / "stopped" / "checkpoint-7"
    assert stopped != unbroken
    assert run(tmp_path / "stopped", resume_from=str(checkpoint), **RECIPE) == unbroken
    (checkpoint / "run_state.safetensors").unlink()
    with pytest.raises(ValueError, match="run_state.safetensors is missing"):
        run(tmp_path / "stopped", resume_from=str(checkpoint), **RECIPE)


def test_a_run_without_a_recipe_writes_no_such_file(tmp_path):
    run(tmp_path, stop_at=1)
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").is_file()
    assert not (tmp_path / "checkpoint-1" / "run_state.safetensors").exists()
