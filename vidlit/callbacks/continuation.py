"""How a run begins, and how one that was interrupted goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidlit.data.usage import LeftOut, ShownClip, as_csv, left_out, shown_clips
from vidlit.lightning_internals import count_steps_from
from vidlit.runs.directory import write_text
from vidlit.runs.loggers.csv_logger import RunCSVLogger
from vidlit.runs.resumes import Change, record_resume
from vidlit.runs.wording import say
from vidlit.training.run_callback import RunCallback


class Continuation(RunCallback):
    """Writes down which clips a run begins with; of one that goes on, forgets what came after its checkpoint.

    A run killed at step 437 and resumed from step 400 would otherwise hold steps 401 to 437 twice in ``metrics.csv``
    and ``decisions.jsonl``.

    Args:
        changes: options that were changed since the run was last saved.
    """

    def __init__(self, changes: Sequence[Change] = ()) -> None:
        self.changes = changes

    def on_train_start(self, *_: Any) -> None:
        """Write the clips down, or forget later steps and say from where, and with what, the run goes on."""
        if not self.trainer.is_global_zero:
            return
        step = self.trainer.global_step
        if self.trainer.ckpt_path is None or not self.run.clips.is_file():
            write_text(self.run.clips, self.data.clip_identity.as_table())
            write_text(self.run.dataset, as_csv(shown_clips(self.data.split), ShownClip))
            write_text(self.run.left_out, as_csv(left_out(self.data.usage), LeftOut))
        self.run.rewind_decisions(step)
        for logger in self.trainer.loggers:
            if isinstance(logger, RunCSVLogger):
                logger.rewind(step)
        if self.trainer.ckpt_path is not None:
            changed = "".join(f"; {change}" for change in self.changes)
            say(f"resumed from step {step} of {self.run.path}{changed}")
            record_resume(self.run, step, self.changes)

    def on_train_batch_start(self, *_: Any) -> None:
        """Log at the steps at which the run would have logged without the break."""
        count_steps_from(self.trainer, self.trainer.global_step)
