"""What a store asks of the place where its files lie; everything above knows only this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple

from vidlit.errors import UserError

FOLDERS = ("shards", "prompts", "index")
"""Of a store, beside its root, whose name here is the empty text."""
CHANGED = "its bytes changed since they were written"
GONE = "No such file: the shard is gone"
TRUNCATED = "it was truncated: the shard ends before the index says"


class ShardError(UserError):
    """Something stored that is damaged or gone: what is wrong with it, in words that follow its name."""


class Range(NamedTuple):
    """Bytes of a file, and where they go."""

    name: str
    offset: int
    buffer: memoryview


class Entry(NamedTuple):
    """What lies in a folder."""

    kind: Literal["file", "folder", "link", "other"]
    """``link`` is also what lies in a folder that a link leads to."""
    size: int | None
    """In bytes, of a file."""
    modified: float
    """Seconds since the epoch."""


class Storage(ABC):
    """A place for files that are written whole and once, named relative to it: ``shards/…``, ``index/…``.

    It can be pickled, and used in forked processes. Whatever fails in passing is done again; :exc:`OSError` is what
    failed for good.

    Args:
        address: what people call it: a path or a URL.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def __str__(self) -> str:
        return self.address

    def where(self, name: str) -> str:
        """What people call a file of it."""
        return f"{self.address}/{name}"

    @abstractmethod
    def entries(self, folder: str) -> dict[str, Entry]:
        """What lies in one of :data:`FOLDERS` or the root, by its last name; nothing where there is no such folder."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file, all links followed, or ``None`` for what is not there or no file.

        Raises:
            UserError: it leads out of the store, or the system refuses to say.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is none.
            UserError: it leads out of the store.
            OSError: it is no file, or cannot be read.
        """

    @abstractmethod
    def fetch(self, ranges: Sequence[Range]) -> None:
        """Fill buffers with bytes of shards, together where that is quicker.

        Raises:
            RangeError: of a range whose shard is gone or too short.
            UserError: the system refuses to read one.
        """

    @abstractmethod
    def forget(self, bytes_read: Range) -> bool:
        """Read the bytes of a shard anew next time, where they came from a copy; did they?"""

    @abstractmethod
    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file: durable and whole when this returns, or not there.

        Raises:
            OSError: there is no room, or the system refuses.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""

    @abstractmethod
    def version(self) -> Hashable:
        """What differs once a file of the index came or went, or this process wrote anything."""

    @abstractmethod
    def refresh(self) -> None:
        """Have :meth:`version` know what other processes wrote until now, where it does not see that by itself."""

    @abstractmethod
    def encoding_lock(self) -> AbstractContextManager[None]:
        """Be the only one that encodes into the store; who comes second is told whom it waits for, and waits."""

    @abstractmethod
    def notes(self) -> AbstractContextManager[Path]:
        """A local folder with what was found out about the source's files, ``files.json`` and ``repeats.json``.

        What is written there is kept with the store, if it can be.
        """


class RangeError(ShardError):
    """One of several ranges could not be read.

    Args:
        position: which.
        why: in words that follow the name of what was to be read.
    """

    def __init__(self, position: int, why: str) -> None:
        super().__init__(why)
        self.position = position
