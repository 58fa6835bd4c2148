"""What a user installs: names, versions, extras and the contents of the wheel."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import diffusion_mlm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(requirement.name): Version(next(iter(requirement.specifier)).version)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.split("#")[0].strip()
    for requirement in [Requirement(line.split("#")[0])]
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this working tree, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_public_names_are_exactly_the_listed_ones() -> None:
    listed = diffusion_mlm.__all__
    assert len(listed) == len(set(listed))
    assert {name for name in dir(diffusion_mlm) if name[0] != "_"} == {name for name in listed if name[0] != "_"}
    assert all(getattr(diffusion_mlm, name) is not None for name in listed)


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse(Path(diffusion_mlm.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    names = {(node.module, alias.name) for node in imports for alias in node.names}
    homes = {name: getattr(diffusion_mlm, name).__module__ for name in diffusion_mlm.__all__ if name[0] != "_"}
    assert {name for _, name in names} == set(homes)
    assert all(homes[name].startswith(f"diffusion_mlm.{module}") for module, name in names)


def test_version_is_the_same_everywhere() -> None:
    assert diffusion_mlm.__version__ == PROJECT["version"] == metadata.version("diffusion-mlm")


def test_types_are_published() -> None:
    assert (Path(diffusion_mlm.__file__).parent / "py.typed").is_file()


def test_every_dependency_of_core_and_dev_has_a_pin_it_accepts() -> None:
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, requirements):
        assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_extra_named_in_the_sources_exists() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "diffusion_mlm").rglob("*.py"))
    named = {extra for extras in re.findall(r"diffusion-mlm\[([\w, -]+)\]", sources) for extra in extras.split(",")}
    assert named <= set(PROJECT["optional-dependencies"])


def test_wheel_holds_the_whole_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "diffusion_mlm"
    in_tree = {path.relative_to(ROOT).as_posix() for path in package.rglob("*") if path.is_file()}
    in_tree = {name for name in in_tree if "__pycache__" not in name}
    in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert in_wheel == in_tree


def test_wheel_carries_licence_command_and_requirements(wheel: zipfile.ZipFile) -> None:
    info = f"diffusion_mlm-{PROJECT['version']}.dist-info"
    fields = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in fields
    assert "Requires-Python: >=3.11" in fields
    assert "Requires-Dist: torch>=2.9" in fields
    assert "diffusion-mlm = diffusion_mlm.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
