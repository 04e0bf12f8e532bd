"""The folder of a store: what marks it, and which names in it are the store's own.

A store is deleted from, and read, by name: a name that the store would not have given is never opened and never
deleted, whoever wrote it into the index.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Iterator, Sequence

from vidlit.errors import UserError
from vidlit.latents.storage.interface import FOLDERS, Entry, Storage
from vidlit.whole_files import UNFINISHED

MARKER = "vidlit_store.json"
"""Says that a folder is a store, and of which version."""
STORE_VERSION = 1
_UNIQUE = r"[0-9a-f]{16}-[0-9a-f]{8}"  # what unique_name() gives
_SHARD = rf"(?:shards/\d+x\d+x\d+-|prompts/){_UNIQUE}\.safetensors"
_PART = rf"index/{_UNIQUE}\.parquet"
_WRITTEN = rf"{_SHARD}|{_PART}|index\.parquet|vidlit_store\.json|(?:files|repeats)\.json|\.encoding\.json"
_KEPT = r"\.(?:files|repeats)\.json\.(?:lock|\d+\.part)|\.lock|\.encoding\.lock"
_HARMLESS = {"lost+found", ".DS_Store", ".gitignore", ".gitkeep"}  # what stands in folders that people call empty
_SHARD_NAME, _PART_NAME, _OWN_NAME = re.compile(_SHARD), re.compile(_PART), re.compile(f"{_WRITTEN}|{_KEPT}")


def unique_name(at: int | None = None) -> str:
    """A name that no other process gives, later ones behind earlier ones.

    Args:
        at: nanoseconds since the epoch; now if ``None``.
    """
    return f"{time.time_ns() if at is None else at:016x}-{uuid.uuid4().hex[:8]}"


def time_of_name(name: str) -> int:
    """Nanoseconds since the epoch at which a part of the index got its name."""
    return int(name.rpartition("/")[2].partition("-")[0], 16)


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


def is_marked(storage: Storage) -> bool:
    """Does the folder say that it is a store?

    Raises:
        UserError: it is one of another version.
    """
    try:
        marked = json.loads(storage.read(MARKER)[:4096])
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    if not isinstance(marked, dict) or marked.get("vidlit_store") != STORE_VERSION:
        raise UserError(f"{storage} was written by another version of vidlit: use another store folder")
    return True


def mark(storage: Storage) -> None:
    """Say that a folder is a store."""
    storage.write(MARKER, json.dumps({"vidlit_store": STORE_VERSION}).encode())


def foreign_names(storage: Storage) -> list[str]:
    """Up to three names of what lies in a folder, or in those of a store in it, and is no store's."""
    found = []
    for name, entry in _entries(storage):
        is_own = name in FOLDERS if entry.kind == "folder" else _OWN_NAME.fullmatch(name) or _is_unfinished(name)
        if not (is_own or name in _HARMLESS):
            found.append(name)
            if len(found) == 3:
                break
    return found


def own_files(storage: Storage, older_than: float) -> list[str]:
    """Shards, and unfinished files that a dead process left, by name; nothing that a link leads to.

    Args:
        storage: of the store.
        older_than: time in seconds since the epoch.
    """
    return [
        name
        for name, entry in _entries(storage)
        if entry.kind == "file" and entry.modified < older_than and (is_shard_name(name) or _is_unfinished(name))
    ]


def shard_sizes(storage: Storage, names: Sequence[str]) -> list[int | None]:
    """Bytes of shards, or ``None`` for what is not there, is no regular file or has no shard's name.

    Raises:
        UserError: one leads out of the store, or the system refuses to say.
    """
    listed: dict[str, Entry] = {}
    with telling(storage):
        for folder in {name.partition("/")[0] for name in names if is_shard_name(name)}:
            listed |= {f"{folder}/{last}": entry for last, entry in storage.entries(folder).items()}
    sizes: list[int | None] = []
    for name in names:
        entry = listed.get(name) if is_shard_name(name) else None
        sizes.append(None if entry is None else storage.size(name) if entry.kind == "link" else entry.size)
    return sizes


@contextlib.contextmanager
def telling(storage: Storage, name: str = "") -> Iterator[None]:
    """Tell users what the system refuses to read."""
    try:
        yield
    except OSError as error:
        where = storage.where(name) if name else storage
        raise UserError(f"cannot read {where}: {error.strerror or error}") from error


def _entries(storage: Storage) -> Iterator[tuple[str, Entry]]:
    """What lies in a store's folder and in its own folders, no deeper."""
    for folder in ("", *FOLDERS):
        for last, entry in storage.entries(folder).items():
            yield f"{folder}/{last}".lstrip("/"), entry
