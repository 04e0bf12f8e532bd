"""The exceptions a user is meant to read."""

from __future__ import annotations

import signal
from pathlib import Path


class UserError(ValueError):
    """Something the user can put right: says what is wrong, where (file, row, option), and what to do.

    The command line prints its text as one line and exits non-zero, without a traceback unless ``--debug``.
    """


class Interrupted(Exception):  # noqa: N818 - says what happened, as KeyboardInterrupt does
    """The run was told to stop, and saved where it was.

    Args:
        signal_number: that told it.
        checkpoint: to go on from.
    """

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.checkpoint = checkpoint
        self.advice = f"Go on with --ckpt_path {checkpoint}"
