"""Metrics of the evaluate library, one a file: import the class, or pass the path of its file to `evaluate.load`.

`evaluate.load` copies a file elsewhere and takes the first metric class in it. So these files import by full names,
and no other metric class by its name.
"""

import inspect
from collections.abc import Iterable

import evaluate


def require_known_options(metric: str, options: Iterable[str]) -> None:
    """Refuses options that are not those of `evaluate.Metric`, which ignores what it does not know.

    Raises:
        ValueError: one is unknown.
    """
    known = set(inspect.signature(evaluate.Metric.__init__).parameters) - {"self", "kwargs"}
    for name in options:
        if name not in known:
            raise ValueError(f"`{name}` is no option of {metric}, nor of `evaluate.Metric`.")
