"""The recipes of `from_scratch.py`: files that hold a system's settings and ours, each in several sizes.

A recipe is a YAML file with

* `system`, `source`, `reported`, `differs`: what it is, where it comes from, what its authors report, and what of it
  is not reproduced;
* `options`, `sizes`, `settings`: options of `train.py`, those of a size going over those of all, those of a setting
  (`theirs`, `ours`) over both;
* in each setting `generation`: settings of `generate`, one or several, each with a name.

Options below the name of a condition hold if it does: that of a size, `file` (text from a file, no model named),
`model` (a model is named), `stories` (neither), `characters` (asked for).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).parent / "recipes" / "from_scratch"
CONDITIONS = ("file", "model", "stories", "characters")


@dataclass(frozen=True)
class Arm:
    """What one training needs: a recipe in one size with one of its settings.

    Attributes:
        options (`dict`): of `train.py`, by name.
        low_rates (`dict`, *optional*): `share` of the steps that come first and mask at the `levels` alone.
        generation (`dict`): settings of `generate` by name.
        trace (`str`, *optional*): also the steps of one text, as `gif` or `html`.
    """

    recipe: str
    size: str
    setting: str
    options: dict[str, Any]
    low_rates: dict[str, Any] | None
    generation: dict[str, dict[str, Any]]
    trace: str | None

    def arguments(self, **changes: Any) -> list[str]:
        """The options, some of them changed, as a command line of `train.py`."""
        words: list[str] = []
        for name, value in {**self.options, **changes}.items():
            if isinstance(value, list):
                words += [f"--{name}", *map(str, value)]
            elif value is not None:
                words.append(f"--{name}={value}")
        return words


@dataclass(frozen=True)
class Recipe:
    """A file of `RECIPES`."""

    name: str
    contents: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> "Recipe":
        """The recipe called `name`.

        Raises:
            ValueError: there is none.
        """
        path = RECIPES / f"{name}.yaml"
        if not path.is_file():
            known = sorted(found.stem for found in RECIPES.glob("*.yaml"))
            raise ValueError(f"There is no recipe {name!r}: choose one of {', '.join(known)}.")
        return cls(name, yaml.safe_load(path.read_text(encoding="utf-8")))

    @property
    def sizes(self) -> list[str]:
        return list(self.contents["sizes"])

    @property
    def settings(self) -> list[str]:
        return list(self.contents["settings"])

    @property
    def facts(self) -> dict[str, str]:
        """What is written into a row: the system, where it comes from, and what its authors report."""
        return {name: self.contents[name] for name in ("system", "source", "reported", "differs")}

    def arm(self, size: str, setting: str, conditions: tuple[str, ...], **changes: Any) -> Arm:
        """One arm under the `conditions` that hold; `changes` are options that go over all.

        Raises:
            ValueError: the recipe has no such size or setting.
        """
        for what, name, known in (("size", size, self.sizes), ("settings", setting, self.settings)):
            if name not in known:
                raise ValueError(f"`--{what}` of {self.name} must be of {', '.join(known)}, not {name!r}.")
        options: dict[str, Any] = {}
        layers = (self.contents["options"], self.contents["sizes"][size], self.contents["settings"][setting])
        for layer in layers:
            flat = {name: value for name, value in layer.items() if name not in (*self.sizes, *CONDITIONS)}
            options |= flat
            for condition in (size, *conditions):
                options |= layer.get(condition, {})
        generation, low_rates = options.pop("generation"), options.pop("low_rates", None)
        options |= {name: value for name, value in changes.items() if value is not None}
        return Arm(self.name, size, setting, options, low_rates, generation, self.contents.get("trace"))
