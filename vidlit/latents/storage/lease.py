"""One at a time where the system has no locks: a note on object storage that its holder renews."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from vidlit.held_lock import is_alive
from vidlit.latents.storage.interface import Storage

_RENEWED_SECONDS = 20.0
_DEAD_SECONDS = 90.0
"""A note that nobody renewed for so long is a dead process's: three renewals and a slow network."""
_SETTLED_SECONDS = 1.0
"""After which a note that another process wrote at the same time would be there."""
_LOOK_SECONDS = 2.0


@contextlib.contextmanager
def leased(storage: Storage, name: str) -> Iterator[None]:
    """Hold a note; who comes second is told whom it waits for, and waits.

    Nothing depends on it but that no work is done twice: of two that take it in the same moment, over a network that
    stalls, both may get it.

    Args:
        storage: where the note is.
        name: of it.

    Raises:
        OSError: it cannot be written.
    """
    mine = f"{os.getpid()} {socket.gethostname()} {uuid.uuid4().hex[:8]}"
    _take(storage, name, mine)
    done = threading.Event()
    renewing = threading.Thread(target=_renew, args=(storage, name, mine, done), name="lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        with contextlib.suppress(OSError):
            if _read(storage, name).startswith(mine):
                storage.remove(name)


def _take(storage: Storage, name: str, mine: str) -> None:
    seen, since, is_told = "", time.monotonic(), False
    while True:
        note = _read(storage, name)
        if note != seen:
            seen, since = note, time.monotonic()
        if not note or _is_dead(note) or time.monotonic() - since > _DEAD_SECONDS:
            storage.write(name, f"{mine} 0\n".encode())
            time.sleep(_SETTLED_SECONDS)
            if _read(storage, name).startswith(mine):
                return
            continue
        if not is_told:
            is_told = True
            number, host, *_ = [*note.split(), "?", "?"]
            who = f"process {number[:20]} on {host[:64]!r}"
            print(f"another process is encoding into {storage} ({who}): waiting until it is done", file=sys.stderr)
        time.sleep(_LOOK_SECONDS)


def _renew(storage: Storage, name: str, mine: str, done: threading.Event) -> None:
    number = 0
    while not done.wait(_RENEWED_SECONDS):
        number += 1
        with contextlib.suppress(OSError):  # the next one may go through
            storage.write(name, f"{mine} {number}\n".encode())


def _read(storage: Storage, name: str) -> str:
    try:
        return storage.read(name)[:4096].decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _is_dead(note: str) -> bool:
    """Is it of a process of this machine that is no more?"""
    number, host, *_ = [*note.split(), "", ""]
    return host == socket.gethostname() and number.isdecimal() and not is_alive(int(number))
