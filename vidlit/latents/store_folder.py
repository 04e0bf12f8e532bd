"""The folder of a store: what marks it, which names in it are the store's own, who encodes into it.

A store is deleted from, and read, by name: a name that the store would not have given is never opened and never
deleted, whoever wrote it into the index.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import filelock

from vidlit.errors import UserError
from vidlit.io_retry import retry_io

MARKER = "vidlit_store.json"
"""Says that a folder is a store, and of which version."""
STORE_VERSION = 1
_UNIQUE = r"[0-9a-f]{16}-[0-9a-f]{8}"  # what unique_name() gives
_SHARD = rf"(?:shards/\d+x\d+x\d+-|prompts/){_UNIQUE}\.safetensors"
_PART = rf"index/{_UNIQUE}\.parquet"
_WRITTEN = rf"{_SHARD}|{_PART}|index\.parquet|vidlit_store\.json"
_KEPT = r"files\.json|\.files\.json\.(?:lock|\d+\.part)|\.lock|\.encoding\.(?:lock|json)"
_FOLDERS = ("shards", "prompts", "index")
_POLL_SECONDS = 0.5  # between two looks at a lock that another process holds for minutes
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS)}
_HARMLESS = {"lost+found", ".DS_Store", ".gitignore", ".gitkeep"}  # what stands in folders that people call empty
_SHARD_NAME, _PART_NAME, _OWN_NAME = re.compile(_SHARD), re.compile(_PART), re.compile(f"{_WRITTEN}|{_KEPT}")
_UNFINISHED = re.compile(r"(?P<folder>(?:shards/|prompts/|index/)?)\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")


def unique_name() -> str:
    """A name that no other process gives, later ones behind earlier ones."""
    return f"{time.time_ns():016x}-{uuid.uuid4().hex[:8]}"


def is_shard_name(name: str) -> bool:
    """Would a store name a shard so? ``prompts/…``, or ``shards/<bucket>-…``, as paths relative to the store."""
    return _SHARD_NAME.fullmatch(name) is not None


def is_part_name(name: str) -> bool:
    """Would a store name a part of its index so? As for :func:`is_shard_name`."""
    return _PART_NAME.fullmatch(name) is not None


def _is_unfinished(name: str) -> bool:
    found = _UNFINISHED.fullmatch(name)
    return found is not None and re.fullmatch(_WRITTEN, found["folder"] + found["name"]) is not None


def _names(root: Path) -> Iterator[str]:
    """Names in a store's folder and in its own folders, no deeper; not of what a link leads to."""
    with contextlib.suppress(FileNotFoundError), os.scandir(root) as entries:
        for entry in entries:
            if entry.name in _FOLDERS and entry.is_dir(follow_symlinks=False):
                with os.scandir(entry) as inner:
                    yield from (f"{entry.name}/{each.name}" for each in inner)
            else:
                yield entry.name


# -- what is a store


def is_marked(root: Path) -> bool:
    """Does the folder say that it is a store?

    Raises:
        UserError: it is one of another version.
    """
    try:
        with open(open_regular(root / MARKER), "rb") as file:
            marked = json.loads(file.read(4096))
    except (OSError, ValueError):
        return False
    if not isinstance(marked, dict) or marked.get("vidlit_store") != STORE_VERSION:
        raise UserError(f"{root} was written by another version of vidlit: use another store folder")
    return True


def foreign_names(root: Path) -> list[str]:
    """Up to three names of what lies in a folder and is no store's."""
    found = []
    for name in _names(root):
        if not (_OWN_NAME.fullmatch(name) or _is_unfinished(name) or name in _HARMLESS):
            found.append(name)
            if len(found) == 3:
                break
    return found


def mark(root: Path) -> None:
    """Say that a folder is a store."""
    write_atomically(root / MARKER, json.dumps({"vidlit_store": STORE_VERSION}).encode())


def own_files(root: Path, older_than: float) -> list[str]:
    """Shards, and unfinished files that a dead process left, by name.

    Args:
        root: the store.
        older_than: time in seconds since the epoch.
    """
    found = []
    for name in _names(root):
        if is_shard_name(name) or _is_unfinished(name):
            with contextlib.suppress(OSError):
                status = (root / name).lstat()
                if stat.S_ISREG(status.st_mode) and status.st_mtime < older_than:
                    found.append(name)
    return found


# -- opening and writing


def inside(root: Path, name: str) -> Path:
    """The path of a file of the store.

    Raises:
        UserError: a link on the way leads out of the store.
    """
    path = root / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise UserError(f"{path} is a link that leads out of the store: put the file itself there")
    return path


def shard_size(root: Path, name: str) -> int | None:
    """Bytes of a shard, or ``None`` for what is not there, is no regular file or has no shard's name.

    Raises:
        UserError: it leads out of the store, or the system refuses to say.
    """
    if not is_shard_name(name):
        return None
    path = inside(root, name)
    try:
        status = retry_io(path.stat, f"looking at {path}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return status.st_size if stat.S_ISREG(status.st_mode) else None


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


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file that is whole, synced and under its name when this returns, or not there at all.

    Raises:
        OSError: the disk is full, or refuses for longer than a moment.
    """
    retry_io(partial(_write_atomically, path, data), f"writing {path}")


def _write_atomically(path: Path, data: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if not hasattr(os, "O_DIRECTORY"):  # Windows, where folders cannot be opened
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut before the index names the file
    finally:
        os.close(folder)


# -- one at a time


@contextlib.contextmanager
def encoding_lock(root: Path) -> Iterator[None]:
    """Be the only one that encodes into a store; who comes second is told whom it waits for, and waits.

    The lock is the system's: it ends with the process that holds it, however that ends. Where there are no locks,
    as on some network file systems, nobody waits; all that is lost then is time.

    Raises:
        OSError: the folder cannot be written to.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(root / ".encoding.lock")
    holder = root / ".encoding.json"
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"another process is encoding into {root} ({_holder(holder)}): waiting until it is done", file=sys.stderr)
        lock.acquire(poll_interval=_POLL_SECONDS)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
    try:
        holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Who holds the lock, in words."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(open_regular(path), "rb") as file:
            said = json.loads(file.read(4096))
        return f"process {int(said['pid'])} on {str(said['host'])[:64]!r}"
    return "which one is not known"
