"""The training bar: a run has steps, not epochs. A line now and then where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from vidlit.data.batch_sampler import DataRanks
from vidlit.diffusion.batch import LatentBatch
from vidlit.runs.live.run_log import note
from vidlit.runs.logged_names import all_rows
from vidlit.runs.wording import duration

_REFRESH_SECONDS = 0.5
_BAR, _SHORT_BAR = 20, 10


@dataclass(frozen=True)
class _Line:
    """What a bar shows: the step and the times always, the numbers and the bar itself where there is room.

    Args:
        task: with the numbers, the most telling first, and the seconds left in its fields.
    """

    task: Task

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        steps, numbers = _steps(int(self.task.completed), self.task.total), self.task.fields["numbers"]
        times = _times(self.task.elapsed or 0.0, self.task.fields["left"])
        width, shown = fit_line(options.max_width - len(f"{steps} {times}"), numbers)
        line = Table.grid(padding=(0, 1))
        cells: list[Text | Bar] = [Text(steps, no_wrap=True, overflow="crop")]
        if width:
            cells.append(Bar(total=self.task.total or 1, completed=self.task.completed, width=width))
        if shown:
            cells.append(Text(shown, no_wrap=True))
        line.add_row(*cells, Text(times, no_wrap=True, overflow="crop", style="dim"))
        yield line


class _LineColumn(ProgressColumn):
    """All of a line as one column: rich would cut each of several a little, the step first."""

    def render(self, task: Task) -> _Line:
        """What there is to show now."""
        return _Line(task)


def fit_line(room: int, numbers: Sequence[str]) -> tuple[int, str]:
    """What fits between the step and the times: the bar is shortened first, then numbers go, the last ones first.

    Args:
        room: characters that are left.
        numbers: the most telling first.

    Returns:
        Width of the bar, 0 for none; and the numbers as one text.
    """
    fewer = [", ".join(numbers[:count]) for count in range(len(numbers), -1, -1)]
    wanted = [(_BAR, fewer[0]), *((_SHORT_BAR, text) for text in fewer if text), *((0, text) for text in fewer)]
    return next(
        ((bar, text) for bar, text in wanted if sum(each + 1 for each in (bar, len(text)) if each) <= room), (0, "")
    )


def _steps(done: int, total: float | None) -> str:
    return f"step {done}" + ("" if total is None else f"/{total:.0f}")


def _times(elapsed: float, left: float | None) -> str:
    """``max_steps`` is a bound: a run that stops before it is done sooner."""
    return duration(elapsed) + ("" if left is None else f", at most {duration(left)} left")


def _bound(trainer: Trainer) -> int | None:
    return trainer.max_steps if trainer.max_steps > 0 else None


class StepProgress(ProgressBar):
    """Shows the step, metrics whose row has a short word, samples per second, and the time that is left at most.

    A terminal that cannot move its cursor (``TERM=dumb``) gets lines, as a file does.

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
        if self._enabled and self._console.is_interactive:
            self._bar = Progress(_LineColumn(), console=self._console)
            self._bar.start()
            bound = _bound(trainer)
            self._task = self._bar.add_task("", total=bound, completed=trainer.global_step, numbers=(), left=None)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, *_: Any) -> None:
        """Count samples; refresh when it is time."""
        self._samples += len(batch.indices) * DataRanks.of(trainer).size
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
            numbers, left = self._numbers(trainer), self._left(trainer)
            self._bar.update(self._task, completed=trainer.global_step, numbers=numbers, left=left)
            return
        print(self._line(trainer), flush=True)

    def _line(self, trainer: Trainer) -> str:
        times = _times(time.monotonic() - self._counted_from, self._left(trainer))
        return f"{_steps(trainer.global_step, _bound(trainer))} {', '.join(self._numbers(trainer))}; {times}"

    def _left(self, trainer: Trainer) -> float | None:
        """Seconds to ``max_steps`` at the pace so far; ``None`` before the first step, and where no bound is set."""
        done, bound = trainer.global_step - self._start_step, _bound(trainer)
        if not done or bound is None or bound <= trainer.global_step:
            return None
        return (time.monotonic() - self._counted_from) / done * (bound - trainer.global_step)

    def _numbers(self, trainer: Trainer) -> list[str]:
        metrics = trainer.callback_metrics
        shown = [
            f"{row.short} {row.text(float(metrics[row.name]))}"
            for row in all_rows()
            if row.short and row.name in metrics
        ]
        rate = self._samples / max(1e-9, time.monotonic() - self._counted_from)
        return [*shown, f"{rate:.1f} samples/s"]

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
