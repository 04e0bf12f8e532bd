"""A second and a third try of what a disk or a network refused for a moment."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

PASSING = frozenset({errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT})
"""Error numbers of what network file systems and tired disks may do well a second later."""
PAUSES = (0.5, 2.0)
"""Seconds before the second and the third try: what a remount of NFS takes, and no user waits for in vain."""
NETWORK_PAUSES = (1.0, 5.0, 20.0)
"""The same of what lies on another machine, whose clients have tried for seconds themselves by then."""


def retry_io(action: Callable[[], T], what: str, pauses: Sequence[float] = PAUSES) -> T:
    """Do something with files; where that fails in passing, say so once, pause, and do it again.

    Args:
        action: what to do; done anew from its beginning.
        what: what it is, for people, e.g. ``"reading clips/a.mp4"``.
        pauses: seconds before each further try.

    Raises:
        OSError: it failed for good, or at every try.
    """
    for number, pause in enumerate(pauses):
        try:
            return action()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            if number == 0:
                print(f"vidlit: {what}: {error.strerror}; trying again", file=sys.stderr)
        time.sleep(pause)
    return action()
