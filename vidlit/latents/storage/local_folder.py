"""A store in a local folder: files are synced and renamed, and read at an offset into memory that is there already."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vidlit.errors import UserError
from vidlit.held_lock import HeldLock
from vidlit.io_retry import retry_io
from vidlit.latents.storage.interface import GONE, TRUNCATED, Entry, Range, RangeError, Storage
from vidlit.whole_files import open_regular, write_whole

_one_reader = threading.Lock()


class LocalFolder(Storage):
    """A folder of this machine, or of a network file system.

    Shards are read straight, because parsing a shard's header costs more than reading a clip from it, and because a
    truncated file is then an error with a name rather than the SIGBUS of a memory map.

    Args:
        root: the folder; made when the first file is written.
    """

    most_open = 128  # well under the usual 1,024 descriptors a process

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.root = root
        self._open: dict[str, int] = {}  # reads are at an offset, so forked workers may share a descriptor
        self._num_writes = 0

    def __getstate__(self) -> dict[str, Any]:
        """For a process of its own, which opens files itself."""
        return self.__dict__ | {"_open": {}}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def entries(self, folder: str) -> dict[str, Entry]:
        """As :meth:`Storage.entries`."""
        return retry_io(partial(self._entries, folder), f"looking at {self.root / folder}")

    def _entries(self, folder: str) -> dict[str, Entry]:
        path, found = self.root / folder, {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
            is_linked = bool(folder) and path.is_symlink()
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found[entry.name] = _entry(status, is_linked)
        return found

    def size(self, name: str) -> int | None:
        """As :meth:`Storage.size`."""
        path = self._inside(name)
        try:
            status = retry_io(path.stat, f"looking at {path}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self, name: str) -> bytes:
        """As :meth:`Storage.read`."""
        path = self._inside(name)
        return retry_io(partial(_read_whole, path), f"reading {path}")

    def _inside(self, name: str) -> Path:
        path = self.root / name
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise UserError(f"{path} is a link that leads out of the store: put the file itself there")
        return path

    # -- ranges

    def fetch(self, ranges: Sequence[Range]) -> None:
        """As :meth:`Storage.fetch`."""
        for position, (name, offset, buffer) in enumerate(ranges):
            try:
                done = self._read_at(name, offset, buffer)
            except FileNotFoundError as error:
                raise RangeError(position, GONE) from error
            except OSError:
                done = self._retried(position, name, offset, buffer)
            if done < len(buffer):
                raise RangeError(position, TRUNCATED)

    def _retried(self, position: int, name: str, offset: int, buffer: memoryview) -> int:
        path = self.root / name
        try:
            return retry_io(partial(self._read_at, name, offset, buffer), f"reading {path}")
        except FileNotFoundError as error:
            raise RangeError(position, GONE) from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error

    def _read_at(self, name: str, offset: int, buffer: memoryview) -> int:
        """Fill a buffer as far as the file goes: bytes read."""
        descriptor = self._open.get(name)
        if descriptor is None:
            descriptor = self._descriptor(name)
        try:
            done = read_at(descriptor, buffer, offset)
            while done < len(buffer):  # a signal came, or the file ends here
                count = read_at(descriptor, buffer[done:], offset + done)
                if not count:
                    break
                done += count
        except OSError:  # a network file system that comes back wants the file opened anew
            os.close(self._open.pop(name))
            raise
        return done

    def _descriptor(self, name: str) -> int:
        descriptor = open_regular(self._inside(name))
        if len(self._open) >= self.most_open:
            os.close(self._open.pop(next(iter(self._open))))  # opened first
        self._open[name] = descriptor
        return descriptor

    def forget(self, bytes_read: Range) -> bool:
        """Nothing to forget: bytes are read from where they are."""
        return False

    # -- writing

    def write(self, name: str, data: bytes | memoryview) -> None:
        """As :meth:`Storage.write`."""
        self._num_writes += 1
        write_whole(self.root / name, data, sync=True)

    def remove(self, name: str) -> None:
        """As :meth:`Storage.remove`."""
        self._num_writes += 1
        (self.root / name).unlink(missing_ok=True)

    def version(self) -> Hashable:
        """Of shards, whose files nobody writes twice, only that one came or went is noticed."""
        found: list[Any] = [self._num_writes, sorted(self.entries("index").items())]
        for name in ("index.parquet", "shards", "prompts"):
            with contextlib.suppress(OSError):
                status = os.stat(self.root / name)
                found.append((name, status.st_size, status.st_mtime_ns, status.st_ino))
        return repr(found)

    def refresh(self) -> None:
        """Nothing to do: the folder itself tells."""

    @contextlib.contextmanager
    def encoding_lock(self) -> Iterator[None]:
        """As :meth:`Storage.encoding_lock`."""
        lock = HeldLock(self.root / ".encoding.lock", self.root / ".encoding.json")
        if not lock.acquire():
            who = lock.holder()
            print(f"another process is encoding into {self.root} ({who}): waiting until it is done", file=sys.stderr)
            lock.acquire(wait=True)
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def notes(self) -> Iterator[Path]:
        """The folder itself."""
        yield self.root


def _entry(status: os.stat_result, is_linked: bool) -> Entry:
    if is_linked or stat.S_ISLNK(status.st_mode):
        return Entry("link", None, status.st_mtime)
    if stat.S_ISREG(status.st_mode):
        return Entry("file", status.st_size, status.st_mtime)
    return Entry("folder" if stat.S_ISDIR(status.st_mode) else "other", None, status.st_mtime)


def _read_whole(path: Path) -> bytes:
    with open(open_regular(path), "rb") as file:
        return file.read()


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read into a buffer from a byte offset, whoever else reads the file: bytes read, 0 at its end."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    with _one_reader:  # Windows: threads share the place in the file, forks there are none
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)
