"""The model `diffusion_mlm` in lm-evaluation-harness: tasks from Python and from the command line."""

import functools
import itertools
import json
import math
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import RobertaTokenizerFast

from diffusion_mlm import DiffusionGenerationConfig, story_language
from diffusion_mlm.checkpoints import STORIES_GENERATOR
from diffusion_mlm.cli import main
from diffusion_mlm.evaluation.answers import write_answers
from diffusion_mlm.evaluation.continuations import score_continuations
from diffusion_mlm.modeling import build_model

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install 'diffusion-mlm[lm-eval]'"
)

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from diffusion_mlm.evaluation.lm_eval_model import DiffusionMaskedLM  # noqa: E402

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
TOKENIZER = story_language.tokenizer()
EXACT = story_language.ExactDenoiser()
OWN_TASKS = [ROOT / "tests" / "lm_eval_tasks", ROOT / "experiments" / "lm_eval_tasks"]
own_tasks = functools.partial(TaskManager, include_path=OWN_TASKS, include_defaults=False)


def run(model, tasks, **options):
    """Runs tasks; no bootstrap, and none of the thousands of tasks of the harness itself are read."""
    return lm_eval.simple_evaluate(model, tasks=tasks, task_manager=own_tasks(), bootstrap_iters=0, **options)


def requests(kind, *arguments):
    return [
        Instance(request_type=kind, doc={"number": number}, arguments=each, idx=0, metadata=("task", number, 1))
        for number, each in enumerate(arguments)
    ]


@pytest.fixture(scope="module")
def exact():
    return DiffusionMaskedLM(EXACT, TOKENIZER, estimator="chain")


@pytest.fixture
def packed(shared_roberta):
    return DiffusionMaskedLM(shared_roberta, TOKENIZER, max_new_tokens=5)


def test_the_model_is_known_beside_those_of_the_harness():
    assert get_model("diffusion_mlm") is DiffusionMaskedLM
    assert get_model("dummy").__name__ == "DummyLM"


def test_the_exact_denoiser_knows_every_answer_and_what_the_stories_cost(exact):
    results = run(exact, ["story_object", "story_choice", "story_rolling"])
    figures = results["results"]
    assert figures["story_object"]["acc,none"] == figures["story_choice"]["acc,none"] == 1
    assert figures["story_object"]["perplexity,none"] == pytest.approx(1, abs=1e-6)
    stories = [sample["doc"]["story"] for sample in results["samples"]["story_rolling"]]
    bits = -float(story_language.log_prob(stories).sum()) / math.log(2) / sum(map(len, stories))
    assert figures["story_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)


def test_a_checkpoint_runs_by_name_and_its_results_say_how(checkpoint):
    arguments = f"checkpoint={checkpoint},draws=4,seed=3,max_new_tokens=6,sampling=nucleus"
    tasks = ["story_choice", "story_rolling", "story_writing"]
    one, other = (run("diffusion_mlm", tasks, model_args=arguments, batch_size=size, limit=3) for size in (2, "auto"))
    for task in tasks:
        for first, second in zip(one["samples"][task], other["samples"][task], strict=True):
            if task == "story_writing":
                assert first["resps"] == second["resps"]
            else:
                flat = [list(itertools.chain.from_iterable(sample["resps"])) for sample in (first, second)]
                numbers = [[answer[0] if task == "story_choice" else answer for answer in each] for each in flat]
                assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)
    assert one["config"]["scoring"]["draws"] == 4
    assert one["config"]["generation"]["max_new_tokens"] == 6
    json.dumps(one["config"])


def test_answers_are_those_of_the_package(packed, shared_roberta):
    pairs = [("One day", " Mia"), ("", "One day"), ("One", " xylophone"), ("One day", "")]
    found = packed.loglikelihood(requests("loglikelihood", *pairs))
    expected = score_continuations(shared_roberta, TOKENIZER, pairs, draws=32)
    assert [pair[1] for pair in found] == [scored.is_greedy for scored in expected]
    assert found[0][0] == pytest.approx(expected[0].log_probability)  # one token: the masks do not matter
    assert found[2] == (-math.inf, False) and found[3] == (0.0, True)
    (rolling,) = packed.loglikelihood_rolling(requests("loglikelihood_rolling", ("One xylophone day",)))
    assert -math.inf < rolling < 0
    contexts = ["One day", "Once upon a time,"]
    how = {"until": [" "], "max_gen_toks": 4, "do_sample": True, "temperature": 0.7}
    written = packed.generate_until(requests("generate_until", *((context, how) for context in contexts)))
    config = DiffusionGenerationConfig(max_new_tokens=5, temperature=0.7)
    assert written == [
        answer for _, answer in sorted(write_answers(shared_roberta, TOKENIZER, contexts, config, stop_strings=[" "]))
    ]


def test_answers_to_one_question_have_the_same_masks_and_those_to_another_have_others(packed):
    pair = ("One day", " Mia lived near the lake")
    first, second = requests("loglikelihood", pair, pair)
    same = Instance(request_type="loglikelihood", doc=first.doc, arguments=pair, idx=1, metadata=("task", 0, 1))
    found = [nats for nats, _ in packed.loglikelihood([first, second, same])]
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    "asked, given, expected",
    [
        ({}, {}, {"sampling": "greedy", "max_new_tokens": 256}),
        ({"do_sample": False, "temperature": 0.0}, {}, {"sampling": "greedy"}),
        ({"temperature": 0.7}, {}, {"sampling": "nucleus", "temperature": 0.7}),
        ({"do_sample": True, "top_p": 0.5}, {}, {"sampling": "nucleus", "top_p": 0.5}),
        ({"do_sample": True, "top_k": 5}, {}, {"sampling": "topk", "top_k": 5}),
        ({"max_gen_toks": 7, "max_tokens": 9}, {}, {"max_new_tokens": 7}),
        ({"max_new_tokens": 8}, {}, {"max_new_tokens": 8}),
        ({"max_gen_toks": 7}, {"max_new_tokens": 9}, {"max_new_tokens": 9}),
        ({"do_sample": False, "temperature": 0.0}, {"sampling": "nucleus"}, {"sampling": "nucleus", "temperature": 1}),
        ({"do_sample": False}, {"preset": "quality"}, {"sampling": "nucleus", "temperature": 0.8}),
        ({"steps": 5}, {"order": "random"}, {"steps": 5, "order": "random"}),
    ],
)
def test_a_task_decides_how_to_write_and_model_arguments_go_over_it(shared_roberta, asked, given, expected):
    model = DiffusionMaskedLM(shared_roberta, TOKENIZER, batch_size=7, **given)
    _, config = model._how_to_write({"until": ["."], **asked})
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.batch_size == 7


@pytest.mark.parametrize("until, expected", [(".", ["."]), (["a", "b"], ["a", "b"]), (None, [])])
def test_stop_strings_may_be_one_or_several(packed, until, expected):
    assert packed._how_to_write({"until": until})[0] == expected


def test_settings_that_mean_nothing_are_named_once(packed, caplog):
    packed._how_to_write({"until": ["."], "num_beams": 4, "early_stopping": True})
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["Settings of the task that mean nothing here are left out: early_stopping, num_beams."]


def test_interrupted_work_is_kept_in_the_cache_of_the_harness(packed, tmp_path):
    cached = lm_eval.api.model.CachingLM(packed, str(tmp_path / "cache.db"))
    asked = requests("loglikelihood", ("One day", " Mia"))
    first = cached.loglikelihood(asked)
    packed.model = None  # whoever asks it again fails
    assert cached.loglikelihood(asked) == first


def test_the_command_of_the_harness_runs_with_our_model(checkpoint, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", functools.partial(TaskManager, include_defaults=False))
    arguments = ["--model_args", f"pretrained={checkpoint},draws=4", "--tasks", "story_choice", "--limit", "2"]
    status = main(
        ["lm-eval", *arguments, "--include_path", str(OWN_TASKS[0]), "--output_path", str(tmp_path), "--device", "cpu"]
    )
    out, err = capsys.readouterr()
    assert status == 0, err
    assert "diffusion_mlm" in out and "|story_choice|" in out
    (written,) = tmp_path.rglob("results_*.json")
    results = json.loads(written.read_text(encoding="utf-8"))
    assert results["config"]["model"] == "diffusion_mlm" and results["config"]["scoring"]["draws"] == 4
    assert "acc,none" in results["results"]["story_choice"]


def test_the_packaged_generator_knows_what_the_stories_are_about():
    figures = run("diffusion_mlm", ["story_object"], model_args={"checkpoint": STORIES_GENERATOR})["results"]
    assert figures["story_object"]["acc,none"] == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="LAMBADA and the tokenizer of roberta-base are not beside the project")
def test_lambada_runs_with_the_real_tokenizer(shared_roberta, tmp_path):
    folder = SHARED / "roberta-tokenizer"
    mask = AddedToken("<mask>", lstrip=True, special=True)
    tokenizer = RobertaTokenizerFast(
        str(folder / "vocab.json"), str(folder / "merges.txt"), mask_token=mask, model_max_length=256
    )
    changes = {"vocab_size": len(tokenizer), "max_position_embeddings": 258}
    model = build_model(shared_roberta.config.__class__.from_dict({**shared_roberta.config.to_dict(), **changes}))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    metadata = {"lambada_file": str(SHARED / "lambada" / "lambada_test.jsonl")}
    manager = own_tasks(metadata=metadata)
    options = {"task_manager": manager, "bootstrap_iters": 0, "limit": 5}
    chosen = f"checkpoint={tmp_path},draws=8"
    results = lm_eval.simple_evaluate("diffusion_mlm", chosen, tasks=["lambada_file"], **options)
    assert results["results"]["lambada_file"]["acc,none"] == 0  # random weights
    for sample in results["samples"]["lambada_file"]:
        (context, word), ((nats, _),) = sample["arguments"][0], sample["resps"][0]
        assert context + word == sample["doc"]["text"] and word.startswith(" ") and " " not in word[1:]
        assert -math.inf < nats < 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "`checkpoint` must name one directory or Hub id"),
        ({"checkpoint": "a", "pretrained": "b"}, "`checkpoint` must name one directory or Hub id"),
        ({"checkpoint": EXACT}, "`tokenizer` is missing"),
        ({"checkpoint": "a", "draws": 1}, "`draws` must be a whole number of at least 2"),
        ({"checkpoint": "a", "estimator": "elbo"}, "`estimator` must be one of"),
        ({"checkpoint": "a", "batch_size": "many"}, "`batch_size` must be a whole number of at least 1 or auto"),
        ({"checkpoint": "a", "num_return_sequences": 2}, "`num_return_sequences` is 2, but the harness takes one"),
        ({"checkpoint": "a", "stepz": 2}, "`stepz` is no setting of diffusion generation. Did you mean `steps`"),
        ({"checkpoint": EXACT, "tokenizer": TOKENIZER, "seed": -1}, "`seed` must be a whole number"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionMaskedLM(**options)
