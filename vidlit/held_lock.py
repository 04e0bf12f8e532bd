"""A lock between processes that says who holds it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

import filelock
import psutil

from vidlit.whole_files import open_regular, write_whole

_AFTERLIFE_SECONDS = 15.0
"""How long a killed process's lock may outlive it: torch's loader workers inherit it, and look for their parent every
five seconds."""
_POLL_SECONDS = 0.5  # between two looks at a lock that another process holds for minutes
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS)}


def is_alive(number: int) -> bool:
    """Whether a process of this machine has not ended; one that nobody has asked yet how it ended, has.

    Args:
        number: of the process.
    """
    try:
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, ValueError):
        return False


class HeldLock:
    """A lock of the system's: it ends with the process that holds it, however that ends.

    Where there are no locks, as on some network file systems, everyone gets it.

    Args:
        path: of the file that is locked.
        note: of a file beside it that says which process holds it.
    """

    def __init__(self, path: Path, note: Path) -> None:
        self._lock = filelock.FileLock(path)
        self._note = note
        path.parent.mkdir(parents=True, exist_ok=True)

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock.

        Args:
            wait: until it is free.

        Returns:
            Whether it is held now; another process has it otherwise.

        Raises:
            OSError: the folder cannot be written to.
        """
        number, host = self._read()
        is_dead = host == socket.gethostname() and not is_alive(number)
        patience = -1 if wait else _AFTERLIFE_SECONDS if is_dead else 0
        try:
            self._lock.acquire(timeout=patience, poll_interval=_POLL_SECONDS)
        except filelock.Timeout:
            return False
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
        write_whole(self._note, f"{os.getpid()} {socket.gethostname()}\n".encode())
        return True

    def release(self) -> None:
        """Let others take it."""
        self._lock.release()

    def is_held_here(self) -> bool | None:
        """Whether the process that took it last is alive; ``None`` where that is on another machine, or not known.

        The lock itself is not tried: whoever wants it just then would be refused.
        """
        number, host = self._read()
        return is_alive(number) if host == socket.gethostname() else None

    def is_held(self) -> bool:
        """Whether a process holds it now; true where there are no locks, which cannot tell."""
        try:
            self._lock.acquire(timeout=0)
        except (filelock.Timeout, OSError, NotImplementedError):
            return True
        self._lock.release()
        return False

    def holder(self) -> str:
        """Who took it last, in words."""
        number, host = self._read()
        return f"process {number} on {host[:64]!r}" if host else "which one is not known"

    def _read(self) -> tuple[int, str]:
        with contextlib.suppress(OSError, ValueError):
            with open(open_regular(self._note), "rb") as file:
                number, _, host = file.read(4096).decode().strip().partition(" ")
            return int(number), host
        return 0, ""
