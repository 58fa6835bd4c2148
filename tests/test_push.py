"""Train, push at every save, load again: three processes and a Hub on the loopback address between them.

huggingface_hub reads its environment when it is imported, so each side has a process of its own: one that trains and
pushes, one that has transformers alone and a clean cache, and one that has no network.
"""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard
from loopback_hub import TOKEN, Fault, LoopbackHub
from safetensors.torch import load

from diffusion_mlm import generate, story_language
from diffusion_mlm.cli import main
from diffusion_mlm.cli.push import PushArguments, summary_of
from diffusion_mlm.hub import is_signed
from diffusion_mlm.modeling import build_model
from diffusion_mlm.presets import preset_config
from diffusion_mlm.publication import model_files
from diffusion_mlm.remote_code import remote_source

ROOT = Path(__file__).parents[1]
WRITER, SHOWN = "me/writer", "organisation/shown"
SETTINGS = {"schedule": "cosine", "steps": 6, "max_new_tokens": 12, "num_return_sequences": 2, "seed": 5}
PREFIXES = ["Once upon a time", ""]
USER = "canaryuser"

PUBLISHER = f"""
import contextlib, io, json, sys
from diffusion_mlm.cli import main


found = {{"status": {{}}, "said": {{}}}}
def run(name, *argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found["status"][name] = main([str(word) for word in argv])
    found["said"][name] = [out.getvalue(), err.getvalue()]

text, model, work = sys.argv[1:]
train = ["train", "--model-name", model, "--train-file", text, "--eval-file", text, "--max-length", "32", "--packing",
         "one_per_row", "--max-steps", "4", "--save-steps", "2", "--save-strategy", "steps", "--batch-size", "4",
         "--eval-draws", "1", "--eval-strategy", "steps", "--eval-steps", "2", "--disable-tqdm", "true"]
pushing = [*train, "--push-to-hub", "true"]
run("nobody", *pushing, "--output-dir", f"{{work}}/nobody", "--hub-model-id", "somebody/else")
run("token", *pushing, "--output-dir", f"{{work}}/token", "--hub-token", "x")
run("train", *pushing, "--output-dir", f"{{work}}/run", "--hub-model-id", "{WRITER}", "--hub-strategy", "checkpoint",
    "--hub-always-push", "true")
run("cut", *pushing, "--output-dir", f"{{work}}/cut", "--hub-model-id", "me/cut")
final = f"{{work}}/run/final-model"
run("push", "push", final, "{SHOWN}", "--private", "false", "--space", "me/space", "--license", "mit", "--language",
    "en", "--output-format", "json")
run("refused", "push", final, "me/refused")

from diffusion_mlm import DiffusionGenerationConfig, TextDiffusionPipeline, generate
from transformers import AutoModelForMaskedLM, AutoTokenizer
settings, prefixes = {SETTINGS!r}, {PREFIXES!r}
pipe = TextDiffusionPipeline.from_pretrained("{WRITER}")
found["pipeline"] = [[sample["text"] for sample in samples] for samples in pipe(prefixes, **settings)]
model, tokenizer = AutoModelForMaskedLM.from_pretrained("{WRITER}"), AutoTokenizer.from_pretrained("{WRITER}")
config = DiffusionGenerationConfig.from_pretrained("{WRITER}")
texts = generate(model, tokenizer, prefixes, config, **settings).texts
found["generate"] = [texts[:2], texts[2:]]
json.dump(found, sys.__stdout__)
"""

READER = f"""
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "diffusion_mlm":
            raise ModuleNotFoundError("this machine has transformers alone")
sys.meta_path.insert(0, Absent())
from transformers import pipeline

pipe = pipeline("text-diffusion", model="{WRITER}", trust_remote_code=True)
samples = pipe({PREFIXES!r}, **{SETTINGS!r})
found = {{"texts": [[sample["generated_text"] for sample in of] for of in samples], "module": type(pipe).__module__}}
found["config"] = pipe.model.generation_config.to_dict()
found["filled"] = len(pipeline("fill-mask", model="{WRITER}")("Once upon a <mask>", top_k=3))
try:
    pipeline("text-diffusion", model="{WRITER}", trust_remote_code=False)
except ValueError as error:
    found["untrusted"] = str(error)
told = pipeline("text-diffusion", model=sys.argv[2], trust_remote_code=True)
found["told_time"] = [type(told.model).__module__, told("Once", steps=2, max_new_tokens=4, seed=0)[0]["text"]]
pipe.save_pretrained(sys.argv[1])
json.dump(found, sys.stdout)
"""

OFFLINE = f"""
import json, sys
from diffusion_mlm import TextDiffusionPipeline

pipe = TextDiffusionPipeline.from_pretrained("{WRITER}")
found = [[sample["text"] for sample in samples] for samples in pipe({PREFIXES!r}, **{SETTINGS!r})]
again = TextDiffusionPipeline.from_pretrained(sys.argv[1])((of for of in {PREFIXES!r}), **{SETTINGS!r})
json.dump([found, [[sample["text"] for sample in samples] for samples in again]], sys.stdout)
"""


def python(script, hub, home, *argv, with_package=True, **environment):
    """What a script prints as JSON, run with nothing but this environment."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, argv)],
        cwd=home,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "USER": USER,
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": hub.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **({"PYTHONPATH": str(ROOT)} if with_package else {}),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub().serving() as hub:
        hub.faults.append(Fault("POST", "/me/refused/commit/", 403, times=9))
        hub.faults.append(Fault("POST", "/me/cut/commit/", 403, times=9))
        yield hub


@pytest.fixture(scope="module")
def publisher(hub, checkpoint, tmp_path_factory):
    work = tmp_path_factory.mktemp(f"work-of-{USER}")
    (work / "text.txt").write_text("\n".join(" ".join(s.split()[:20]) for s in story_language.sample(24, seed=0)))
    return work, python(PUBLISHER, hub, work, work / "text.txt", checkpoint, work)


@pytest.fixture(scope="module")
def told_time(tmp_path_factory):
    """What is published of a model whose architecture transformers lacks, twice over, and what it writes."""
    final, published = tmp_path_factory.mktemp("final"), tmp_path_factory.mktemp("published")
    how = {"qk_norm": True, "time_conditioning": "sinusoidal", "num_hidden_layers": 1, "hidden_size": 32}
    model = build_model(preset_config("modern-tiny", story_language.tokenizer(), 32, **how))
    model.save_pretrained(final)
    story_language.tokenizer().save_pretrained(final)
    for name, content in model_files(final).items():
        (published / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    samples = generate(model, story_language.tokenizer(), "Once", steps=2, max_new_tokens=4, seed=0)
    return published, samples.texts[0]


@pytest.fixture(scope="module")
def reader(hub, publisher, told_time, tmp_path_factory):
    home = tmp_path_factory.mktemp("reader")
    return home, python(READER, hub, home, home / "saved", told_time[0], with_package=False)


def test_every_save_was_pushed_and_the_last_is_what_was_trained(hub, publisher):
    work, found = publisher
    assert found["status"]["train"] == 0, found["said"]["train"][1]
    repository = hub.repository(WRITER)
    assert [commit.message for commit in repository.commits] == [
        "initial commit",
        "Training in progress, step 2",
        "Training in progress, step 4",
        "End of training",
    ]
    assert repository.private
    final = (work / "run" / "final-model" / "model.safetensors").read_bytes()
    assert repository.head.files["model.safetensors"] == final
    first, second = (load(commit.files["model.safetensors"]) for commit in repository.commits[1:3])
    assert not all(first[name].equal(second[name]) for name in first)


def test_every_commit_holds_settings_code_and_card(hub, publisher):
    for commit in hub.repository(WRITER).commits[1:]:
        assert {"generation_config.json", "config.json", "text_diffusion.py", "README.md"} <= commit.files.keys()
        assert commit.files["text_diffusion.py"].decode() == remote_source()
        assert is_signed(commit.files["README.md"].decode())


def test_the_strategy_checkpoint_brings_what_a_run_goes_on_from(hub, publisher):
    names = {name for name in hub.files(WRITER) if name.startswith("last-checkpoint/")}
    wanted = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"}
    assert {f"last-checkpoint/{name}" for name in wanted} <= names


def test_all_ways_of_loading_write_the_same_text(publisher, reader):
    _, found = publisher
    assert found["pipeline"] == found["generate"] == reader[1]["texts"]
    assert reader[1]["module"].startswith("transformers_modules.")
    assert len({text for texts in found["pipeline"] for text in texts}) > 1
    assert all(text.startswith("Once upon a time") for text in found["pipeline"][0])


def test_transformers_alone_reads_the_settings_and_fills_masks(hub, reader):
    saved = json.loads(hub.files(WRITER)["generation_config.json"])
    assert {name: reader[1]["config"][name] for name in saved} == saved
    assert reader[1]["filled"] == 3
    assert "trust_remote_code=True" in reader[1]["untrusted"]


def test_transformers_alone_writes_with_an_architecture_that_it_lacks(reader, told_time):
    module, text = reader[1]["told_time"]
    assert module.startswith("transformers_modules.") and text == told_time[1]


def test_without_a_network_the_cache_is_enough(hub, publisher, reader):
    home, found = reader
    before = len(hub.requests)
    online, saved_again = python(OFFLINE, hub, home, home / "saved", HF_HUB_OFFLINE="1")
    assert online == found["texts"] == saved_again
    assert len(hub.requests) == before


def test_nothing_private_is_published(hub, publisher):
    work, _ = publisher
    assert len(hub.repositories) >= 3
    for repository in hub.repositories.values():
        for commit in repository.commits:
            for name, data in commit.files.items():
                assert not name.endswith((".bin", ".tmp")) and "/." not in f"/{name}".replace("/.gitattributes", "")
                for inner in [data, *members(data)]:
                    for canary in (TOKEN, USER, str(work), str(work.parent)):
                        assert canary.encode() not in inner, f"{canary} stands in {name}"
    assert b"hf_" not in (work / "run" / "checkpoint-4" / "training_args.bin").read_bytes()


def members(data):
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [archive.read(name) for name in archive.namelist()]


def test_what_may_not_be_pushed_is_refused_before_training(hub, publisher):
    work, found = publisher
    assert found["status"]["nobody"] == 77 and "me may not write there" in found["said"]["nobody"][1]
    assert found["status"]["token"] == 2 and "`--hub-token`" in found["said"]["token"][1]
    assert not (work / "nobody").exists() and not (work / "token").exists()
    assert ("model", "somebody/else") not in hub.repositories


def test_a_push_that_fails_leaves_the_model_and_says_how_to_repeat_it(hub, publisher):
    work, found = publisher
    assert found["status"]["cut"] == found["status"]["refused"] == 77
    assert (work / "cut" / "final-model" / "model.safetensors").is_file()
    said = found["said"]["cut"][1]
    assert f"diffusion-mlm push {work}/cut/final-model me/cut" in said
    assert "A push failed, and training goes on" in said
    assert f"diffusion-mlm push {work}/run/final-model me/refused" in found["said"]["refused"][1]
    assert len(hub.repository("me/refused").commits) == len(hub.repository("me/cut").commits) == 1


def test_a_push_by_hand_says_what_arrived(hub, publisher):
    _, found = publisher
    assert found["status"]["push"] == 0, found["said"]["push"][1]
    model, space = map(json.loads, found["said"]["push"][0].splitlines())
    assert model["sha"] == hub.repository(SHOWN).head.sha and not hub.repository(SHOWN).private
    assert model["url"] == f"{hub.endpoint}/{SHOWN}" and "model.safetensors" in model["files"]
    assert space["sha"] == hub.repository("me/space", "space").head.sha


def test_the_card_says_what_was_measured_and_its_metadata_are_accepted(hub, publisher):
    work, _ = publisher
    summary = json.loads((work / "run" / "summary.json").read_text())
    card = ModelCard(hub.files(SHOWN)["README.md"].decode())
    assert f"| nats per token | {summary['nelbo_nats_per_token']:.4f} |" in card.text
    assert f'model="{SHOWN}"' in card.text and "Once upon a <mask>" in card.text
    assert card.data.license == "mit" and card.data.language == "en" and card.data.pipeline_tag == "fill-mask"
    (result,) = card.data.eval_results
    assert isinstance(result, EvalResult) and result.metric_type == "perplexity"


def test_the_space_holds_the_demo_and_the_package_that_pushed(hub, publisher):
    files = hub.files("me/space", "space")
    assert SHOWN in files["app.py"].decode()
    compile(files["app.py"], "app.py", "exec")
    assert files["diffusion_mlm/generation.py"] == (ROOT / "diffusion_mlm" / "generation.py").read_bytes()
    assert "torch" in files["requirements.txt"].decode()
    metadata = ModelCard(files["README.md"].decode()).data.to_dict()
    assert metadata["sdk"] == "gradio" and metadata["app_file"] == "app.py" and metadata["models"] == [SHOWN]


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "`push` takes a directory and an id"),
        (["a", "b", "c"], "`push` takes a directory and an id"),
        (["./missing", "me/writer"], "`DIR` is './missing', and there is no such directory"),
        ([".", "not an id"], "`ID` is 'not an id', which is no valid id"),
        ([".", "me/writer", "--space", "a/b/c"], "`--space` is 'a/b/c', which is no valid id"),
        ([".", "me/writer", "--report", "./missing"], "`--report` is './missing', which holds no report.json"),
        ([".", "me/writer", "--num-samples", "-1"], "`--num-samples` must be"),
        ([".", "me/writer", "--tokn=x"], "--tokn is no option of `push`"),
        ([".", "me/writer", "--token", "hf_secret"], "A token is none of them: set HF_TOKEN"),
    ],
)
def test_wrong_use_is_refused_without_the_network(arguments, says, capsys):
    assert main(["push", *arguments]) == 2
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and not out and "secret" not in err


def test_what_repeats_a_push_has_all_that_was_asked_for(tmp_path):
    args = PushArguments([str(tmp_path), "writer"], private=False, space="me/space", num_samples=0)
    expected = f"diffusion-mlm push {tmp_path} me/writer --private false --num-samples 0 --space me/space"
    assert args.command("me/writer") == expected


def test_a_summary_of_another_model_is_left_out(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"diffusion": {"schedule": "linear"}}')
    (tmp_path / "summary.json").write_text('{"diffusion": {"schedule": "linear"}, "steps": 3}')
    assert summary_of(model)["steps"] == 3
    (tmp_path / "summary.json").write_text('{"diffusion": {"schedule": "cosine"}, "steps": 3}')
    assert summary_of(model) == {} and "another model" in capsys.readouterr().err
