"""Imports run one way, and a few more rules about the sources, read from the sources themselves."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffusion_mlm"

# Each imports only modules to its left, torch and the standard library: the mathematics reads without the platform.
MATHEMATICS = (
    "randomness",
    "schedules",
    "binned_means",
    "rate_distributions",
    "row_lengths",
    "corruption",
    "objectives",
    "sampling",
    "unmasking",
    "remasking",
    "reveal_plan",
    "repetition",
    "reading",
    "denoising_step",
    "denoising_work",
    "token_drawing",
    "denoising_loop",
    "denoising",
    "embedding_diffusion.noise",
)
# Text and models: these import one another and the mathematics.
TEXT_AND_MODELS = (
    "data",
    "data_report",
    "data_sampler",
    "packing",
    "file_format",
    "table_files",
    "text_files",
    "text_lines",
    "tokenization",
    "initialization",
    "qk_norm",
    "time_conditioning",
    "presets",
    "aligned_head",
    "cpu_training",
    "packed_linear",
    "cuda_graphs",
    "last_layer",
    "modeling",
    "precision",
    "token_weights",
    "lora",
    "story_language",
)
# The mathematics of likelihood: each imports only the mathematics and what stands to its left here.
LIKELIHOOD = (
    "evaluation.interval",
    "evaluation.likelihood",
    "evaluation.trajectory",
    "evaluation.loss_curve",
)
# Figures of texts as words and characters: no model, no tensor.
TEXT_FIGURES = (
    "evaluation.words",
    "evaluation.diversity",
    "evaluation.longest_copy",
    "evaluation.matched_texts",
    "evaluation.sample_report",
    "evaluation.sample_warnings",
)
# What anybody may import, because it imports nothing but itself.
FOUNDATIONS = ("errors", "hub_access", "run_lock", "sealed_checkpoints")
SURFACES = ("cli", "demo")
OPTIONAL_PACKAGES = ("PIL", "gradio", "lm_eval", "matplotlib", "mauve", "peft", "tensorboard", "torchao", "trackio")
# Subclasses of an optional package's classes: the one package each may load, while nobody may load it unasked.
ADAPTERS = {"evaluation.lm_eval_model": "lm_eval"}


@dataclass(frozen=True)
class Import:
    """One import statement: `target` is a module of the package ("evaluation.likelihood", "" for the package itself)
    or, if not `ours`, the top-level name of another package."""

    target: str
    ours: bool
    when_loading: bool  # outside functions, and outside `if TYPE_CHECKING:`


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def within(module: str, names: tuple[str, ...]) -> bool:
    """Whether a module is one of `names` or lies in a package of that name."""
    return module.split(".")[0] in names


def _statements(node: ast.AST, when_loading: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, when_loading
            continue
        deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        deferred = deferred or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
        yield from _statements(child, when_loading and not deferred)


def imports_of(source: str, module: str, is_package: bool, modules: set[str]) -> list[Import]:
    """All imports of a module, relative and absolute, wherever they stand.

    `from .evaluation import likelihood` is an import of `evaluation.likelihood` if that is a module, else of
    `evaluation`.
    """
    found = []
    for statement, when_loading in _statements(ast.parse(source)):
        if isinstance(statement, ast.Import):
            dotted = [alias.name for alias in statement.names]
        elif statement.level:
            package = module.split(".") if module else []
            package = package[: len(package) - statement.level + is_package]
            base = ".".join(["diffusion_mlm", *package, *([statement.module] if statement.module else [])])
            dotted = [f"{base}.{alias.name}" for alias in statement.names]
        else:
            dotted = [f"{statement.module}.{alias.name}" for alias in statement.names]
        for name in dotted:
            top, _, rest = name.partition(".")
            if top != "diffusion_mlm":
                found.append(Import(top, False, when_loading))
            else:
                target = rest if rest in modules else rest.rpartition(".")[0]
                found.append(Import(target, True, when_loading))
    return found


IMPORTS = {
    name: imports_of(path.read_text(encoding="utf-8"), name, path.name == "__init__.py", set(SOURCES))
    for name, path in SOURCES.items()
}


def loaded_with(module: str) -> set[str]:
    """Every module of the package that Python loads when it loads `module`, the packages it lies in included."""
    loaded: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name and name not in loaded:
            loaded.add(name)
            waiting.append(name.rpartition(".")[0])
            waiting.extend(found.target for found in IMPORTS[name] if found.ours and found.when_loading)
    return loaded


@pytest.mark.parametrize(
    ("statement", "module", "is_package", "target"),
    [
        ("from .b import f", "a", False, "b"),
        ("from . import b", "a", False, "b"),
        ("from .c import d", "a", False, "c.d"),
        ("from .c.d import f", "a", False, "c.d"),
        ("from .d import f", "c", True, "c.d"),
        ("from .d import f", "c.e", False, "c.d"),
        ("from ..b import f", "c.e", False, "b"),
        ("from ..c.d import f", "c.e", False, "c.d"),
        ("from .. import b", "c.e", False, "b"),
        ("from .. import __version__", "c.e", False, ""),
        ("import diffusion_mlm.c.d", "a", False, "c.d"),
        ("from diffusion_mlm.c import d", "a", False, "c.d"),
        ("from diffusion_mlm import b", "a", False, "b"),
        ("from torch.nn import functional", "a", False, "torch"),
        ("import torch.nn.functional as F", "a", False, "torch"),
        ("def f():\n    from .b import g", "a", False, "b"),
    ],
)
def test_the_reader_resolves_imports(statement: str, module: str, is_package: bool, target: str) -> None:
    modules = {"", "a", "b", "c", "c.d", "c.e"}
    (found,) = imports_of(statement, module, is_package, modules)
    assert found.target == target
    assert found.ours == (target != "torch")
    assert found.when_loading == (not statement.startswith("def"))


@pytest.mark.parametrize(
    "name",
    [
        *MATHEMATICS,
        *TEXT_AND_MODELS,
        *LIKELIHOOD,
        *TEXT_FIGURES,
        *FOUNDATIONS,
        *ADAPTERS,
        "cli",
        "trainer",
        "visualization",
    ],
)
def test_a_module_with_a_rule_exists(name: str) -> None:
    assert name in SOURCES, f"{name} has gone from the package: take its rule out of this file."


@pytest.mark.parametrize("name", MATHEMATICS)
def test_mathematics_imports_only_torch_and_earlier_mathematics(name: str) -> None:
    earlier = MATHEMATICS[: MATHEMATICS.index(name)]
    ours = {found.target for found in IMPORTS[name] if found.ours}
    others = {found.target for found in IMPORTS[name] if not found.ours}
    assert ours <= set(earlier), f"{name} may not import {sorted(ours - set(earlier))}."
    assert others <= {"torch", *sys.stdlib_module_names}, f"{name} may not import {sorted(others)}."


@pytest.mark.parametrize("name", LIKELIHOOD)
def test_likelihood_imports_only_torch_and_mathematics(name: str) -> None:
    earlier = (*MATHEMATICS, *LIKELIHOOD[: LIKELIHOOD.index(name)])
    ours = {found.target for found in IMPORTS[name] if found.ours}
    others = {found.target for found in IMPORTS[name] if not found.ours}
    assert ours <= set(earlier), f"{name} may not import {sorted(ours - set(earlier))}."
    assert others <= {"torch", *sys.stdlib_module_names}, f"{name} may not import {sorted(others)}."


@pytest.mark.parametrize("name", TEXT_FIGURES)
def test_figures_of_texts_import_only_numpy_and_each_other(name: str) -> None:
    earlier = TEXT_FIGURES[: TEXT_FIGURES.index(name)]
    ours = {found.target for found in IMPORTS[name] if found.ours}
    others = {found.target for found in IMPORTS[name] if not found.ours}
    assert ours <= set(earlier), f"{name} may not import {sorted(ours - set(earlier))}."
    assert others <= {"numpy", *sys.stdlib_module_names}, f"{name} may not import {sorted(others)}."


@pytest.mark.parametrize("name", [name for name in SOURCES if within(name, TEXT_AND_MODELS)])
def test_text_and_models_import_nothing_above_the_mathematics(name: str) -> None:
    allowed = (*FOUNDATIONS, *MATHEMATICS, *TEXT_AND_MODELS)
    above = {found.target for found in IMPORTS[name] if found.ours and not within(found.target, allowed)}
    assert not above, f"{name} may not import {sorted(above)}."


@pytest.mark.parametrize("name", [name for name in SOURCES if within(name, FOUNDATIONS)])
def test_foundations_import_nothing_else_of_the_package(name: str) -> None:
    ours = {found.target for found in IMPORTS[name] if found.ours and not within(found.target, FOUNDATIONS)}
    assert not ours, f"{name} may not import {sorted(ours)}."


def test_trainer_loads_without_generation() -> None:
    loaded = {name for name in loaded_with("trainer") if within(name, ("generation", "pipeline"))}
    assert not loaded, f"Importing trainer imports {sorted(loaded)}; callbacks join the two."


@pytest.mark.parametrize("name", [name for name in SOURCES if within(name, ("visualization",))])
def test_visualization_knows_no_models(name: str) -> None:
    allowed = (*FOUNDATIONS, *MATHEMATICS, "visualization")
    ours = {found.target for found in IMPORTS[name] if found.ours and not within(found.target, allowed)}
    assert not ours, f"{name} may not import {sorted(ours)}."
    classes = set(re.findall(r"\b(?:Auto|Roberta|PreTrained)Model\w*", SOURCES[name].read_text(encoding="utf-8")))
    assert not classes, f"{name} may not know {sorted(classes)}."


@pytest.mark.parametrize("name", [name for name in SOURCES if not within(name, SURFACES)])
def test_only_surfaces_import_surfaces(name: str) -> None:
    surfaces = {found.target for found in IMPORTS[name] if found.ours and within(found.target, SURFACES)}
    assert not surfaces, f"{name} may not import {sorted(surfaces)}."


def test_modules_do_not_load_each_other_in_a_circle() -> None:
    graph = {
        name: {found.target for found in found_there if found.ours and found.when_loading}
        for name, found_there in IMPORTS.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle in its message


@pytest.mark.parametrize("name", SOURCES)
def test_optional_packages_are_imported_where_they_are_used(name: str) -> None:
    early = {found.target for found in IMPORTS[name] if found.when_loading} & set(OPTIONAL_PACKAGES)
    early -= {ADAPTERS.get(name)}
    assert not early, f"{name} must import {sorted(early)} inside the function that needs it."


@pytest.mark.parametrize("name", SOURCES)
def test_adapters_to_optional_packages_are_loaded_only_where_they_are_asked_for(name: str) -> None:
    loaded = loaded_with(name) & set(ADAPTERS) - {name}
    assert not loaded, f"{name} must import {sorted(loaded)} inside the function that needs it."


@pytest.mark.parametrize("name", SOURCES)
def test_library_raises_and_does_not_assert(name: str) -> None:
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert not lines, f"{name} asserts in lines {lines}: raise an error that names the argument and the remedy."


@pytest.mark.parametrize("name", SOURCES)
def test_files_stay_short(name: str) -> None:
    lines = len(SOURCES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= 450, f"{SOURCES[name].relative_to(ROOT)} has {lines} lines: split it by nouns."


def test_no_module_is_called_utils() -> None:
    shapeless = [
        name for name in SOURCES if name.split(".")[-1].strip("_") in ("utils", "util", "helpers", "misc", "common")
    ]
    assert not shapeless, f"{shapeless} do not say what they hold."


@pytest.mark.parametrize("verb", ["train", "generate"])
def test_root_scripts_only_call_the_command_line(verb: str) -> None:
    tree = ast.parse((ROOT / f"{verb}.py").read_text(encoding="utf-8"))
    docstring, *imports, call = tree.body
    assert isinstance(docstring, ast.Expr)
    assert [ast.unparse(node) for node in imports] == ["import sys", "from diffusion_mlm.cli import main"]
    assert ast.unparse(call) == f"if __name__ == '__main__':\n    sys.exit(main(['{verb}', *sys.argv[1:]]))"
