"""The one file that a repository carries; that it generates like the package is shown in `test_push.py`."""

import ast
import sys
import types

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from diffusion_mlm import remote_code
from diffusion_mlm.qk_norm import QkNormConfig
from diffusion_mlm.time_conditioning import TimeConditionedConfig


@pytest.fixture(scope="module")
def tree():
    return ast.parse(remote_code.remote_source())


def test_nothing_is_imported_but_what_transformers_needs_too(tmp_path):
    path = tmp_path / "text_diffusion.py"
    path.write_text(remote_code.remote_source(), encoding="utf-8")
    others = set(get_imports(path)) - set(sys.stdlib_module_names)
    assert others == {"torch", "transformers", "tokenizers", "huggingface_hub", "numpy"}
    assert get_relative_imports(path) == []


def test_every_name_is_defined_once_and_before_it_is_used_on_loading(tree):
    bound = [name for node in tree.body for name in remote_code._bound_by(node)]
    assert len(bound) == len(set(bound))
    exec(compile(tree, "text_diffusion", "exec"), types.ModuleType("text_diffusion_of_a_test").__dict__)


def test_the_file_says_what_made_it(tree):
    docstring = ast.get_docstring(tree)
    assert "Apache-2.0" in docstring and 'pipeline("text-diffusion"' in docstring


@pytest.mark.parametrize("config", [QkNormConfig, TimeConditionedConfig])
def test_the_modules_of_architectures_that_transformers_lacks_define_what_is_said_of_them(config):
    facts, files = remote_code.architecture_code(config.model_type)
    module, name = facts["auto_map"]["AutoConfig"].split(".")
    assert (name, f"diffusion_mlm.{module}") == (config.__name__, config.__module__)
    for place in facts["auto_map"].values():
        module, name = place.split(".")
        assert f"class {name}(".encode() in files[f"{module}.py"]
    assert remote_code.architecture_code("roberta") == ({}, {})


def test_training_is_left_out(tree):
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert {"TextDiffusionPipeline", "generate", "DiffusionGenerationConfig"} <= names
    assert not names & {"DiffusionTrainer", "train_bpe", "build_model", "remote_source"}


@pytest.fixture
def merged(monkeypatch, tmp_path):
    """Merges a package of two modules, `a` and `pipeline`."""

    def merge(a, pipeline):
        (tmp_path / "a.py").write_text(f'"""The first."""\n{a}', encoding="utf-8")
        (tmp_path / "pipeline.py").write_text(f'"""The last."""\n{pipeline}', encoding="utf-8")
        monkeypatch.setattr(remote_code, "_PACKAGE", tmp_path)
        remote_code._read.cache_clear()
        try:
            source = remote_code.remote_source.__wrapped__()
        finally:
            remote_code._read.cache_clear()
        found = {}
        exec(source, found)
        return source, found

    return merge


def test_names_that_mean_two_things_are_told_apart(merged):
    source, found = merged(
        "_SIZE = 3\n# é: what stands before a name may take two bytes\ndef size(): return 'é', _SIZE\n",
        "from .a import size as size_of_a\n_SIZE = 4\ndef size(): return _SIZE\n"
        "class TextDiffusionPipeline:\n    sizes = size(), size_of_a()\n",
    )
    assert found["TextDiffusionPipeline"].sizes == (4, ("é", 3))
    assert "# é: what stands before" in source


def test_modules_of_packages_come_along(merged, tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.py").write_text(
        '"""Inside."""\nfrom ..a import n\nfrom .c import m\ndef b(): return n + m\n'
    )
    (tmp_path / "inner" / "c.py").write_text('"""Beside."""\nm = 2\n')
    source, found = merged("n = 1\n", "from .inner.b import b\nclass TextDiffusionPipeline:\n    value = b()\n")
    assert found["TextDiffusionPipeline"].value == 3 and "# inner/b.py: Inside." in source


def test_only_what_is_needed_comes_along_and_imports_are_joined(merged):
    source, _ = merged(
        "from math import pi, tau\nfrom json import dumps\ndef used(): return pi\ndef unused(): return dumps(tau)\n",
        "import math\nfrom .a import used\nclass TextDiffusionPipeline:\n    value = used() + math.tau\n",
    )
    assert "from math import pi\n" in source and "import math\n" in source
    assert "unused" not in source and "json" not in source and "tau\n" in source


@pytest.mark.parametrize(
    "a, pipeline, says",
    [
        ("x = 1\n", "def f():\n    from .a import x\nclass TextDiffusionPipeline:\n    y = f\n", "inside a function"),
        ("def f(): pass\n", "from .a import g\nclass TextDiffusionPipeline:\n    y = g\n", "a.py does not define g"),
        (
            "from json import dumps\ndef f(): return dumps\n",
            "from .a import f\nfrom pickle import dumps\nclass TextDiffusionPipeline:\n    y = f, dumps\n",
            "imported in two ways",
        ),
        (
            "N = 1\ndef f(N): return N\n",
            "from .a import N as M, f\nN = 2\nclass TextDiffusionPipeline:\n    y = f, N, M\n",
            "for something of its own",
        ),
    ],
)
def test_what_cannot_be_merged_is_an_error(merged, a, pipeline, says):
    with pytest.raises(RuntimeError, match=says):
        merged(a, pipeline)
