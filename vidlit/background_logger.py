"""Loggers that may talk to a network, kept from ever holding training up or bringing it down."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vidlit.redaction import redact_text

MAX_WAITING = 2000
"""Calls that wait for a slow logger; beyond that they are left out."""
MAX_FAILURES = 3
"""Errors in a row after which a logger that once worked is left alone."""


class BackgroundLogger(Logger):
    """Passes everything on to another logger from a thread of its own.

    A logger that raises is warned of once and left alone: at once if it never worked, else after three errors in a row.
    One that hangs is not waited for, but for a while at the end.

    Args:
        logger: to pass on to.
        patience_seconds: how long the end of a run waits for it.
    """

    def __init__(self, logger: Logger, patience_seconds: float = 30.0) -> None:
        super().__init__()
        self.logger = logger
        self.patience_seconds = patience_seconds
        self._tasks: queue.Queue[Callable[[], object]] = queue.Queue(MAX_WAITING)
        self._failures = 0
        self._worked = self._given_up = self._warned = False
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """Of the kind of logger."""
        return type(self.logger).__name__

    @property
    def version(self) -> str:
        """Unknown before the logger is asked, which may take long."""
        return ""

    @property
    def save_dir(self) -> str | None:
        """Where the logger writes."""
        return self.logger.save_dir

    def submit(self, task: Callable[[Any], object]) -> None:
        """Call ``task(logger)`` from the thread, after what was submitted before; from rank 0 only."""
        if getattr(rank_zero_only, "rank", 0) != 0 or self._given_up:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"log to {self.name}", daemon=True)
            self._thread.start()
        try:
            self._tasks.put_nowait(lambda: task(self.logger))
        except queue.Full:
            self._warn(f"{self.name} does not keep up; what it has no time for is left out")

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                if not self._given_up:
                    task()
                    self._worked, self._failures = True, 0
            except BaseException as error:  # a library that calls sys.exit must not end the thread either
                self._failures += 1
                self._given_up = not self._worked or self._failures >= MAX_FAILURES
                self._warn(f"{self.name} failed ({type(error).__name__}: {error}); training goes on without it")

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            print(f"vidlit: warning: {redact_text(' '.join(message.split()))}", file=sys.stderr)

    # -- what Lightning calls

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass numbers on."""
        numbers = {name: float(value) for name, value in metrics.items()}
        self.submit(lambda logger: logger.log_metrics(numbers, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Pass hyperparameters on."""
        self.submit(lambda logger: logger.log_hyperparams(params, *args, **kwargs))

    def save(self) -> None:
        """Pass on."""
        self.submit(lambda logger: logger.save())

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Pass on."""
        self.submit(lambda logger: logger.after_save_checkpoint(checkpoint_callback))

    def finalize(self, status: str) -> None:
        """Pass on, and wait a while for what is still to be written."""
        self.submit(lambda logger: logger.finalize(status))
        self.wait()

    def wait(self) -> bool:
        """Wait until all is written, at most ``patience_seconds``; say so if it is not.

        Returns:
            Whether all is written; nothing more is passed on where it is not.
        """
        if self._thread is None or self._given_up:
            return not self._given_up
        done = threading.Event()
        self.submit(lambda logger: done.set())
        until = time.monotonic() + self.patience_seconds
        while not done.wait(0.05):
            if self._given_up:
                return False
            if time.monotonic() > until:
                seconds = f"{self.patience_seconds:g} s"
                self._warn(f"{self.name} was still busy {seconds} after the run; its last numbers may be lost")
                self._given_up = True
                return False
        return True
