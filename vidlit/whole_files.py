"""Files that are whole or not there: written beside their place, then renamed; and opened only where they are files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from vidlit.io_retry import retry_io

UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")
"""The name of a file that is being written, and in it the one that it gets."""


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Write a file so that a reader, or a kill, meets the whole old one or the whole new one.

    Args:
        path: of the file, in a folder that is made if need be.
        sync: have it survive a power cut as well once this is over.

    Yields:
        Where to write it. What is raised meanwhile leaves nothing there: half a file would keep a full disk full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield unfinished
        if sync:
            _sync(unfinished, os.O_RDWR)
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    if sync and hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)  # the rename itself


def write_whole(path: Path, data: bytes | memoryview, *, sync: bool = False) -> None:
    """Write a file at once, as :func:`replacing`; again where the disk refuses for a moment.

    Raises:
        OSError: the disk is full, or refuses for longer.
    """
    retry_io(partial(_write_whole, path, data, sync), f"writing {path}")


def make_readable(files: Iterable[Path]) -> None:
    """Give files the permissions that the umask says: safetensors writes for its owner alone.

    Args:
        files: in folders that can be written to; links and folders among them stay as they are.
    """
    modes: dict[Path, int] = {}
    for path in files:
        if path.is_symlink() or not path.is_file():
            continue
        if path.parent not in modes:  # asked of a new file: os.umask can only be read by changing it for all threads
            probe = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            probe.touch()
            modes[path.parent] = stat.S_IMODE(probe.stat().st_mode)
            probe.unlink()
        path.chmod(modes[path.parent])


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing; only where no other process writes."""
    for path in folder.rglob("*"):
        if UNFINISHED.fullmatch(path.name) and not path.is_symlink() and path.is_file():
            path.unlink(missing_ok=True)


def open_regular(path: Path) -> int:
    """Descriptor of a regular file, to read from; a pipe or a device is not waited for.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # Windows changes line ends without the first
    descriptor = os.open(path, os.O_RDONLY | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def _write_whole(path: Path, data: bytes | memoryview, sync: bool) -> None:
    with replacing(path, sync=sync) as unfinished:
        unfinished.write_bytes(data)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
