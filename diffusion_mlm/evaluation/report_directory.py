"""The directory of a report: JSON, Markdown and plots, each whole or not there."""

import os
from pathlib import Path

from ..errors import OutputDirectoryError
from .report import EvaluationReport
from .report_markdown import report_markdown
from .report_plots import PLOTS, draw_report

JSON, MARKDOWN = "report.json", "report.md"
_OWN = (JSON, MARKDOWN, *PLOTS)
_UNFINISHED = ".tmp"  # behind the name of a file that is being written


class ReportDirectory:
    """A directory that is written to at the end, in one go; until then an older report in it stays as it is.

    Args:
        path (`str` or `Path`): made, with those above it, if it is not there.
        argument (`str`): how the user calls it, for error messages.

    Raises:
        OutputDirectoryError: it holds something that is no report, or cannot be written to.
    """

    def __init__(self, path: str | Path, argument: str = "report") -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            others = sorted(of.name for of in self.path.iterdir() if of.name.removesuffix(_UNFINISHED) not in _OWN)
            probe = self.path / f"{JSON}{_UNFINISHED}"
            probe.write_text("", encoding="utf-8")
            probe.unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputDirectoryError(
                f"`{argument}` is {str(path)!r}, where no report can be written ({reason}). Name another directory."
            ) from error
        if others:
            raise OutputDirectoryError(
                f"`{argument}` is {str(path)!r}, which holds something else than a report ({', '.join(others[:3])}). "
                f"Name an empty or a new directory."
            )

    def write(self, report: EvaluationReport) -> list[Path]:
        """Writes all files and returns them, the Markdown first; an older report is replaced.

        All are written under other names before the first gets its own. Without matplotlib there are no plots, and the
        Markdown says so.

        Raises:
            OSError: there is no room, or the like.
        """
        notes = []
        try:
            figures = draw_report(report)
        except ImportError as error:
            figures = {}
            notes.append(f"The plots were left out. {error}")
        texts = {MARKDOWN: report_markdown(report, list(figures), notes), JSON: report.to_json(indent=1) + "\n"}
        fresh = {name: self.path / f"{name}{_UNFINISHED}" for name in (MARKDOWN, *figures, JSON)}
        try:
            for name, text in texts.items():
                fresh[name].write_text(text, encoding="utf-8")
            for name, figure in figures.items():
                figure.savefig(fresh[name], format="png")
            for name, path in fresh.items():
                os.replace(path, self.path / name)
        finally:
            for path in fresh.values():
                path.unlink(missing_ok=True)
        for name in set(PLOTS) - set(figures):  # of an older report
            (self.path / name).unlink(missing_ok=True)
        return [self.path / name for name in fresh]
