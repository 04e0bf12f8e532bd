"""One process trains in a run directory at a time."""

from __future__ import annotations

from vidlit.errors import UserError
from vidlit.held_lock import HeldLock
from vidlit.runs.directory import RunDirectory
from vidlit.whole_files import remove_unfinished


class RunLock:
    """The right to write into a run directory, held until it is released or the process ends, however it ends.

    Leftovers of a process that was killed here are removed: nobody else is at work on them.

    Args:
        directory: of the run.

    Raises:
        UserError: another process holds it; says which.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._lock = HeldLock(directory.lock, directory.lock_holder)
        if not self._lock.acquire():
            raise UserError(
                f"another process ({self._lock.holder()}) is training in {directory.path}: wait for it to end, or "
                "stop it."
            )
        remove_unfinished(directory.path)

    def release(self) -> None:
        """Let others go on with the run."""
        self._lock.release()
