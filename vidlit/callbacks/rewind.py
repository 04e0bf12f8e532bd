"""What a resumed run must forget: everything that was written after its checkpoint."""

from __future__ import annotations

from typing import Any

from vidlit.lightning_internals import count_steps_from
from vidlit.runs.csv_logger import RunCSVLogger
from vidlit.training.run_callback import RunCallback


class Rewind(RunCallback):
    """Cuts ``metrics.csv`` and ``decisions.jsonl`` back to the step that training goes on from.

    A run killed at step 437 and resumed from step 400 would otherwise hold steps 401 to 437 twice.
    """

    def on_train_start(self, *_: Any) -> None:
        """Forget later steps."""
        if self.trainer.is_global_zero:
            self.run.rewind_decisions(self.trainer.global_step)
            for logger in self.trainer.loggers:
                if isinstance(logger, RunCSVLogger):
                    logger.rewind(self.trainer.global_step)

    def on_train_batch_start(self, *_: Any) -> None:
        """Log at the steps at which the run would have logged without the break."""
        count_steps_from(self.trainer, self.trainer.global_step)
