"""``metrics.csv`` of a run directory: every logged number, whole rows only, whatever a process is killed at."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vidlit.runs.directory import RunDirectory, append_text, write_text
from vidlit.runs.loggers.plugged_rows import save_rows

_HELD_BACK = 50
"""Rows that wait to be written: as many as Lightning's CSVLogger lets wait by default."""
_HELD_SECONDS = 2.0
"""For so long at most, where more are logged: as often as a live page asks."""


class RunCSVLogger(Logger):
    """Writes every logged number to ``metrics.csv`` of a run directory, and keeps what was there before a resume.

    Lightning's CSVLogger deletes the file when it opens one that exists, and writes it anew in place when a column
    comes. Here rows are added in one act, and a file with another header takes the old one's place in one act.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: RunDirectory) -> None:
        super().__init__()
        self.directory = directory
        self._rows: list[dict[str, float]] = []
        self._saved = time.monotonic()
        self._columns: list[str] | None = None  # of the file; unknown until it is read

    @property
    def name(self) -> str:
        """Of the kind of logger."""
        return type(self).__name__

    @property
    def version(self) -> str:
        """None: the run directory has one."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self.directory.path)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take a row; see :meth:`save`."""
        assert step is not None
        self._rows.append({**{name: float(value) for name, value in metrics.items()}, "step": step})
        if len(self._rows) >= _HELD_BACK or time.monotonic() - self._saved > _HELD_SECONDS:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that wait."""
        self._saved = time.monotonic()
        if not self._rows:
            return
        if self._columns is None:
            save_rows(self.directory)
            self._columns, whole = _read(self.directory)
            if not whole:  # cut off in the middle of a row
                self._rewrite(_read_rows(self.directory))
        if new := set().union(*self._rows) - {*self._columns}:
            earlier = _read_rows(self.directory)
            self._columns = sorted({*self._columns, *new})
            self._rewrite([*earlier, *self._rows])
        else:
            append_text(self.directory.metrics, _as_csv(self._rows, self._columns))
        self._rows = []

    def finalize(self, status: str) -> None:
        """Write the rows that wait."""
        self.save()

    def rewind(self, step: int) -> None:
        """Keep the rows up to a step; forget later ones, whether the Trainer has saved them meanwhile or not."""
        self.save()
        kept = [row for row in _read_rows(self.directory) if int(float(row["step"])) <= step]
        save_rows(self.directory)
        self._columns = sorted({name for row in kept for name in row})
        self._rewrite(kept)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        assert self._columns is not None
        if rows:
            write_text(self.directory.metrics, _as_csv([], self._columns, header=True) + _as_csv(rows, self._columns))
        else:
            self.directory.metrics.unlink(missing_ok=True)


def _as_csv(rows: list[dict[str, Any]], columns: list[str], *, header: bool = False) -> str:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def _read(directory: RunDirectory) -> tuple[list[str], bool]:
    """Columns of the file, and whether its last row is whole."""
    if not directory.metrics.is_file():
        return [], True
    with directory.metrics.open(newline="") as file:
        columns = next(csv.reader(file), [])
        text_ends = file.read()[-1:] in ("\n", "")
    return columns, text_ends


def _read_rows(directory: RunDirectory) -> list[dict[str, Any]]:
    """Rows of the file; a last one that was cut off is left out."""
    if not directory.metrics.is_file():
        return []
    whole = directory.metrics.read_text().rpartition("\n")[0]
    return [{k: v for k, v in row.items() if v} for row in csv.DictReader(io.StringIO(whole)) if row.get("step")]
