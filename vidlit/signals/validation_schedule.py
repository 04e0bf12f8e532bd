"""Decides when to check where the user does not say, and measures what checks cost."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from vidlit.errors import UserError
from vidlit.lightning_internals import check_after_every
from vidlit.runs.logged_names import VALIDATION_SHARE
from vidlit.stopping.schedule import CheckSchedule, check_schedule
from vidlit.training.run_callback import RunCallback

UNSET = 1.0
"""Lightning's ``val_check_interval`` where none is given; an endless epoch has no such share."""


def is_left_to_choose(trainer: Trainer) -> bool:
    """Whether the user says nothing of when to check; a Trainer that goes by the clock has no such attribute."""
    return getattr(trainer, "val_check_interval", None) == UNSET and trainer.check_val_every_n_epoch is None


class ValidationSchedule(RunCallback):
    """Checks at a spacing that doubles, and at the last step, where ``trainer.val_check_interval`` is left out.

    The first spacing follows from counts alone (:func:`vidlit.stopping.schedule.check_schedule`), and a resumed run
    keeps it; all later ones follow from the step. Logs ``perf/validation_share``, as measured. It must come before what
    audits at the end of a validation, so that audits are not counted as checks.
    """

    def __init__(self) -> None:
        self.chosen: CheckSchedule | None = None
        self._began = self._check_began = 0.0
        self._seconds = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the first spacing.

        Raises:
            UserError: checks would fall into the middle of an optimizer step.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        set_interval, accumulate = getattr(trainer, "val_check_interval", UNSET), trainer.accumulate_grad_batches
        if isinstance(set_interval, int) and set_interval % accumulate:
            raise UserError(
                f"trainer.val_check_interval {set_interval} counts batches and must be a multiple of "
                f"trainer.accumulate_grad_batches {accumulate}, or checks would fall into the middle of a step: set "
                f"{-(-set_interval // accumulate) * accumulate}, or leave it out."
            )
        if not is_left_to_choose(trainer):
            return
        samples = self.data.samples_per_batch * accumulate
        num_clips = len(self.data.scored_clips) + len(self.data.train_eval_clips)
        num_transformers = len(self.module.expert_names)  # each scores the clips at levels of its own
        self.chosen = check_schedule(samples, num_clips * self.module.num_strata * num_transformers)
        # A whole number, so that Lightning counts batches over all of the endless epoch.
        trainer.val_check_interval = self.chosen.first * accumulate

    def on_train_batch_start(self, *_: Any) -> None:
        """Tell Lightning the present spacing: every check falls on a multiple of it, but that of the last step."""
        if self.chosen is not None:
            # Lightning counts batches, the schedule optimizer steps; a batch whose gradient is thrown away counts.
            accumulate = self.trainer.accumulate_grad_batches
            steps = self.trainer.fit_loop.epoch_loop.total_batch_idx // accumulate
            is_last = steps + 1 == self.trainer.max_steps
            check_after_every(self.trainer, (steps + 1 if is_last else self.chosen.spacing(steps)) * accumulate)

    # -- what checks really cost

    def on_sanity_check_start(self, *_: Any) -> None:
        """Start the clock: step 0's check counts."""
        self._began = time.monotonic()

    def on_train_start(self, *_: Any) -> None:
        """Start the clock of a resumed run, which has no check at step 0."""
        self._began = self._began or time.monotonic()

    def on_validation_start(self, *_: Any) -> None:
        """A check begins."""
        self._check_began = time.monotonic()

    def on_validation_epoch_end(self, *_: Any) -> None:
        """A check has been scored."""
        if self.trainer.state.fn != "fit":
            return
        now = time.monotonic()
        self._seconds += now - self._check_began
        if not self.trainer.sanity_checking:
            share = self._seconds / max(1e-9, now - self._began)
            logged = {VALIDATION_SHARE.name: share, "step": float(self.trainer.global_step)}
            self.module.log_dict(logged, batch_size=1, rank_zero_only=False)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """The first spacing; nothing where the user chose."""
        return {} if self.chosen is None else {"first": self.chosen.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the first spacing, though more steps may be planned by now."""
        if self.chosen is not None and "first" in state_dict:
            self.chosen = CheckSchedule(state_dict["first"])
