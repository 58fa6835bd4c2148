"""The code that a repository on the Hub carries: one file made of the parts of this package that generation needs.

Whoever has transformers alone can then generate from such a repository. The file is not kept anywhere: it is made from
the sources of the package that pushes, so it cannot be older than they are.
"""

import ast
from dataclasses import dataclass, field
from functools import cache, cached_property
from graphlib import TopologicalSorter
from pathlib import Path

TASK = "text-diffusion"
CODE_FILE = "text_diffusion.py"
# What config.json says, so that `pipeline(TASK, model=REPOSITORY, trust_remote_code=True)` finds the class.
CUSTOM_PIPELINES = {
    TASK: {"impl": "text_diffusion.TextDiffusionPipeline", "pt": ["AutoModelForMaskedLM"], "type": "text"}
}
# Architectures that transformers lacks: a repository carries their modules as they are and says where classes are.
ARCHITECTURES = {
    "eurobert-qk-norm": {"AutoConfig": "qk_norm.QkNormConfig", "AutoModelForMaskedLM": "qk_norm.QkNormForMaskedLM"},
    "time-conditioned-masked-lm": {
        "AutoConfig": "time_conditioning.TimeConditionedConfig",
        "AutoModelForMaskedLM": "time_conditioning.TimeConditionedMaskedLM",
    },
}
ARCHITECTURE_FILES = ("qk_norm.py", "time_conditioning.py")  # the second imports the first

_PACKAGE = Path(__file__).parent
_ROOT = ("pipeline", "TextDiffusionPipeline")

_HEADER = '''"""Text generation by masked diffusion in one file, for repositories on the Hub.

    from transformers import pipeline

    pipe = pipeline("text-diffusion", model=REPOSITORY, trust_remote_code=True)
    print(pipe("Once upon a time", seed=0)[0]["generated_text"])

Made from diffusion_mlm {version} (Apache-2.0) by diffusion_mlm/remote_code.py: change the package, not this file. It
holds whatever `TextDiffusionPipeline` needs and reads nothing but the model's own repository.
"""
'''


@dataclass(frozen=True)
class _Definition:
    """A top-level statement that binds a name: its text with the comment above it, and where its names stand."""

    text: str
    first_line: int
    node: ast.stmt

    @cached_property
    def names(self) -> list[ast.Name]:
        return [node for node in ast.walk(self.node) if isinstance(node, ast.Name)]


@dataclass
class _Module:
    """A module of the package.

    Attributes:
        definitions (`dict[str, _Definition]`): by the name that each binds.
        ours (`dict[str, tuple[str, str]]`): imported name -> module of the package and name there.
        others (`dict[str, tuple[str, str]]`): imported name -> module of another package ("" for the module itself)
            and what is imported from it.
    """

    name: str
    summary: str
    definitions: dict[str, _Definition] = field(default_factory=dict)
    ours: dict[str, tuple[str, str]] = field(default_factory=dict)
    others: dict[str, tuple[str, str]] = field(default_factory=dict)


def architecture_code(model_type: str) -> tuple[dict[str, dict[str, str]], dict[str, bytes]]:
    """What config.json is to say, and the files of the code; nothing for an architecture of transformers."""
    if model_type not in ARCHITECTURES:
        return {}, {}
    files = {name: (_PACKAGE / name).read_bytes() for name in ARCHITECTURE_FILES}
    return {"auto_map": ARCHITECTURES[model_type]}, files


@cache
def remote_source() -> str:
    """The text of the file.

    Raises:
        RuntimeError: the sources hold something that this cannot merge; a mistake in the package, not of the user.
    """
    reached = _reach(*_ROOT)
    order = [name for name in _order(reached) if name in reached]
    final = _final_names(reached, order)
    imports: dict[str, tuple[str, str]] = {}
    sections: list[tuple[str, list[str]]] = []
    for module in (_read(name) for name in order):
        renamed = {local: final[target] for local, target in module.ours.items() if target in final}
        renamed |= {local: final[module.name, local] for local in reached[module.name]}
        texts = []
        for name, definition in module.definitions.items():
            if name not in reached[module.name]:
                continue
            for local in {node.id for node in definition.names} & set(module.others):
                if imports.setdefault(local, module.others[local]) != module.others[local]:
                    raise RuntimeError(f"{local} is imported in two ways; {module.name}.py has one of them.")
            text = _renamed(definition, {old: new for old, new in renamed.items() if old != new}, module.name)
            if text not in texts and not any(text in earlier for _, earlier in sections):  # such as `logger = ...`
                texts.append(text)
        sections.append((f"# {module.name.replace('.', '/')}.py: {module.summary}", texts))
    from . import __version__

    lines = [_HEADER.format(version=__version__), *_import_statements(set(imports.values())), ""]
    for title, texts in sections:
        lines += ["", title, ""]
        for before, text in zip(["", *texts], texts, strict=False):
            lines += ["" if _is_short(before) and _is_short(text) else "\n", text] if before else [text]
    return "\n".join(lines) + "\n"


def _is_short(text: str) -> bool:
    return not text.lstrip("#").startswith(("@", "class ", "def ")) and "\n" not in text


def _import_statements(imports: set[tuple[str, str]]) -> list[str]:
    whole = [f"import {name}" for module, name in sorted(imports) if not module]
    parts: dict[str, list[str]] = {}
    for module, name in sorted(imports):
        if module:
            parts.setdefault(module, []).append(name)
    for module, names in parts.items():
        lines = [f"from {module} import (", *(f"    {name}," for name in names), ")"]
        whole.append("\n".join(lines) if len(names) > 4 else f"from {module} import {', '.join(names)}")
    return whole


@cache
def _read(name: str) -> _Module:
    *package, _ = parts = name.split(".")
    source = _PACKAGE.joinpath(*parts).with_suffix(".py").read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    module = _Module(name, (ast.get_docstring(tree) or "").splitlines()[0])
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                module.others[alias.asname or alias.name.split(".")[0]] = ("", ast.unparse(alias))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                local = alias.asname or alias.name
                if node.level:
                    above = package[: len(package) - node.level + 1]
                    module.ours[local] = (".".join([*above, *filter(None, [node.module])]), alias.name)
                else:
                    module.others[local] = (node.module or "", ast.unparse(alias))
        else:
            for bound in _bound_by(node):
                module.definitions[bound] = _definition(node, lines)
    return module


def _bound_by(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = (
        node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    )
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _definition(node: ast.stmt, lines: list[str]) -> _Definition:
    decorators = node.decorator_list if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
    first = min([node.lineno, *(of.lineno for of in decorators)]) - 1
    while first > 0 and lines[first - 1].startswith("#"):
        first -= 1
    return _Definition("\n".join(lines[first : node.end_lineno]), first + 1, node)


def _reach(module: str, name: str) -> dict[str, set[str]]:
    """The names of each module that the root needs, directly or not."""
    reached: dict[str, set[str]] = {}
    waiting = [(module, name)]
    while waiting:
        module, name = waiting.pop()
        read = _read(module)
        if name in reached.setdefault(module, set()):
            continue
        if name in read.ours:  # passed on from another module
            waiting.append(read.ours[name])
            continue
        if name not in read.definitions:
            raise RuntimeError(f"{module}.py does not define {name}.")
        definition = read.definitions[name]
        for node in ast.walk(definition.node):
            if isinstance(node, ast.ImportFrom) and node.level:
                raise RuntimeError(f"{name} of {module}.py imports from the package inside a function.")
        reached[module].add(name)
        used = {node.id for node in definition.names}
        waiting += [(module, other) for other in used if other in read.definitions]
        waiting += [read.ours[other] for other in used if other in read.ours]
    return {module: names for module, names in reached.items() if names}


def _order(reached: dict[str, set[str]]) -> list[str]:
    """Modules after those they import; sorted besides, for the file may not depend on how Python hashes."""
    graph = {}
    for name in sorted(reached):
        graph[name] = sorted({target for target, _ in _read(name).ours.values() if target in reached})
    return list(TopologicalSorter(graph).static_order())


def _final_names(reached: dict[str, set[str]], order: list[str]) -> dict[tuple[str, str], str]:
    """What each definition is called in the file: as before, unless modules use the name for different things."""
    texts: dict[str, set[str]] = {}
    for module in order:
        for name in reached[module]:
            texts.setdefault(name, set()).add(_read(module).definitions[name].text)
    final = {}
    for module in order:
        for name in reached[module]:
            clashes = len(texts[name]) > 1
            final[module, name] = f"_{module.replace('.', '_')}_{name.strip('_')}" if clashes else name
    for module in order:  # names that a module passes on, such as `DenoisingStep` of `denoising`
        for local, target in _read(module).ours.items():
            if target in final:
                final.setdefault((module, local), final[target])
    return final


def _renamed(definition: _Definition, names: dict[str, str], module: str) -> str:
    """The text with global names replaced; a name that is also a local one anywhere in it would be mistaken."""
    used = names.keys() & {node.id for node in definition.names}
    own = _bound_by(definition.node)
    for node in ast.walk(definition.node):
        bound = node.arg if isinstance(node, ast.arg) else None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in own:
            bound = node.id
        if bound in used:
            raise RuntimeError(f"{module}.py uses {bound} for something of its own in {own[0]}: rename one of them.")
    lines = definition.text.encode().split(b"\n")
    places = [(node.lineno, node.col_offset, node.id) for node in definition.names if node.id in used]
    if isinstance(definition.node, (ast.FunctionDef, ast.ClassDef)) and definition.node.name in names:
        line = definition.node.lineno
        at = lines[line - definition.first_line].index(definition.node.name.encode())
        places.append((line, at, definition.node.name))
    for line, column, name in sorted(set(places), reverse=True):
        text = lines[line - definition.first_line]
        lines[line - definition.first_line] = text[:column] + names[name].encode() + text[column + len(name) :]
    return b"\n".join(lines).decode()
