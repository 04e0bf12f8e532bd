"""``metrics.csv`` of a run directory: Lightning's CSVLogger, made to survive a resume."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger

from vidlit.lightning_internals import has_opened_its_file
from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_names import save_rows


class RunCSVLogger(CSVLogger):
    """Writes every logged number to ``metrics.csv`` of a run directory.

    Lightning's own logger deletes the file when it opens one that exists. This one keeps the rows up to the step that
    a resumed run goes on from, so that the file reads as if the run had never been interrupted.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: RunDirectory) -> None:
        super().__init__(directory.path, name="", version="", flush_logs_every_n_steps=50)
        self._earlier: list[dict[str, str]] = _read_rows(directory.metrics)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the file, begun with the rows that were there: opening it deletes them."""
        opened = has_opened_its_file(self)
        writer: Any = super().experiment
        if not opened:
            save_rows(RunDirectory(Path(self.save_dir)))
            writer.metrics[:0] = self._earlier
            self._earlier = []
        return writer

    def rewind(self, step: int) -> None:
        """Keep the rows up to a step; forget later ones, whether the Trainer has saved them meanwhile or not."""
        self.save()
        path = RunDirectory(Path(self.save_dir)).metrics
        kept = [row for row in _read_rows(path) if int(float(row["step"])) <= step]
        path.unlink(missing_ok=True)
        self.experiment.metrics[:] = kept
        self.save()


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file) if row.get("step")]
