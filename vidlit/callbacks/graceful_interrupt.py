"""Ctrl-C, SIGTERM and, where there is such, SIGUSR1: finish the step, save, leave."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch

from vidlit.errors import Interrupted
from vidlit.lightning_internals import forget_sigterm, is_mid_step
from vidlit.training.run_callback import RunCallback

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # Windows has no third one
SIGNALS = tuple(getattr(signal, name) for name in _SIGNALS if hasattr(signal, name))
"""Ctrl-C; the end of a preemptible machine or job; what SLURM is asked to send before the time is up."""


class GracefulInterrupt(RunCallback):
    """Ends a run at the next step boundary when the process is interrupted; a second signal ends it at once.

    A handler that raised in the middle of a step would leave weights, moments and counters of different steps. So
    the handlers only take note; at the end of the optimizer step ``last.ckpt`` is saved, and before the next batch is
    used :class:`Interrupted` is raised. Where a validation is due between the two it still runs, and its checkpoint
    takes the first one's place: a resumed run meets the same checks as an uninterrupted one.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}
        self._saved = False

    def on_train_start(self, *_: Any) -> None:
        """Take the signals over from Lightning, whose handler would raise before validation is done."""
        # A SIGTERM during the first validation is in Lightning's hands, which would act on it in the middle of a step.
        self.received, self._saved = signal.SIGTERM if self.trainer.received_sigterm else 0, False
        forget_sigterm(self.trainer)
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(self, *_: Any) -> None:
        """Save, unless gradients of half a step are waiting."""
        if not self._agreed() or is_mid_step(self.trainer):
            return
        self.trainer.save_checkpoint(self.run.last_checkpoint)
        self._saved = True

    def on_train_batch_start(self, *_: Any) -> None:
        """Leave, when what was done is saved."""
        if self._saved:
            raise Interrupted(self.received, self.run.last_checkpoint)

    def _agreed(self) -> bool:
        if self.trainer.world_size == 1:
            return bool(self.received)
        heard = torch.tensor(self.received, device=self.trainer.strategy.root_device)
        self.received = int(self.trainer.strategy.reduce(heard, reduce_op="max"))
        return bool(self.received)

    def on_train_end(self, *_: Any) -> None:
        """Give the signals back."""
        self._restore_handlers()

    def on_exception(self, *_: Any) -> None:
        """Give the signals back."""
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
