"""What a resumed run must forget: everything that was written after its checkpoint."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from vidlit.runs.csv_logger import RunCSVLogger
from vidlit.runs.directory import RunDirectory


class Rewind(Callback):
    """Cuts ``metrics.csv`` and ``decisions.jsonl`` back to the step that training goes on from.

    A run killed at step 437 and resumed from step 400 would otherwise hold steps 401 to 437 twice.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget later steps."""
        if trainer.is_global_zero:
            RunDirectory(Path(trainer.default_root_dir)).rewind_decisions(trainer.global_step)
            for logger in trainer.loggers:
                if isinstance(logger, RunCSVLogger):
                    logger.rewind(trainer.global_step)
