"""The part of a report that is about likelihood: plain values, differences in pairs, what fewer forwards cost."""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch

from .interval import ratio_estimate
from .likelihood_report import Estimate, LikelihoodReport


def paired_difference(
    first: LikelihoodReport, other: LikelihoodReport, texts: Sequence[str]
) -> dict[str, float | list[float] | None]:
    """By how much `other` is above `first`: per token where rows are the same, per byte where texts are.

    Both are scored on the same texts with the same masks, so that what makes a text hard goes out of the difference.
    """
    found: dict[str, Any] = dict.fromkeys(
        ("nats_per_token", "nats_per_token_interval", "bits_per_byte", "bits_per_byte_interval")
    )
    one, two = first.bound, other.bound
    if one.bits_per_byte is not None and two.bits_per_byte is not None:
        found["bits_per_byte"] = two.bits_per_byte - one.bits_per_byte
    if one.nats is None or two.nats is None or one.tokens is None or two.tokens is None:
        return found
    if first.rows == other.rows and torch.equal(one.tokens, two.tokens):
        scored = one.tokens > 0
        per_token = ratio_estimate((two.nats - one.nats)[scored], one.tokens[scored])
        found |= {"nats_per_token": per_token.value, "nats_per_token_interval": per_token.interval}
        if per_token.interval is not None and found["bits_per_byte"] is not None:
            found["bits_per_byte_interval"] = _per_byte(per_token.interval, first)
    elif first.settings["packing"] == "one_per_row" and first.rows.num_bytes == other.rows.num_bytes:
        sizes = torch.tensor([len(text.encode()) for text in texts])
        interval = ratio_estimate((two.nats - one.nats) / math.log(2), sizes).interval
        found["bits_per_byte_interval"] = interval if found["bits_per_byte"] is not None else None
    return plain(found)


def _per_byte(interval: Sequence[float], of: LikelihoodReport) -> list[float] | None:
    """Nats per token as bits per byte."""
    scale = of.num_tokens / math.log(2) / of.rows.num_bytes if of.rows.num_bytes else None
    return None if scale is None else [end * scale for end in interval]


def likelihood_figures(report: LikelihoodReport, is_exact: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "is_exact": is_exact,
        **_estimate(report.bound, report),
        "num_tokens": report.num_tokens,
        "num_rows": len(report.rows.rows),
        **{name: vars(report.rows)[name] for name in ("num_bytes", "num_unknown", "num_altered", "num_split")},
        "scores_end": report.settings["scores_end"],
        "others": {name: _estimate(of, report) for name, of in report.others.items() if name != "steps"},
    }
    return plain(found)


def _estimate(estimate: Estimate, report: LikelihoodReport) -> dict[str, Any]:
    found, interval = estimate.to_dict(), estimate.confidence_interval
    return found | {"bits_per_byte_interval": None if interval is None else _per_byte(interval, report)}


def figures_by_forwards(report: LikelihoodReport) -> list[dict[str, Any]]:
    """Steps that are as many as a row has tokens are a token a step, which is the bound itself."""
    whole = report.num_tokens / len(report.rows.rows)
    few = [(of.settings["steps"], of) for of in report.others.get("steps", [])]
    points = [(steps, steps, of) for steps, of in few if steps < whole] + [(None, whole, report.bound)]
    return [plain({**_estimate(of, report), "steps": steps, "forwards": forwards}) for steps, forwards, of in points]


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    plain: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    return plain
