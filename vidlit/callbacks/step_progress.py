"""The training bar: a run has steps, not epochs. A line now and then where there is no terminal."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vidlit.diffusion.batch import LatentBatch
from vidlit.runs.live.run_log import note
from vidlit.runs.logged_names import all_rows
from vidlit.runs.wording import duration

_REFRESH_SECONDS = 0.5


class StepProgress(ProgressBar):
    """Shows the step, metrics whose row has a short word, samples per second and the time left to ``max_steps``.

    Args:
        line_seconds: seconds between lines where the output is no terminal.
    """

    def __init__(self, line_seconds: float = 10.0) -> None:
        super().__init__()
        self.line_seconds = line_seconds
        self._enabled = True
        self._console = Console()
        self._bar: Progress | None = None
        self._shown = self._noted = self._counted_from = 0.0
        self._samples = 0
        self._start_step = 0

    def disable(self) -> None:
        """Say nothing: Lightning calls this on all ranks but one."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._shown = self._noted = self._counted_from = time.monotonic()
        self._samples, self._start_step = 0, trainer.global_step
        if self._enabled and self._console.is_terminal:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[numbers]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step, numbers="")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, *_: Any) -> None:
        """Count samples; refresh when it is time."""
        self._samples += len(batch.indices) * trainer.world_size
        now = time.monotonic()
        if now - self._shown >= (_REFRESH_SECONDS if self._bar else self.line_seconds):
            self._shown = now
            self._show(trainer)
        if self._bar and now - self._noted >= self.line_seconds:
            self._noted = now
            note(self._line(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show new validation numbers at once on a terminal."""
        if self._bar is not None:
            self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last numbers and close."""
        self._show(trainer)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close."""
        self._close()

    def _show(self, trainer: Trainer) -> None:
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, numbers=self._numbers(trainer))
            return
        print(self._line(trainer), flush=True)

    def _line(self, trainer: Trainer) -> str:
        elapsed = time.monotonic() - self._counted_from
        done = trainer.global_step - self._start_step
        left = elapsed / done * (trainer.max_steps - trainer.global_step) if done else 0.0
        return f"step {trainer.global_step}/{trainer.max_steps} {self._numbers(trainer)} left {duration(left)}"

    def _numbers(self, trainer: Trainer) -> str:
        metrics = trainer.callback_metrics
        shown = [
            f"{row.short} {row.text(float(metrics[row.name]))}"
            for row in all_rows()
            if row.short and row.name in metrics
        ]
        rate = self._samples / max(1e-9, time.monotonic() - self._counted_from)
        return ", ".join([*shown, f"{rate:.1f} samples/s"])

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
