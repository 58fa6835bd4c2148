"""One short question to the Hub: each answer, and each silence, becomes the right error in time.

huggingface_hub reads its environment when it is imported, so the questions are asked in a process of their own; the
small Hub that answers them runs here, on the loopback address.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from diffusion_mlm.errors import HubUnavailableError, NotAllowedError
from diffusion_mlm.hub_access import looks_like_path, require_repository

ANSWERS = {  # repository: status, X-Error-Code, X-Error-Message
    "org/open": (200, None, None),
    "org/gated-open": (200, None, None),
    "org/gated-closed": (200, None, None),
    "org/gated-hidden": (403, "GatedRepo", None),
    "org/nobody": (404, "RepoNotFound", None),
    "org/private": (401, "RepoNotFound", None),
    "org/bad-token": (401, None, "Invalid credentials in Authorization header"),
    "org/forbidden": (403, None, None),
    "org/broken": (500, None, None),
    "org/busy": (503, None, None),
    "org/slow": (None, None, None),  # accepts and never answers
}
HUB_DOWN = HubUnavailableError.__name__
CLOSED = NotAllowedError.__name__


class SmallHub(BaseHTTPRequestHandler):
    released = threading.Event()

    def do_GET(self):
        parts = self.path.split("?")[0].split("/")  # "", "api", "models" or "datasets", organisation, name, question
        name = "/".join(parts[3:5])
        status, code, message = ANSWERS[name]
        if status is None:
            self.released.wait(20)
            return
        if parts[-1] == "auth-check" and name == "org/gated-closed":
            status, code = 403, "GatedRepo"
        facts = {"id": name, "sha": "0" * 40, "siblings": [], "tags": [], "downloads": 0, "likes": 0, "private": False}
        body = json.dumps({**facts, "gated": "manual" if "gated" in name else False}).encode()
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                self.send_header(header, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def ask(names):
    """What `require_repository` says about each name, and the seconds it took."""
    found = {}
    for repo_type, name in names:
        start = time.monotonic()
        try:
            require_repository(name, repo_type, "--model-name")
            error = None
        except (ValueError, OSError) as raised:
            error = [type(raised).__name__, str(raised)]
        found[f"{repo_type} {name}"] = [error, time.monotonic() - start]
    return found


def ask_in_a_process(tmp_path, names, **environment):
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "http", "HTTP"))
        },
        "HF_HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        **environment,
    }
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(names)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    server = ThreadingHTTPServer(("127.0.0.1", 0), SmallHub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = [("model", name) for name in ANSWERS] + [("dataset", "org/open"), ("dataset", "org/gated-closed")]
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        return ask_in_a_process(tmp_path_factory.mktemp("home"), names, HF_ENDPOINT=endpoint)
    finally:
        SmallHub.released.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "name, error, says",
    [
        ("org/gated-closed", CLOSED, "gated: ask for access"),
        ("org/gated-hidden", CLOSED, "gated: ask for access"),
        ("org/bad-token", CLOSED, "status 401"),
        ("org/forbidden", CLOSED, "status 403"),
        ("org/nobody", HUB_DOWN, "knows no such repository"),
        ("org/private", HUB_DOWN, "knows no such repository"),
        ("org/broken", HUB_DOWN, "status 500"),
        ("org/busy", HUB_DOWN, "status 503"),
        ("org/slow", HUB_DOWN, "cannot be reached"),
    ],
)
def test_a_repository_that_cannot_be_read_is_refused_in_time(answers, name, error, says):
    (found, message), seconds = answers[f"model {name}"]
    assert found == error
    assert message.startswith(f"`--model-name` is {name!r}") and says in message and "\n" not in message
    assert seconds < 10


def test_a_repository_that_can_be_read_is_let_through(answers):
    assert answers["model org/open"][0] is None
    assert answers["model org/gated-open"][0] is None
    assert answers["dataset org/open"][0] is None


def test_data_sets_are_asked_for_like_models(answers):
    assert answers["dataset org/gated-closed"][0][0] == CLOSED


def test_a_refused_port_is_a_hub_that_cannot_be_reached(tmp_path):
    with socket.socket() as closed:  # bound and not listening: nobody else gets the port meanwhile
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        found = ask_in_a_process(tmp_path, [("model", "org/open")], HF_ENDPOINT=endpoint)
    (error, message), seconds = found["model org/open"]
    assert error == HUB_DOWN and "cannot be reached" in message and seconds < 10


def test_offline_only_the_cache_answers(tmp_path):
    snapshot = tmp_path / "hub" / "models--org--cached" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "hub" / "models--org--cached" / "refs").mkdir()
    (tmp_path / "hub" / "models--org--cached" / "refs" / "main").write_text("0" * 40)
    found = ask_in_a_process(tmp_path, [("model", "org/cached"), ("model", "org/open")], HF_HUB_OFFLINE="1")
    assert found["model org/cached"][0] is None
    error, message = found["model org/open"][0]
    assert error == HUB_DOWN and "switched off by HF_HUB_OFFLINE" in message


@pytest.mark.parametrize("name", ["", ".", "./here", "../there", "/absolute", "~/home", "a/b/c", "a/b/"])
def test_what_can_only_be_a_path_looks_like_one(name):
    assert looks_like_path(name)


@pytest.mark.parametrize("name", ["roberta-base", "FacebookAI/roberta-base", "a.b/c_d-e"])
def test_a_hub_id_does_not_look_like_a_path(name):
    assert not looks_like_path(name)


@pytest.mark.parametrize("name", ["", "./missing", "/no/such/place", "a/b/c", "/" + "x" * 5000, "/nul\0"])
def test_a_missing_directory_is_named(name):
    with pytest.raises(ValueError, match="^`--checkpoint` is .* there is no such directory"):
        require_repository(name, "model", "--checkpoint")


@pytest.mark.parametrize("name", ["two words", "-dash", "a--b", "x" * 200, "é/ü"])
def test_what_is_neither_directory_nor_hub_id_is_refused(name):
    with pytest.raises(ValueError, match="neither a directory nor a valid Hub id"):
        require_repository(name, "model", "--checkpoint")


def test_a_directory_is_enough(tmp_path):
    require_repository(str(tmp_path), "model", "--checkpoint")


if __name__ == "__main__":
    print(json.dumps(ask(json.loads(sys.argv[1]))))
