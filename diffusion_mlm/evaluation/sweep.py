"""Which settings of generation are worth their forwards: combinations, their quality, and the frontier of the two."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..generation import generate_each
from ..generation_config import DiffusionGenerationConfig
from ..reveal_plan import require_steps_for_blocks

Settings = dict[str, Any]  # of `DiffusionGenerationConfig`; what is left out is as in the preset `default`

_PARAMETER_OF_SAMPLING = {"topk": "top_k", "nucleus": "top_p", "min_p": "min_p", "typical": "typical_p"}


@dataclass(frozen=True)
class Measured:
    """How good a set of texts is.

    Attributes:
        quality (`float`): in [0, 1]; 1 is as good as real text in every figure.
        collapsed (`bool`): likelier and less varied than real text at once: such text is never the best.
        figures (`dict`): what the quality is made of, by name; None where there is nothing to measure.
    """

    quality: float
    collapsed: bool
    figures: dict[str, Any]


class Quality(Protocol):
    """Measures sets of texts.

    Attributes:
        columns (`tuple[str, ...]`): the figures that a table shows.
        reference (`dict`): these of real text.
        description (`str`): what the quality is, in a sentence.
    """

    columns: tuple[str, ...]
    description: str
    reference: dict[str, float]

    def measure(self, texts: Sequence[str]) -> Measured: ...


@dataclass(frozen=True)
class SweepPoint:
    """A setting that was tried.

    Attributes:
        settings (`dict`): the setting.
        forwards (`float`): calls of the model per sample, on the mean.
        quality, collapsed, figures: see `Measured`.
        samples (`list[str]`): the first texts.
    """

    settings: Settings
    forwards: float
    quality: float
    collapsed: bool
    figures: dict[str, Any]
    samples: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON writes and reads it."""
        return asdict(self)


# --- the grid ---


@dataclass(frozen=True)
class SettingsGrid:
    """Settings to try.

    Attributes:
        settings (`list[dict]`): in order.
        num_impossible (`int`): combinations that contradict themselves, left out.
        num_same (`int`): combinations that come to the same as an earlier one, left out.
    """

    settings: list[Settings]
    num_impossible: int
    num_same: int


def settings_grid(
    values: Mapping[str, Sequence[Any]],
    presets: Sequence[str] = (),
    base: DiffusionGenerationConfig | None = None,
    num_new: int | None = None,
) -> SettingsGrid:
    """Presets as they are, then every combination of the values.

    Args:
        values (mapping of sequences): the values of each setting. None is for "not set", as in `adaptive`.
        presets (sequence of `str`)
        base (`DiffusionGenerationConfig`, *optional*): what decides the length of texts.
        num_new (`int`, *optional*): tokens that are generated at once, if known: more combinations are then seen to
            be impossible, or the same.

    Raises:
        ValueError: a value is in no possible combination, or there is nothing to try.
    """
    combinations = [{"preset": preset} for preset in presets]
    if values:
        of_all = itertools.product(*values.values())
        combinations += [dict(zip(values, chosen, strict=True)) for chosen in of_all]
    possible: dict[tuple[Any, ...], Settings] = {}
    used: set[tuple[str, Any]] = set()
    reasons: dict[tuple[str, Any], str] = {}
    num_impossible = num_same = 0
    for combination in combinations:
        settings = {name: value for name, value in combination.items() if value is not None}
        try:
            config = config_of(settings, base)
            require_steps_for_blocks(config.steps, num_new or 0, config.to_block_length())
        except ValueError as error:
            num_impossible += 1
            for item in combination.items():
                reasons.setdefault(item, str(error))
            continue
        used |= set(combination.items())
        effect = _effect(config, num_new)
        num_same += effect in possible
        possible.setdefault(effect, settings)
    for (name, value), reason in reasons.items():
        if (name, value) not in used:
            raise ValueError(f"`{name}` {value!r} is in no possible combination: {reason}")
    if not possible:
        raise ValueError("There is no setting to try: name presets, or values of settings.")
    return SettingsGrid(list(possible.values()), num_impossible, num_same)


def config_of(settings: Settings, base: DiffusionGenerationConfig | None = None) -> DiffusionGenerationConfig:
    """What a setting stands for: it over its preset (`default` if it names none), with lengths as in `base`.

    Raises:
        ValueError: the setting is impossible.
    """
    base = DiffusionGenerationConfig() if base is None else base
    return base.updated(**{"preset": "default", **settings})


def _effect(config: DiffusionGenerationConfig, num_new: int | None) -> tuple[Any, ...]:
    """What decides the text: settings without effect, such as the nucleus of greedy sampling, are left out."""
    sampling, remasking = config.to_sampling(), config.to_remasking()
    blocks, adaptive = config.to_block_length(), config.to_adaptive()
    blocks = None if num_new is not None and blocks is not None and blocks >= num_new else blocks
    # Where each token has a step of its own, schedules have nothing to plan.
    if config.steps is None:
        one_by_one = config.steps_per_token >= 1
    else:
        one_by_one = num_new is not None and config.steps >= num_new and blocks is None and adaptive is None
    plan: tuple[Any, ...] = (config.schedule, config.steps, config.steps is None and config.steps_per_token)
    parameter = _PARAMETER_OF_SAMPLING.get(sampling.method)
    tokens = (sampling.method, parameter and getattr(sampling, parameter), config.temperature, config.temperature_end)
    others: tuple[str, ...] = ("order", "order_noise", "order_from", "min_gap", "defer_end", "guidance_scale")
    others += ("repetition_penalty", "reveal", "final_pass", "sampler")
    return (
        () if one_by_one and config.reveal == "planned" and not remasking.revises else plan,
        () if sampling.is_greedy else tokens,
        remasking if remasking.revises else None,
        blocks,
        adaptive,
        config.no_repeat_ngram_size,
        *(getattr(config, name) for name in others),
    )


# --- what a setting is worth ---


def measure_setting(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    quality: Quality,
    prefixes: Sequence[str],
    base: DiffusionGenerationConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> SweepPoint:
    """Writes `base.num_return_sequences` texts for each prefix and measures them; every setting gets the same seeds.

    Raises:
        ValueError: see `generation.generate`.
        NonFiniteLogitsError: see there.
    """
    config = config_of(settings, base)
    written = generate_each(model, tokenizer, prefixes, config, seed=seed, progress=progress)
    samples = [sample for sample, _ in written]
    measured = quality.measure([sample.text for sample in samples])
    return SweepPoint(
        settings=settings,
        forwards=sum(sample.num_forwards for sample in samples) / len(samples),
        quality=measured.quality,
        collapsed=measured.collapsed,
        figures=measured.figures,
        samples=[sample.text for sample in samples[:2]],
    )


def frontier(points: Sequence[SweepPoint]) -> list[int]:
    """Places of the points that no other one beats, by forwards.

    A point beats another if it needs no more forwards and has no less quality, and is better in one of them. Points
    that have collapsed, or have no quality at all, neither beat nor stand on the frontier.
    """
    places: list[int] = []
    best = 0.0
    for _, group in _by_forwards(points):
        highest = max(points[place].quality for place in group)
        if highest > best:
            places += [place for place in group if points[place].quality == highest]
            best = highest
    return places


def _by_forwards(points: Sequence[SweepPoint]) -> Iterator[tuple[float, list[int]]]:
    sound = [place for place, point in enumerate(points) if not point.collapsed]
    for forwards, group in itertools.groupby(
        sorted(sound, key=lambda place: points[place].forwards), key=lambda place: points[place].forwards
    ):
        yield forwards, list(group)


def names_of(points: Sequence[SweepPoint]) -> tuple[list[str], str]:
    """A name for each setting, of what is not the same in all of them; and what is."""
    same = [
        (name, value)
        for name, value in (points[0].settings if len(points) > 1 else {}).items()
        if all(name in point.settings and point.settings[name] == value for point in points)
    ]
    names = [_listed(item for item in point.settings.items() if item not in same) for point in points]
    return names, _listed(same)


def _listed(settings: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings)


def best_place(points: Sequence[SweepPoint], max_forwards: float | None = None) -> int:
    """The place of the highest quality among points of at most `max_forwards` that have not collapsed.

    Of equal ones the one with the fewest forwards, then the first.

    Raises:
        ValueError: there is none.
    """
    places = frontier(points)
    within = [place for place in places if max_forwards is None or points[place].forwards <= max_forwards]
    if within:
        return max(within, key=lambda place: points[place].quality)
    if not places:
        raise ValueError(
            "No setting is the best: the texts of each have collapsed or have no quality. Try more `steps`, other "
            "temperatures, or a model that was trained longer."
        )
    raise ValueError(
        f"`max_forwards` is {max_forwards:g}, and with so few no setting writes anything of quality (the fewest are "
        f"{points[places[0]].forwards:g}): raise it, or try other settings."
    )
