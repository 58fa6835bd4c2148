"""Pushes a model and a Space to a Hub of its own, runs the Space as the Hub would, and writes in it with a browser.

    pip install 'diffusion-mlm[demo]' playwright
    python experiments/space_check.py --browser /usr/bin/chromium

The Hub is that of the tests, on the loopback address. What `diffusion-mlm push --space` uploads is taken from there
into an empty directory, and `python app.py` is run in it with nothing else of this package in reach: its model comes
from the Hub, which is private. Writes `results/space_check.json` and exits with 1 if a claim does not hold.
"""

import ast
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from diffusion_mlm import generate, load_generator
from diffusion_mlm.checkpoints import STORIES_GENERATOR
from diffusion_mlm.cli import report_error
from diffusion_mlm.cli.parsing import parse

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from demo_check import TIMEOUT, write
from loopback_hub import TOKEN, LoopbackHub

ROOT = Path(__file__).parents[1]
MODEL, SPACE = "me/stories", "me/space"
_OF_THE_HEADER = ("https://huggingface.co/", "https://fonts.googleapis.com/")  # which Gradio adds in a Space
_PUSH = "import sys; from diffusion_mlm.cli import main; sys.exit(main(sys.argv[1:]))"
# A Space has the files of the package, but no package that pip has installed.
_HIDE = """
from importlib import metadata
found = metadata.distribution
def hidden(name):
    if name.replace("_", "-") == "diffusion-mlm":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.distribution = hidden
"""


@dataclass
class SpaceCheckArguments:
    """What is shown, and with what."""

    browser: str = field(default="/usr/bin/chromium", metadata={"help": "Chromium or Chrome."})
    checkpoint: str = field(default=STORIES_GENERATOR, metadata={"help": "Directory of the model that is pushed."})
    prefix: str = field(default="Once upon a time", metadata={"help": "What is written on from."})
    seed: int = field(default=1, metadata={"help": "Of the text."})
    output: str = field(default="results/space_check.json", metadata={"help": "What was found."})


def environment(hub: LoopbackHub, home: Path, **more: str) -> dict[str, str]:
    """What a process gets to see: this Hub, who is logged in there, and an empty home."""
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    hub_of_its_own = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home / "hf")}
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    return {**kept, "HOME": str(home), **hub_of_its_own, **quiet, **more}


def unpack(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def address_of(files: dict[str, bytes]) -> str:
    """Where `app.py` will listen.

    Raises:
        ValueError: somebody listens there already.
    """
    port = int(re.search(r"'--port', '(\d+)'", files["app.py"].decode())[1])  # type: ignore[index]
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ValueError(f"Port {port}, which a Space has to itself, is taken on this machine.")
    return f"http://127.0.0.1:{port}/"


def wait_for(process: subprocess.Popen[bytes], address: str, log: Path) -> float:
    """Seconds until the page is there.

    Raises:
        ValueError: the app ended instead, or does not answer.
    """
    begin = time.perf_counter()
    while time.perf_counter() - begin < 300:
        if process.poll() is not None:
            raise ValueError(f"`python app.py` ended with status {process.returncode}: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return time.perf_counter() - begin
        except OSError:
            time.sleep(0.2)
    raise ValueError("The Space does not answer.")


def installed_by(requirements: list[Requirement]) -> set[str]:
    """Distributions that pip would bring for these, as far as they are installed here."""
    found: set[str] = set()
    waiting = [(of.name, frozenset(of.extras)) for of in requirements]
    while waiting:
        name, extras = waiting.pop()
        try:
            needed = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        if (key := canonicalize_name(name)) in found:
            continue
        found.add(key)
        waiting += [
            (of.name, frozenset(of.extras))
            for of in needed
            if of.marker is None or any(of.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        ]
    return found


def imported(folder: Path, log: str) -> set[str]:
    """Packages that the files of the package which were loaded import when they are loaded, by what Python logged."""
    modules = {line.split("|")[-1].strip() for line in log.splitlines() if line.startswith("import time:")}
    names = {"gradio"} & {module.split(".")[0] for module in modules}  # imported inside the functions that need it
    for module in modules:
        if module.split(".")[0] != "diffusion_mlm":
            continue
        path = folder.joinpath(*module.split("."))
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).split(".")[0])
    return names - set(sys.stdlib_module_names) - {"diffusion_mlm"}


def check_requirements(folder: Path, log: str) -> tuple[dict[str, bool], dict[str, Any]]:
    """Whether what is required is what was run with, and all that is imported comes with it."""
    lines = (folder / "requirements.txt").read_text().splitlines()
    sdk = re.search(r"^sdk_version: (\S+)$", (folder / "README.md").read_text(), re.MULTILINE)[1]  # type: ignore[index]
    requirements = [Requirement(line) for line in [*lines, f"gradio=={sdk}"]]
    brought, packages = installed_by(requirements), metadata.packages_distributions()
    names = sorted(imported(folder, log))
    lacking = [of for of in names if not {canonicalize_name(name) for name in packages.get(of, [])} & brought]
    claims = {
        "the versions it ran with are those it asks for": all(
            of.specifier.contains(metadata.version(of.name), prereleases=True) for of in requirements
        ),
        "what it imports comes with what it requires": bool(names) and not lacking,
    }
    return claims, {"requirements": [str(of) for of in requirements], "imports": names, "lacking": lacking}


def visit(args: SpaceCheckArguments, address: str) -> tuple[str, float, list[str], list[str]]:
    """What the page writes on from the prefix, how long it took, requests elsewhere, and errors."""
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    errors: list[str] = []
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
        page = chromium.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#write-prefix textarea", timeout=TIMEOUT)
        begin = time.perf_counter()
        shown = write(page, args.prefix, args.seed)
        seconds = time.perf_counter() - begin
        chromium.close()
    elsewhere = sorted({url for url in asked if not url.startswith((address, "data:", "blob:"))})
    return shown, seconds, elsewhere, errors


def check(args: SpaceCheckArguments, hub: LoopbackHub, work: Path) -> dict[str, Any]:
    """What was found on the way from the checkpoint to the text in the page."""
    push = ["push", args.checkpoint, MODEL, "--space", SPACE, "--num-samples", "0"]
    there = environment(hub, work / "publisher", PYTHONPATH=str(ROOT))
    subprocess.run([sys.executable, "-c", _PUSH, *push], cwd=ROOT, env=there, check=True, stdout=subprocess.DEVNULL)
    files, folder, hidden = hub.files(SPACE, "space"), work / "space", work / "hidden"
    unpack(files, folder)
    unpack({"sitecustomize.py": _HIDE.encode()}, hidden)
    address, log = address_of(files), work / "log"
    in_a_space = environment(hub, work / "home", PYTHONPATH=str(hidden), SYSTEM="spaces", SPACE_ID=SPACE)
    before = len(hub.requests)
    with log.open("wb") as errors_of_app:
        command = [sys.executable, "-X", "importtime", "app.py"]
        process = subprocess.Popen(
            command, cwd=folder, env=in_a_space, stdout=subprocess.DEVNULL, stderr=errors_of_app
        )
    try:
        started = wait_for(process, address, log)
        shown, seconds, elsewhere, errors = visit(args, address)
    finally:
        process.terminate()
        process.wait(30)
    model, tokenizer = load_generator(args.checkpoint)
    expected = generate(model, tokenizer, args.prefix, seed=args.seed, order="entropy", temperature=1.0).texts[0]
    claims, found = check_requirements(folder, log.read_text(errors="replace"))
    asked = [request for request in hub.requests[before:] if request.endswith("/model.safetensors")]
    return {
        "claims": {
            "the model came from the Hub": bool(asked) and hub.repository(MODEL).private,
            "the text is what generate writes": shown == expected,
            **claims,
            "only the header that Gradio adds in a Space asks others": all(
                url.startswith(_OF_THE_HEADER) for url in elsewhere
            ),
            "no error in the page": not errors,
        },
        "files": len(files),
        "bytes": sum(map(len, files.values())),
        "seconds until it answers": round(started, 1),
        "seconds to write": round(seconds, 1),
        "text": shown,
        **found,
        "elsewhere": elsewhere,
        "errors": errors,
    }


def main(argv: list[str]) -> int:
    (args,) = parse([SpaceCheckArguments], argv, "space_check")
    try:
        import playwright  # noqa: F401
    except ImportError:
        raise ValueError("A browser is driven by playwright: run `pip install playwright`.") from None
    with tempfile.TemporaryDirectory() as folder, LoopbackHub().serving() as hub:
        found = check(args, hub, Path(folder))
    Path(args.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for claim, holds in found["claims"].items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(found["claims"].values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
