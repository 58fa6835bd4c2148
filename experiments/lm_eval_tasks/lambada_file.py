"""The passages of LAMBADA from a local file, for lm-evaluation-harness."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset


def load(lambada_file: str | None = None, **others: Any) -> dict[str, Dataset]:
    """The split `test` of the file that `--metadata lambada_file=FILE` names; the harness passes more, for `others`.

    Raises:
        ValueError: no file is named.
    """
    if lambada_file is None:
        raise ValueError(
            "`lambada_file` is missing: pass --metadata lambada_file=FILE, JSON lines with a `text` each."
        )
    lines = Path(lambada_file).read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([{"text": json.loads(line)["text"]} for line in lines])}
