"""How far encoding is, for people: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_SECONDS = 30.0


class EncodeProgress(Callback):
    """Shows rank 0's share of the clips with the time that is left."""

    def __init__(self) -> None:
        self.done = self.failed = self.total = 0
        self.began = self.last_line = 0.0
        self.bar: Progress | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if not trainer.is_global_zero:
            return
        self.console = Console(stderr=True)
        self.total = int(pl_module.num_clips)  # type: ignore[arg-type]  # an attribute of a module
        self.began = self.last_line = time.monotonic()
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.bar.start()
            ranks = f" (1 of {trainer.world_size} ranks)" if trainer.world_size > 1 else ""
            self.task = self.bar.add_task(f"Encoding clips{ranks}", total=self.total)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the clips of a batch."""
        if not trainer.is_global_zero or dataloader_idx == 0:  # loader 0 holds the captions
            return
        self.done += len(outputs)
        self.failed += sum(bool(item.reason) for item in outputs)
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
        elif (now := time.monotonic()) - self.last_line > _LINE_SECONDS:
            self.last_line = now
            left = (self.total - self.done) * (now - self.began) / self.done
            left_text = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
            self.console.print(
                f"encoded {self.done} of {self.total} clips, {self.failed} quarantined, about {left_text} left"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
