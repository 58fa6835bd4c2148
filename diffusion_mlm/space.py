"""The files of a Gradio Space that shows a model: the package's own demo, with the package itself beside it."""

import re
from importlib import metadata
from pathlib import Path

from . import __version__

_PACKAGE = Path(__file__).parent
_SOURCES = (".py", ".html", ".css", ".js")  # of the package; not the models that it carries
_APP = '''"""The demo of diffusion_mlm with {model_id}; made by `diffusion-mlm push --space`."""

import sys

from diffusion_mlm.cli import main

sys.exit(main(["demo", "--checkpoint", "{model_id}", *{options}]))
'''
# A Space is reached through the Hub's proxy, which needs this address and port; elsewhere the demo is local.
_DEMO_OPTIONS = ["--host", "0.0.0.0", "--port", "7860"]
_README = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
models:
- {model_id}
license: apache-2.0
short_description: Watch a masked language model write by diffusion
---

Text forms out of masks, in any order: [{model_id}](https://huggingface.co/{model_id}), shown by diffusion_mlm
{version}, whose source stands beside this file. If the model is private, give this Space a secret `HF_TOKEN` that may
read it.
"""


def space_files(model_id: str) -> dict[str, bytes | Path]:
    """The files of a Space that shows `model_id`: name in the repository -> text, or where it lies.

    Raises:
        ValueError: the package is not installed, so that what it requires is not known.
    """
    try:
        requirements = metadata.requires("diffusion-mlm") or []
    except metadata.PackageNotFoundError as error:
        raise ValueError("`--space` needs to know what diffusion-mlm requires: install it with pip.") from error
    needed = [_without_marker(of) for of in requirements if "extra ==" not in of or _is_of_demo(of)]
    sources = {
        path.relative_to(_PACKAGE.parent).as_posix(): path
        for path in sorted(_PACKAGE.rglob("*"))
        if path.suffix in _SOURCES
    }
    return {
        "app.py": _APP.format(model_id=model_id, options=_DEMO_OPTIONS).encode(),
        "requirements.txt": "".join(f"{line}\n" for line in needed if not line.startswith("gradio")).encode(),
        "README.md": _README.format(
            title=re.sub(r"[^\w .-]", " ", model_id.split("/")[-1]),
            model_id=model_id,
            version=__version__,
            gradio=_gradio_version(requirements),
        ).encode(),
        **sources,
    }


def _is_of_demo(requirement: str) -> bool:
    return re.search(r"""extra == ['"]demo['"]""", requirement) is not None


def _without_marker(requirement: str) -> str:
    return requirement.split(";")[0].strip()


def _gradio_version(requirements: list[str]) -> str:
    """The version that is installed and so was tried, else the oldest that the extra accepts."""
    try:
        return metadata.version("gradio")
    except metadata.PackageNotFoundError:
        found = [re.search(r">=\s*([\d.]+)", of) for of in requirements if of.startswith("gradio")]
        return next(f"{of[1]}.0" if of[1].count(".") == 1 else of[1] for of in found if of)
