"""The plots of a report: loss by mask rate, calibration by mask rate, quality against the number of forwards."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .report import EvaluationReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: colours that colour-blind readers tell apart. Markers differ too, for grey print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#707070"
_REAL: dict[str, Any] = {"linewidth": 1, "linestyle": "--"}
_MEASURES = {
    "valid_share": "share of stories the grammar accepts",
    "judge_bits_per_character": "judge, bits per character",
}
PLOTS = ("loss_by_mask_rate.png", "calibration.png", "quality_by_forwards.png")


def require_matplotlib() -> None:
    """Raises ImportError, naming the extra to install, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("Plots need matplotlib: run `pip install 'diffusion-mlm[viz]'`.") from error


def draw_report(report: EvaluationReport) -> "dict[str, Figure]":
    """The plots there is something for, by the name of their file.

    Raises:
        ImportError: matplotlib is missing.
    """
    require_matplotlib()
    has_masked = any(of.loss_by_mask_rate for of in report.checkpoints)
    found = {PLOTS[0]: _loss(report), PLOTS[1]: _calibration(report)} if has_masked else {}
    return found | {PLOTS[2]: _by_forwards(report)}


def _panels(*titles: str) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(titles), 3.9), dpi=150, layout="constrained", facecolor="white")
    panels = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=11, loc="left")
        panel.grid(color="#e4e4e4", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
    return figure, panels


def _style(place: int, **others: Any) -> dict[str, Any]:
    colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
    return {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.6, **others}


def _legend(figure: "Figure", panels: "Iterable[Axes]") -> None:
    """One legend below all panels, each label once."""
    lines = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    legend = figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=min(len(lines), 4), frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a `$` in a name is no formula


def _loss(report: EvaluationReport) -> "Figure":
    figure, (panel,) = _panels("Loss by mask rate")
    for place, of in enumerate(report.checkpoints):
        if of.loss_by_mask_rate:
            panel.plot(*zip(*of.loss_by_mask_rate, strict=True), label=of.name, **_style(place))
    exact = (report.exact or {}).get("loss_by_mask_rate")
    if exact:
        panel.plot(*zip(*exact, strict=True), color=_GREY, linestyle=":", linewidth=1.8, label="exact denoiser")
    panel.set(xlabel="mask rate, up to", ylabel="nats per masked token", xlim=(0, 1.03), ylim=(0, None))
    _legend(figure, [panel])
    return figure


def _calibration(report: EvaluationReport) -> "Figure":
    figure, (errors, temperatures) = _panels("Calibration error", "Fitted temperature")
    for place, of in enumerate(report.checkpoints):
        points = [at for at in of.calibration if at["mask_rate"] is not None]
        if not points:
            continue
        rates = [at["mask_rate"] for at in points]
        errors.plot(rates, [at["calibration_error"] for at in points], label=of.name, **_style(place))
        by_chance = _style(place, linestyle=":", marker=None, linewidth=1.2)
        errors.plot(rates, [at["error_by_chance"] for at in points], **by_chance)
        fitted = [(at["mask_rate"], at["temperature"]) for at in points if at["temperature"] is not None]
        if fitted:
            temperatures.plot(*zip(*fitted, strict=True), label=of.name, **_style(place))
    errors.set(xlabel="mask rate, up to  (dotted: by chance)", ylabel="expected calibration error", ylim=(0, None))
    temperatures.axhline(1, color=_GREY, linewidth=1)
    temperatures.set(xlabel="mask rate, up to", ylabel="T (above 1: overconfident)")
    for panel in (errors, temperatures):
        panel.set_xlim(0, 1.03)
    _legend(figure, [errors])
    return figure


def _by_forwards(report: EvaluationReport) -> "Figure":
    has_bytes = all(of.likelihood["bits_per_byte"] is not None for of in report.checkpoints)
    name, unit = ("bits_per_byte", "bits per byte") if has_bytes else ("nats_per_token", "nats per token")
    points = [point for of in report.checkpoints if of.samples for point in of.samples["by_steps"]]
    measures = [measure for measure in _MEASURES if any(measure in point for point in points)]
    figure, panels = _panels("Likelihood of writing a row", *("Samples (ring: default settings)" for _ in measures))
    for place, of in enumerate(report.checkpoints):
        line = sorted((point["forwards"], point[name]) for point in of.by_forwards)
        panels[0].plot(*zip(*line, strict=True), label=of.name, **_style(place, **_of_kind(of.kind)))
    panels[0].set_ylabel(f"{unit}, less is better")
    for panel, measure in zip(panels[1:], measures, strict=True):
        _draw_samples(panel, report, measure)
    for place, panel in enumerate(panels):
        panel.set_xscale("log", base=2)
        panel.set_xlabel("forwards per text" if place else "forwards per row")
        panel.xaxis.set_major_formatter("{x:g}")
    _legend(figure, panels)
    return figure


def _draw_samples(panel: "Axes", report: EvaluationReport, name: str) -> None:
    for place, of in enumerate(report.checkpoints):
        if of.samples is None:
            continue
        points = [point for point in of.samples["by_steps"] if name in point]
        line = sorted((point["forwards_per_text"], point[name]) for point in points)
        if line:
            panel.plot(*zip(*line, strict=True), label=of.name, **_style(place, **_of_kind(of.kind)))
        for point in points:
            if point["steps"] is None and of.kind == "masked":
                ring = {"color": "none", "markeredgecolor": _style(place)["color"], "markersize": 11, "marker": "o"}
                panel.plot([point["forwards_per_text"]], [point[name]], linestyle="none", **ring)
        if of.samples["real"].get(name) is not None:
            panel.axhline(of.samples["real"][name], color=_style(place)["color"], **_REAL)
    panel.plot([], [], color=_GREY, label="real text of the same lengths", **_REAL)
    panel.set_ylabel(_MEASURES[name])


def _of_kind(kind: str) -> dict[str, Any]:
    """A causal model is one point, drawn larger."""
    return {"markersize": 9, "linestyle": "none"} if kind == "causal" else {}
