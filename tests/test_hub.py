"""Pushes to a Hub on the loopback address: whole or not at all, whatever goes wrong on the way."""

import json
import socket
import types

import pytest
from huggingface_hub import HfApi
from loopback_hub import TOKEN, Fault, LoopbackHub

from diffusion_mlm.cli import main
from diffusion_mlm.errors import HubUnavailableError, NotAllowedError
from diffusion_mlm.hub import HubRepository, signed
from diffusion_mlm.publication import model_files


@pytest.fixture
def hub(monkeypatch):
    """Waiting is over at once; what is large goes the classic way, not through the storage client."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time", types.SimpleNamespace(sleep=lambda seconds: None))
    with LoopbackHub().serving() as hub:
        yield hub


def repository(hub, name="me/writer", kind="model", token=TOKEN):
    return HubRepository(name, kind, api=HfApi(hub.endpoint, token=token), wait=lambda seconds: None)


def publish(hub, files, **options):
    there = repository(hub)
    there.create()
    return there.publish(files, "Upload", **options)


def test_a_push_arrives_as_it_was_sent_and_is_private(hub, checkpoint):
    files = model_files(checkpoint)
    published = publish(hub, files)
    found = hub.repository("me/writer")
    assert published.sha == found.head.sha and found.private
    assert found.head.files["model.safetensors"] == files["model.safetensors"].read_bytes()
    assert set(found.head.files) == {*files, ".gitattributes"} == {*published.files, ".gitattributes"}


def test_a_second_push_of_the_same_files_makes_no_commit(hub, checkpoint):
    first, second = publish(hub, model_files(checkpoint)), publish(hub, model_files(checkpoint))
    assert first.sha == second.sha and len(hub.repository("me/writer").commits) == 2


def test_weights_of_an_earlier_push_do_not_stay_beside_the_new_ones(hub):
    publish(hub, {"model.safetensors": b"\0" * 8, "vocab.json": b"{}"})
    hub.repository("me/writer").add("by hand", {"notes.txt": b"mine"})
    publish(hub, {"model-00001-of-00001.safetensors": b"\1" * 8, "model.safetensors.index.json": b"{}"})
    files = hub.files("me/writer")
    assert "model.safetensors" not in files and "vocab.json" not in files and "notes.txt" in files


@pytest.mark.parametrize(
    "theirs, options, stays",
    [
        ("---\nlicense: mit\n---\nMine.\n", {}, True),
        ("---\nlicense: mit\n---\nMine.\n", {"overwrite_card": True}, False),
        (signed("---\nlicense: mit\n---\nMade by a push."), {}, False),
        (signed("---\nlicense: mit\n---\nMade by a push.").replace("Made", "Edited"), {}, True),
    ],
)
def test_a_card_is_replaced_only_if_a_push_made_it_or_one_asks(hub, theirs, options, stays):
    hub.make("model", "me/writer", True).add("card", {"README.md": theirs.encode()})
    published = publish(hub, {"README.md": signed("---\nlicense: mit\n---\nNew.").encode()}, **options)
    assert published.kept_card == stays
    assert (hub.files("me/writer")["README.md"] == theirs.encode()) == stays


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/api/repos/create", 500),
        Fault("POST", "/api/repos/create", 429),
        Fault("POST", "/preupload/", 500),
        Fault("PUT", "/store/", 503),
        Fault("PUT", "/store/"),  # the connection is cut in the middle of the weights
        Fault("POST", "/commit/", 500, times=2),
        Fault("POST", "/commit/", 409),
        Fault("POST", "/commit/"),
        Fault("POST", "/paths-info/", 500),
    ],
    ids=lambda fault: f"{fault.path} {fault.status}",
)
def test_what_passes_is_tried_again(hub, checkpoint, fault):
    hub.faults.append(fault)
    published = publish(hub, model_files(checkpoint))
    assert fault.times == 0
    assert [commit.message for commit in hub.repository("me/writer").commits] == ["initial commit", "Upload"]
    assert published.sha == hub.repository("me/writer").head.sha


def test_a_commit_of_somebody_else_in_between_is_not_lost(hub, checkpoint):
    card = signed("---\nlicense: mit\n---\nNew.").encode()

    def somebody_commits():
        hub.repository("me/writer").add("by hand", {"README.md": b"---\nlicense: mit\n---\nMine."})

    hub.faults.append(Fault("POST", "/commit/", before=somebody_commits))
    published = publish(hub, {**model_files(checkpoint), "README.md": card})
    messages = [commit.message for commit in hub.repository("me/writer").commits]
    assert messages == ["initial commit", "by hand", "Upload"]
    assert published.kept_card and b"Mine." in hub.files("me/writer")["README.md"]


@pytest.mark.parametrize(
    "fault, error, says",
    [
        (Fault("PUT", "/store/", times=99), HubUnavailableError, "the connection was cut"),
        (Fault("POST", "/commit/", 500, times=99), HubUnavailableError, "status 500"),
        (Fault("POST", "/commit/", 409, times=99), HubUnavailableError, "status 409"),
        (Fault("POST", "/commit/", 403), NotAllowedError, "refuses you (status 403)"),
        (Fault("POST", "/preupload/", 401), NotAllowedError, "wrong, expired or may not write"),
    ],
    ids=lambda value: f"{value.path} {value.status}" if isinstance(value, Fault) else "",
)
def test_what_does_not_pass_publishes_nothing(hub, checkpoint, fault, error, says):
    hub.faults.append(fault)
    with pytest.raises(error, match="`repo_id` is 'me/writer'") as raised:
        publish(hub, model_files(checkpoint))
    assert says in str(raised.value) and type(raised.value) is error
    assert len(hub.repository("me/writer").commits) == 1


def test_content_that_arrives_changed_is_noticed(hub, checkpoint):
    def somebody_damages():
        hub.repository("me/writer").head.files["config.json"] = b"{}"

    hub.faults.append(Fault("POST", "/paths-info/", before=somebody_damages, times=99))
    hub.faults.append(Fault("GET", "/revision/", before=lambda: None))
    with pytest.raises(HubUnavailableError, match="something else than was sent for config.json"):
        publish(hub, model_files(checkpoint))


@pytest.mark.parametrize(
    "name, token, role, error, says",
    [
        ("me/writer", "hf_" + "x" * 34, "write", NotAllowedError, "wrong, expired"),
        ("me/writer", TOKEN, "read", NotAllowedError, "may only read"),
        ("somebody/writer", TOKEN, "write", NotAllowedError, "me may not write there"),
        ("readers/writer", TOKEN, "write", NotAllowedError, "me may not write there"),
        ("organisation/writer", TOKEN, "write", None, ""),
        ("writer", TOKEN, "write", None, ""),
    ],
)
def test_who_may_write_is_asked_before_anything_is_made(hub, name, token, role, error, says):
    hub.role = role
    asked = repository(hub, name, token=token)
    if error is None:
        asked.require_writable()
        assert asked.id in ("organisation/writer", "me/writer")
    else:
        with pytest.raises(error, match=says):
            asked.require_writable()
    assert hub.requests == ["GET /api/whoami-v2"] and not hub.repositories


def test_offline_nobody_is_asked(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match="HF_HUB_OFFLINE"):
        repository(hub).require_writable()
    assert not hub.requests


def test_a_hub_that_does_not_answer_is_exit_status_69(checkpoint, monkeypatch, capsys):
    with socket.socket() as closed:  # bound and not listening: nobody else gets the port meanwhile
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert main(["push", checkpoint, "me/writer"]) == 69
    said = capsys.readouterr().err
    assert "`ID` is 'me/writer'" in said and "cannot be reached" in said and TOKEN not in said


@pytest.mark.parametrize("name", ["", "a/b/c", "two words", "me/", "../up", "a--b"])
def test_an_id_that_is_none_is_refused_without_the_network(name):
    with pytest.raises(ValueError, match="`repo_id` is .* no valid id"):
        HubRepository(name)


@pytest.mark.parametrize("secret", [TOKEN, "hf_" + "Z" * 34])
def test_a_token_in_a_file_stops_the_push(hub, checkpoint, secret):
    files = model_files(checkpoint)
    files["config.json"] = json.dumps({**json.loads(files["config.json"]), "note": secret}).encode()
    with pytest.raises(ValueError, match="config.json holds a token"):
        publish(hub, files)
    assert len(hub.repository("me/writer").commits) == 1
