"""One process trains in a run directory at a time."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import filelock
import psutil

from vidlit.errors import UserError
from vidlit.runs.directory import RunDirectory, remove_unfinished, write_text

_AFTERLIFE_SECONDS = 15.0
"""How long a killed process's lock may outlive it: torch's loader workers inherit it, and look for their parent every
five seconds."""


class RunLock:
    """The right to write into a run directory, held until it is released or the process ends, however it ends.

    Leftovers of a process that was killed here are removed: nobody else is at work on them.

    Args:
        directory: of the run.

    Raises:
        UserError: another process holds it; says which.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._lock = filelock.FileLock(directory.lock)
        directory.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=_AFTERLIFE_SECONDS if _is_dead(directory.lock_holder) else 0)
        except filelock.Timeout as error:
            number, host = _read(directory.lock_holder)
            holder = f" (process {number} on {host})" if host else ""
            raise UserError(
                f"another process{holder} is training in {directory.path}: wait for it to end, or stop it."
            ) from error
        remove_unfinished(directory.path)
        write_text(directory.lock_holder, f"{os.getpid()} {socket.gethostname()}\n")

    def release(self) -> None:
        """Let others go on with the run."""
        self._lock.release()


def _read(holder: Path) -> tuple[int, str]:
    """Number and machine of the process that wrote a file last; 0 and nothing where there is none."""
    try:
        number, _, host = holder.read_text().strip().partition(" ")
        return int(number), host
    except (OSError, ValueError):
        return 0, ""


def _is_dead(holder: Path) -> bool:
    number, host = _read(holder)
    return host == socket.gethostname() and not psutil.pid_exists(number)
