"""What is asked of a run that is going on, by another process: a file in the run directory, taken away when it is done.

Files work wherever the run directory does: on Windows, and from another machine that shares the disk.
"""

from __future__ import annotations

import time
from typing import Literal, get_args

from vidlit.held_lock import HeldLock
from vidlit.runs.directory import RunDirectory
from vidlit.whole_files import write_whole

Request = Literal["sample", "stop", "save"]
"""Samples now; an end as at the last step; an end as by Ctrl-C."""
LOOK_SECONDS = 1.0
"""How often a run looks: steps may be fast, and a shared disk slow."""


class Requests:
    """The requests to one run.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._paths = {kind: directory.request(kind) for kind in get_args(Request)}
        self._looked = -LOOK_SECONDS

    def ask(self, kind: Request) -> None:
        """Ask for something.

        Raises:
            OSError: the run directory cannot be written to.
        """
        write_whole(self._paths[kind], b"")

    def is_waiting(self, kind: Request) -> bool:
        """Whether nobody has taken it up yet."""
        return self._paths[kind].exists()

    def look(self) -> list[Request]:
        """What is asked, at most once a second."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return []
        self._looked = now
        return [kind for kind in self._paths if self.is_waiting(kind)]

    def take(self, kind: Request) -> None:
        """Take a request up: it waits no longer."""
        self._paths[kind].unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all requests."""
        for kind in self._paths:
            self.take(kind)


def is_running(directory: RunDirectory) -> bool:
    """Whether a process trains there; also true where there are no locks, as on some network file systems."""
    return directory.lock.is_file() and HeldLock(directory.lock, directory.lock_holder).is_held()


def holder(directory: RunDirectory) -> str:
    """Which process that is, in words."""
    return HeldLock(directory.lock, directory.lock_holder).holder()
