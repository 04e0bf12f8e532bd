"""The folder of a store: what marks it, which names in it are the store's own, who encodes into it.

A store is deleted from, and read, by name: a name that the store would not have given is never opened and never
deleted, whoever wrote it into the index.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from vidlit.errors import UserError
from vidlit.held_lock import HeldLock
from vidlit.io_retry import retry_io
from vidlit.whole_files import UNFINISHED, open_regular, write_whole

MARKER = "vidlit_store.json"
"""Says that a folder is a store, and of which version."""
STORE_VERSION = 1
_UNIQUE = r"[0-9a-f]{16}-[0-9a-f]{8}"  # what unique_name() gives
_SHARD = rf"(?:shards/\d+x\d+x\d+-|prompts/){_UNIQUE}\.safetensors"
_PART = rf"index/{_UNIQUE}\.parquet"
_WRITTEN = rf"{_SHARD}|{_PART}|index\.parquet|vidlit_store\.json|(?:files|repeats)\.json|\.encoding\.json"
_KEPT = r"\.(?:files|repeats)\.json\.(?:lock|\d+\.part)|\.lock|\.encoding\.lock"
_FOLDERS = ("shards", "prompts", "index")
_HARMLESS = {"lost+found", ".DS_Store", ".gitignore", ".gitkeep"}  # what stands in folders that people call empty
_SHARD_NAME, _PART_NAME, _OWN_NAME = re.compile(_SHARD), re.compile(_PART), re.compile(f"{_WRITTEN}|{_KEPT}")


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
    folder, slash, last = name.rpartition("/")
    found = UNFINISHED.fullmatch(last)
    return found is not None and re.fullmatch(_WRITTEN, f"{folder}{slash}{found['name']}") is not None


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
    write_whole(root / MARKER, json.dumps({"vidlit_store": STORE_VERSION}).encode(), sync=True)


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


# -- one at a time


@contextlib.contextmanager
def encoding_lock(root: Path) -> Iterator[None]:
    """Be the only one that encodes into a store; who comes second is told whom it waits for, and waits.

    Raises:
        OSError: the folder cannot be written to.
    """
    lock = HeldLock(root / ".encoding.lock", root / ".encoding.json")
    if not lock.acquire():
        print(f"another process is encoding into {root} ({lock.holder()}): waiting until it is done", file=sys.stderr)
        lock.acquire(wait=True)
    try:
        yield
    finally:
        lock.release()
