"""Chooses how often to check where the user does not say, and measures what checks cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from vidlit.errors import UserError
from vidlit.stopping.schedule import MIN_CHECKS, CheckSchedule, check_schedule

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule

UNSET = 1.0
"""Lightning's ``val_check_interval`` where none is given; an endless epoch has no such share."""


def is_left_to_choose(trainer: Trainer) -> bool:
    """Whether the user says nothing of when to check; a Trainer that goes by the clock has no such attribute."""
    return getattr(trainer, "val_check_interval", None) == UNSET and trainer.check_val_every_n_epoch is None


def check_interval(trainer: Trainer) -> int | None:
    """Optimizer steps between checks as the user set them; ``None`` where they did not count them."""
    batches = getattr(trainer, "val_check_interval", UNSET)
    return max(1, batches // trainer.accumulate_grad_batches) if isinstance(batches, int) else None


class ValidationSchedule(Callback):
    """Sets ``trainer.val_check_interval`` where it is left out, and logs ``perf/validation_share``, as measured.

    The choice follows from counts alone (:func:`vidlit.stopping.schedule.check_schedule`), and a resumed run keeps it.
    It must come before what audits at the end of a validation, so that audits are not counted as checks.

    Args:
        max_share: of the cost of training that checks may add.
    """

    def __init__(self, max_share: float = 0.05) -> None:
        self.max_share = max_share
        self.chosen: CheckSchedule | None = None
        self._trainer: Trainer | None = None
        self._began = self._check_began = 0.0
        self._seconds = 0.0

    def setup(self, trainer: Trainer, pl_module: VideoDiffusionModule, stage: str) -> None:  # type: ignore[override]
        """Choose, before the validation clips are laid out.

        Raises:
            UserError: checks would fall into the middle of an optimizer step.
        """
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
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        samples = datamodule.samples_per_batch * trainer.accumulate_grad_batches
        # A training subset that is scored alone counts as half as many held-out clips with one of the same number.
        num_clips = len(datamodule.val_clips) or -(-len(datamodule.train_eval_clips) // 2)
        self.chosen = check_schedule(trainer.max_steps, samples, num_clips, pl_module.num_strata, self.max_share)
        self._trainer = trainer
        self._apply()
        if self.chosen.share > self.max_share:
            rank_zero_warn(
                f"{MIN_CHECKS} checks of {self.chosen.num_clips} held-out clips add about "
                f"{100 * self.chosen.share:.0f} % to the cost of training, more than the {100 * self.max_share:.0f} % "
                "aimed at: the batch is small or the run short. Fewer checks would be too few to decide by; "
                "trainer.val_check_interval and data.max_val_clips set it otherwise."
            )

    def _apply(self) -> None:
        assert self.chosen is not None
        assert self._trainer is not None
        # Lightning counts batches, the schedule optimizer steps.
        self._trainer.val_check_interval = self.chosen.interval * self._trainer.accumulate_grad_batches
        datamodule: Any = self._trainer.datamodule  # type: ignore[attr-defined]
        datamodule.affordable_val_clips = self.chosen.num_clips

    # -- what checks really cost

    def on_sanity_check_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the clock: step 0's check counts."""
        self._began = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the clock of a resumed run, which has no check at step 0."""
        self._began = self._began or time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """A check begins."""
        self._check_began = time.monotonic()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """A check has been scored."""
        if trainer.state.fn != "fit":
            return
        now = time.monotonic()
        self._seconds += now - self._check_began
        if not trainer.sanity_checking:
            share = self._seconds / max(1e-9, now - self._began)
            pl_module.log_dict(
                {"perf/validation_share": share, "step": float(trainer.global_step)}, batch_size=1, rank_zero_only=False
            )

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """What was chosen; nothing where the user chose."""
        return {} if self.chosen is None else dict(vars(self.chosen))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what was chosen, though more steps may be planned by now."""
        if self.chosen is not None and state_dict:
            self.chosen = CheckSchedule(**state_dict)
            self._apply()
