"""A report as Markdown: tables with a column for each checkpoint, and samples side by side."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .report import CheckpointReport, EvaluationReport

Cell = Callable[[CheckpointReport], str]

_ESTIMATES = {
    "curve": "the bound, from the integrated curve",
    "importance": "importance-weighted bound",
    "chain": "fixed order, exact",
}
# Figures of samples that a floor belongs to: what they are called, and how they are printed.
_MEASURES = (
    ("judge_bits_per_character", "judge, bits per character", ".3f"),
    ("judge_perplexity", "judge, perplexity", ".4g"),
    ("valid_share", "stories that the grammar accepts", ".1%"),
    ("exact_nats_per_token", "exact -log p of these, nats per token", ".3f"),
)
_FIGURES = (
    ("words_per_text", "words per text", ".1f"),
    ("finished_share", "ended by themselves", ".0%"),
    ("word_entropy_nats", "entropy of the words of a text, nats", ".3f"),
    ("distinct_3", "distinct 3-grams", ".3f"),
    ("rep_4", "repeated 4-grams in a text", ".3f"),
    ("self_bleu_4", "self-BLEU", ".3f"),
    ("num_duplicates", "texts that are the same as an earlier one", "d"),
    ("longest_copy_characters", "longest copy from the training text, characters", "d"),
    ("copy_share", "texts that copy 50 characters", ".0%"),
)


def report_markdown(report: EvaluationReport, plots: Sequence[str] = (), notes: Iterable[str] = ()) -> str:
    """The report; `plots` are names of files beside it, `notes` sentences about what is missing from it."""
    shown = {name.rpartition(".")[0]: f"\n![{name.rpartition('.')[0].replace('_', ' ')}]({name})" for name in plots}
    parts = [f"# Evaluation of {_and([_code(of.name) for of in report.checkpoints])}", _about(report)]
    parts += [f"> {note}" for note in notes]
    parts += ["## Likelihood", _likelihood(report)]
    if len({of.likelihood["num_tokens"] for of in report.checkpoints}) > 1:
        parts.append("Texts are not the same tokens to all of them: compare bits per byte, not nats per token.")
    parts += [shown.get("quality_by_forwards", ""), _by_forwards(report)]
    if any(of.loss_by_mask_rate for of in report.checkpoints):
        parts += ["## Loss by mask rate", "Nats per masked token.", shown.get("loss_by_mask_rate", "")]
        parts += [_loss_by_mask_rate(report), "## Calibration", _CALIBRATION, shown.get("calibration", "")]
        parts += [_calibration(of) for of in report.checkpoints if of.calibration]
    if any(of.samples for of in report.checkpoints):
        parts += ["## Samples", _samples(report)]
        if report.warnings:
            parts.append("**Beware**\n\n" + "\n".join(f"* {_inline(warning)}" for warning in report.warnings))
        parts += [_samples_by_steps(report), "### Side by side", _side_by_side(report)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


_CALIBRATION = (
    "At each mask rate: how often the likeliest token is right, and how sure the model is of it; the expected "
    "calibration error, with what a perfectly calibrated model shows by chance on so many tokens; the cross-entropy, "
    "and what a temperature T, fitted on these tokens, makes of it. T above 1: overconfident."
)


def _about(report: EvaluationReport) -> str:
    of, settings = report.checkpoints[0].likelihood, report.settings
    source = report.source.get("text")
    size = f"{_code(source)}: " if source else ""
    size += f"{settings['num_texts']:,} texts"
    size += f" of {of['num_bytes']:,} bytes" if of["num_bytes"] is not None else ""
    packed = "cut, joined, into rows" if settings["packing"] == "packed" else "each in a row of its own"
    scored = "are scored" if any(of.likelihood["scores_end"] for of in report.checkpoints) else "are given"
    bounds = f" Bounds from {settings['draws']} masks per row, seed {settings['seed']}, the same for all models."
    bounds = bounds if any(of.kind == "masked" for of in report.checkpoints) else ""
    text = (
        f"{size}, {packed} of {settings['max_length']} tokens; ends of texts {scored}. Intervals of "
        f"{settings['confidence']:.0%} are over {settings['interval_over']}.{bounds} Measured on "
        f"{report.device}, with diffusion-mlm {report.version}."
    )
    if report.exact is not None:
        text += (
            f" These are stories of the built-in language, whose exact value, ends included, is "
            f"{report.exact['nats_per_token']:.4f} nats per token: no model is below it, but by chance."
        )
    left_out = report.source.get("left_out")
    return text + (f"\n\nLeft out: {'; '.join(left_out)}." if left_out else "")


# Tables


def _table(report: EvaluationReport, rows: Iterable[tuple[str, Cell]]) -> str:
    """A column for each checkpoint; a row that is empty is left out."""
    lines = [
        _row(["", *(_code(of.name) for of in report.checkpoints)]),
        "|---" + "|---:" * len(report.checkpoints) + "|",
    ]
    for title, cell in rows:
        cells = [cell(of) for of in report.checkpoints]
        if any(cells):
            lines.append(_row([title, *cells]))
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _likelihood(report: EvaluationReport) -> str:
    def of_likelihood(name: str, form: str) -> Cell:
        return lambda of: _with_interval(of.likelihood, name, form)

    def of_difference(name: str) -> Cell:
        return lambda of: _with_interval(of.difference, name, "+.4f") if of.difference is not None else ""

    def of_other(name: str) -> Cell:
        return lambda of: _with_interval(of.likelihood["others"].get(name), "nats_per_token", ".4f")

    def above_exact(of: CheckpointReport) -> str:
        if report.exact is None or report.exact["num_tokens"] != of.likelihood["num_tokens"]:
            return ""
        return format(of.likelihood["nats_per_token"] / report.exact["nats_per_token"] - 1, "+.1%")

    def error(of: CheckpointReport) -> str:
        last = of.calibration[-1] if of.calibration else None
        return f"{last['calibration_error']:.3f} (chance {last['error_by_chance']:.3f})" if last else ""

    first = _code(report.checkpoints[0].name)
    mixed = len({of.likelihood["scores_end"] for of in report.checkpoints}) > 1
    return _table(
        report,
        [
            ("model", lambda of: f"{of.kind}, {of.parameters:,} parameters"),
            ("-log p is", lambda of: "exact" if of.likelihood["is_exact"] else "at most this"),
            ("nats per token", of_likelihood("nats_per_token", ".4f")),
            ("bits per byte", of_likelihood("bits_per_byte", ".4f")),
            ("perplexity per token", of_likelihood("perplexity", ".4g")),
            (f"nats per token above {first}", of_difference("nats_per_token")),
            (f"bits per byte above {first}", of_difference("bits_per_byte")),
            ("above the exact value", above_exact),
            *((title, of_other(name)) for name, title in _ESTIMATES.items()),
            ("calibration error, all mask rates", error),
            ("fitted temperature", lambda of: _number(of.calibration[-1]["temperature"]) if of.calibration else ""),
            ("ends of texts", lambda of: ("given", "scored")[of.likelihood["scores_end"]] if mixed else ""),
            ("tokens scored", lambda of: f"{of.likelihood['num_tokens']:,}"),
            ("unknown tokens, not scored", lambda of: f"{of.likelihood['num_unknown'] or ''}"),
            ("texts its tokens do not give back", lambda of: f"{of.likelihood['num_altered'] or ''}"),
            ("seconds for all this", lambda of: f"{of.seconds:.1f}"),
        ],
    )


def _by_forwards(report: EvaluationReport) -> str:
    def in_steps(steps: int) -> Cell:
        return lambda of: next(
            (_with_interval(point, "nats_per_token", ".4f") for point in of.by_forwards if point["steps"] == steps), ""
        )

    def whole(of: CheckpointReport) -> str:
        (point,) = [point for point in of.by_forwards if point["steps"] is None]
        return f"{_with_interval(point, 'nats_per_token', '.4f')}, {point['forwards']:.0f} forwards"

    numbers = sorted({point["steps"] for of in report.checkpoints for point in of.by_forwards} - {None})
    if not numbers:
        return ""
    title = f"Nats per token of writing a row with so many forwards, by a {report.settings['schedule']} schedule:"
    return f"{title}\n\n" + _table(
        report, [*((f"{n} forwards", in_steps(n)) for n in numbers), ("a token each", whole)]
    )


def _loss_by_mask_rate(report: EvaluationReport) -> str:
    columns = [(_code(of.name), of.loss_by_mask_rate) for of in report.checkpoints if of.loss_by_mask_rate]
    if report.exact is not None and "loss_by_mask_rate" in report.exact:
        columns.append(("exact denoiser", report.exact["loss_by_mask_rate"]))
    points = [(title, {round(rate, 6): nats for rate, nats in of}) for title, of in columns]
    lines = [_row(["mask rate, up to", *(title for title, _ in points)]), "|---:" * (1 + len(points)) + "|"]
    for rate in sorted({rate for _, of in points for rate in of}):
        lines.append(_row([f"{rate:.2g}", *(f"{of[rate]:.3f}" if rate in of else "" for _, of in points)]))
    return "\n".join(lines)


def _calibration(of: CheckpointReport) -> str:
    lines = [
        f"{_code(of.name)}:\n",
        "| mask rate, up to | tokens | right | sure | calibration error | by chance | nats | T | nats at T | Brier |",
        "|---:" * 10 + "|",
    ]
    for at in of.calibration:
        rate = "all" if at["mask_rate"] is None else f"{at['mask_rate']:.1f}"
        numbers = (at["accuracy"], at["confidence"], at["calibration_error"], at["error_by_chance"], at["nats"])
        cells = [rate, f"{at['num_tokens']:,}", *(f"{x:.3f}" for x in numbers), _number(at["temperature"])]
        lines.append(_row([*cells, _number(at["nats_at_temperature"]), f"{at['brier']:.3f}"]))
    return "\n".join(lines)


def _samples(report: EvaluationReport) -> str:
    def of_set(kind: str, name: str, form: str) -> Cell:
        return lambda of: _formatted((of.samples or {}).get(kind, {}).get(name), form)

    def beside_real(name: str, form: str) -> Cell:
        def cell(of: CheckpointReport) -> str:
            generated, real = (of_set(kind, name, form)(of) for kind in ("generated", "real"))
            return f"{generated} (real text {real})" if generated and real else generated

        return cell

    rows: list[tuple[str, Cell]] = []
    for name, title, form in _MEASURES:
        rows.append((f"**{title}**", of_set("generated", name, form)))
        rows.append(("… of real text", of_set("real", name, form)))
        rows.append(("… of real text, words shuffled", of_set("shuffled", name, form)))
    rows += [(title, beside_real(name, form)) for name, title, form in _FIGURES]
    rows += [
        ("forwards per text", lambda of: _formatted((of.samples or {}).get("forwards_per_text"), ".1f")),
        ("seconds per text", lambda of: _formatted((of.samples or {}).get("seconds_per_text"), ".3f")),
    ]
    settings = report.settings
    prefix = f", each after {_code(settings['prefix'])}" if settings["prefix"] else ""
    judge = report.source.get("judge")
    judged = (
        f" Judged by {_code(judge)}; text that it finds likelier than real text is no better for it." if judge else ""
    )
    title = (
        f"{settings['num_samples']} texts of each, by its default settings{prefix}, {settings['batch_size']} rows at "
        f"a time. No figure means anything without that of real text, of the same lengths.{judged}"
    )
    return f"{title}\n\n{_table(report, rows)}"


def _samples_by_steps(report: EvaluationReport) -> str:
    points = [(of.name, point) for of in report.checkpoints if of.samples for point in of.samples["by_steps"]]
    forms = {**{name: (title, form) for name, title, form in (*_MEASURES, *_FIGURES)}}
    names = [name for name in forms if any(name in point for _, point in points)]
    if len(points) <= len(report.checkpoints):
        return ""
    head = ["", "steps", "forwards", "seconds", *(forms[name][0] for name in names)]
    lines = ["Quality against the number of forwards:\n", _row(head), "|---" + "|---:" * (len(head) - 1) + "|"]
    for label, point in points:
        steps = "default" if point["steps"] is None else str(point["steps"])
        spent = [f"{point['forwards_per_text']:.1f}", f"{point['seconds_per_text']:.3f}"]
        cells = [_code(label), steps, *spent, *(_formatted(point.get(name), forms[name][1]) for name in names)]
        lines.append(_row(cells))
    return "\n".join(lines)


def _side_by_side(report: EvaluationReport) -> str:
    texts = [(of.name, of.samples["texts"]) for of in report.checkpoints if of.samples]
    lines = []
    for place in range(max(len(of) for _, of in texts)):
        lines += [f"Sample {place + 1}\n", *(f"* {_code(name)}: {_code(of[place])}" for name, of in texts), ""]
    return "\n".join(lines)


# Words and numbers


def _with_interval(figures: dict[str, Any] | None, name: str, form: str) -> str:
    if figures is None or figures.get(name) is None:
        return ""
    interval = figures.get("confidence_interval" if name == "nats_per_token" else f"{name}_interval")
    interval = figures.get(f"{name}_interval", interval)
    shown = f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
    return f"{figures[name]:{form}}{shown}"


def _formatted(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _number(value: float | None) -> str:
    return _formatted(value, ".3f") or "–"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _code(text: str) -> str:
    """As code on one line, line breaks shown, so that no Markdown in it comes alive."""
    shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    shown = shown.replace("`", "'").replace("|", "¦").replace("\n", " ⏎ ").strip()
    return f"`{shown}`" if shown else "(nothing)"


def _inline(text: str) -> str:
    return " ".join(text.split())
