"""Loggers that may talk to a network, kept from ever holding training up or bringing it down."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only

from vidlit.runs.redaction import redact, redact_text
from vidlit.runs.wording import say

MAX_WAITING = 2000
"""Calls that wait for a slow logger; beyond that they are left out."""
PATIENCE_SECONDS = 30.0
"""How long the end of a run waits for a logger."""
MAX_FAILURES = 3
"""Errors in a row after which a logger that once worked is left alone."""

_SHOWN_BY_WANDB = ("name", "notes", "tags", "group", "job_type", "project", "config")
"""Arguments of W&B's logger that everyone reads who sees the run."""


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

    @property
    def experiment(self) -> Any:
        """What the logger itself writes with, for callbacks of one's own: ``trainer.logger.experiment.add_image(...)``.

        It is opened in the background and waited for; where that fails or takes too long, something that takes
        every call and does nothing stands in for it, so that training goes on.
        """
        opened: list[Any] = []
        done = threading.Event()

        def open_it(logger: Any) -> None:
            opened.append(logger.experiment)
            done.set()

        self.submit(open_it)
        until = time.monotonic() + self.patience_seconds
        while self._thread is not None and not self._given_up and not done.wait(0.05) and time.monotonic() < until:
            pass
        return opened[0] if opened else DummyLogger().experiment

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
                self._warn(f"{self.name} failed ({type(error).__name__}: {error}); training goes on without it")
                self._given_up = not self._worked or self._failures >= MAX_FAILURES  # last: who waits goes on then

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


def in_background(loggers: Sequence[Logger]) -> list[BackgroundLogger]:
    """Each in a thread of its own."""
    return [BackgroundLogger(logger, PATIENCE_SECONDS) for logger in loggers]


def prepare_wandb(loggers: Any, folder: Path) -> None:
    """W&B's files into the run directory, offline where there is no key, and nothing recorded that may hold one."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = getattr(logger, "init_args", None)
        if arguments is None or not logger.class_path.endswith("WandbLogger"):
            continue
        if arguments.save_dir in (None, "."):
            arguments.save_dir = str(folder)
        if not (arguments.offline or "WANDB_MODE" in os.environ or _has_wandb_key()):
            arguments.offline = True
            say(
                f"No W&B key is set: its files stay in {folder / 'wandb'}. "
                f"`wandb sync {folder / 'wandb' / 'offline-run-*'}` sends them later."
            )
        options = logger.get("dict_kwargs") or {}
        for given in (arguments, options):
            for name in _SHOWN_BY_WANDB:
                if given.get(name):
                    given[name] = redact(given[name])
        if arguments.offline:
            # Lightning sets WANDB_MODE, which W&B does not read again in a process that has used it already.
            options = {"mode": "offline", **options}
        # The console, the command line and git remotes may hold keys; a dead network is not waited for long.
        quiet = {
            "silent": True,
            "console": "off",
            "disable_git": True,
            "x_disable_meta": True,
            "finish_timeout": PATIENCE_SECONDS,
        }
        logger.dict_kwargs = {**options, "settings": {**quiet, **(options.get("settings") or {})}}


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def finish_loggers(trainer: Trainer | None) -> None:
    """Close what W&B has open; a network that is gone is not waited for."""
    for logger in trainer.loggers if trainer is not None else ():
        if isinstance(logger, BackgroundLogger):
            if isinstance(logger.logger, WandbLogger):
                logger.submit(lambda wandb_logger: wandb_logger.experiment.finish())
            logger.wait()
