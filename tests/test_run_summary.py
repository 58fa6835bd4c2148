"""What is said at the end of training."""

from diffusion_mlm.cli import VERBS
from diffusion_mlm.cli.run_summary import run_summary

FACTS = {"parameters": 1234567, "steps": 1000, "rows_per_step": 256, "train_seconds": 3725.4}


def test_the_summary_names_what_is_there_and_what_to_do_next(tmp_path):
    for name in ("checkpoint-500", "checkpoint-1000", "checkpoint-1000.tmp", "final-model"):
        (tmp_path / name).mkdir()
    (tmp_path / "summary.json").touch()
    (tmp_path / "log.jsonl").touch()
    text = run_summary(
        tmp_path, {**FACTS, "nelbo_nats_per_token": 2.34567}, verbs=("generate", "evaluate"), eval_file="my test.txt"
    )
    assert text.splitlines() == [
        "Trained 1,234,567 parameters for 1,000 steps of 256 rows in 1 h 2 min; 2.3457 nats per held-out token.",
        f"  model        {tmp_path}/final-model",
        f"  checkpoints  {tmp_path}/checkpoint-{{500,1000}}",
        f"  summary      {tmp_path}/summary.json",
        f"  log          {tmp_path}/log.jsonl",
        f'  generate     diffusion-mlm generate --checkpoint {tmp_path}/final-model --prefix "..."',
        f"  evaluate     diffusion-mlm evaluate --checkpoint {tmp_path}/final-model --eval-file 'my test.txt'",
    ]


def test_what_is_not_there_is_left_out(tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    text = run_summary(tmp_path, {**FACTS, "train_seconds": 61.2})
    assert text.splitlines() == [
        "Trained 1,234,567 parameters for 1,000 steps of 256 rows in 1 min 1 s; nothing was held out.",
        f"  model        {tmp_path}/final-model",
        f"  checkpoints  {tmp_path}/checkpoint-7",
    ]


def test_push_is_shown_where_there_is_such_a_verb(tmp_path):
    shown = run_summary(tmp_path, FACTS, verbs=(*VERBS, "push"))
    assert f"diffusion-mlm push {tmp_path}/final-model USER/NAME" in shown
    assert ("diffusion-mlm push" in run_summary(tmp_path, FACTS, verbs=VERBS)) == ("push" in VERBS)
