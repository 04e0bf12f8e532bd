"""A store on object storage, by any of fsspec's file systems: ``s3://``, ``gs://``, ``az://``, ...

An object is there whole or not at all, so nothing is written beside its place. Credentials come from where the file
system looks for them: environment variables, its own configuration files, the machine's role.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import filelock

from vidlit.errors import UserError
from vidlit.io_retry import NETWORK_PAUSES, retry_io
from vidlit.latents.storage.interface import GONE, TRUNCATED, Entry, Range, RangeError, Storage
from vidlit.latents.storage.lease import leased
from vidlit.latents.storage.range_cache import RangeCache
from vidlit.whole_files import write_whole

T = TypeVar("T")

_NOTES = ("files.json", "repeats.json")
_OURS = (TypeError, AttributeError, NameError, AssertionError, LookupError)
_RANGES_AT_ONCE = 64  # of a request to the file system, which sends them side by side


class ObjectStorage(Storage):
    """A bucket, or what lies in it under a name.

    Args:
        address: a URL that fsspec knows.
        cache_folder: local folder for copies of what was read, and for notes.
        cache_bytes: size that the copies may have in all; 0 for none.

    Raises:
        UserError: fsspec does not know the address, or lacks the package that opens it.
    """

    def __init__(self, address: str, cache_folder: Path, cache_bytes: int) -> None:
        super().__init__(address.rstrip("/"))
        own = hashlib.blake2b(self.address.encode(), digest_size=8).hexdigest()
        self.notes_folder = cache_folder / "notes" / own
        self.cache = RangeCache(cache_folder / "ranges", cache_bytes)
        self._num_writes = 0
        self._process, self._file_system, self._root = 0, None, ""
        self._opened()

    def __getstate__(self) -> dict[str, Any]:
        """For a process of its own, which connects itself."""
        return self.__dict__ | {"_process": 0, "_file_system": None}

    def _opened(self) -> Any:
        """The file system: one for each process, as connections and their threads do not outlive a fork."""
        if self._process != os.getpid():
            self._file_system, self._root = open_file_system(self.address)
            self._process = os.getpid()
        return self._file_system

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _do(self, what: str, name: str, action: Callable[[Any, str], T]) -> T:
        """Do something with an object, again where the network failed.

        Raises:
            OSError: it failed for good.
        """
        fs, path = self._opened(), self._at(name)
        return retry_io(lambda: as_os_error(lambda: action(fs, path)), f"{what} {self.where(name)}", NETWORK_PAUSES)

    def entries(self, folder: str) -> dict[str, Entry]:
        """As :meth:`Storage.entries`."""
        try:
            listed = self._do("looking at", folder, lambda fs, path: fs.ls(path, detail=True, refresh=True))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {}
        for each in listed:
            name = str(each["name"]).rstrip("/").rpartition("/")[2]
            if str(each["name"]).strip("/") != self._at(folder).strip("/"):  # some list the folder itself
                is_file = each.get("type") == "file"
                size = each.get("size") if is_file else None
                found[name] = Entry("file" if is_file else "folder", size, modified(each))
        return found

    def size(self, name: str) -> int | None:
        """As :meth:`Storage.size`."""
        try:
            found = self._do("looking at", name, lambda fs, path: fs.info(path, refresh=True))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {self.where(name)}: {error.strerror or error}") from error
        return found["size"] if found["type"] == "file" else None

    def read(self, name: str) -> bytes:
        """As :meth:`Storage.read`."""
        found: bytes = self._do("reading", name, lambda fs, path: fs.cat_file(path))
        return found

    def fetch(self, ranges: Sequence[Range]) -> None:
        """As :meth:`Storage.fetch`."""
        missing = [
            position
            for position, (name, offset, buffer) in enumerate(ranges)
            if not self.cache.read_into(self.where(name), offset, buffer)
        ]
        for start in range(0, len(missing), _RANGES_AT_ONCE):
            self._fetch(ranges, missing[start : start + _RANGES_AT_ONCE])

    def _fetch(self, ranges: Sequence[Range], wanted: Sequence[int]) -> None:
        """Fill buffers from the network, with requests side by side; those that fail in passing are sent again."""
        left = list(wanted)

        def get(fs: Any, _: str) -> None:
            paths = [self._at(ranges[position].name) for position in left]
            starts = [ranges[position].offset for position in left]
            ends = [start + len(ranges[position].buffer) for start, position in zip(starts, left, strict=True)]
            answers = fs.cat_ranges(paths, starts, ends, on_error="return")
            failed = None
            for position, answer in zip(list(left), answers, strict=True):
                why = self._take(ranges[position], answer)
                if why is None:
                    left.remove(position)
                elif isinstance(why, str):
                    raise RangeError(position, why)
                else:
                    failed = why
            if failed is not None:
                raise failed

        try:
            self._do("reading", ranges[wanted[0]].name, get)
        except OSError as error:
            name = ranges[left[0]].name
            raise UserError(f"cannot read {self.where(name)}: {error.strerror or error}") from error

    def _take(self, wanted: Range, answer: bytes | Exception) -> str | Exception | None:
        """Fill a buffer with what came: what is wrong with the shard, or the error, or ``None``."""
        if isinstance(answer, FileNotFoundError):
            return GONE
        if isinstance(answer, OSError) and answer.errno == errno.EINVAL:  # "the range is not satisfiable"
            return TRUNCATED
        if isinstance(answer, Exception):
            return answer
        if len(answer) < len(wanted.buffer):
            return TRUNCATED
        wanted.buffer[:] = answer[: len(wanted.buffer)]
        self.cache.keep(self.where(wanted.name), wanted.offset, answer)
        return None

    def forget(self, bytes_read: Range) -> bool:
        """As :meth:`Storage.forget`."""
        return self.cache.forget(self.where(bytes_read.name), bytes_read.offset, len(bytes_read.buffer))

    def write(self, name: str, data: bytes | memoryview) -> None:
        """As :meth:`Storage.write`."""
        self._num_writes += 1
        self._do("writing", name, lambda fs, path: fs.pipe_file(path, bytes(data)))

    def remove(self, name: str) -> None:
        """As :meth:`Storage.remove`."""
        self._num_writes += 1
        with contextlib.suppress(FileNotFoundError):
            self._do("removing", name, lambda fs, path: fs.rm_file(path))

    def version(self) -> Hashable:
        """As :meth:`Storage.version`."""
        names = tuple(sorted((name, entry.size) for name, entry in self.entries("index").items()))
        return self._num_writes, names

    def encoding_lock(self) -> contextlib.AbstractContextManager[None]:
        """As :meth:`Storage.encoding_lock`."""
        return leased(self, ".encoding.json")

    @contextlib.contextmanager
    def notes(self) -> Iterator[Path]:
        """As :meth:`Storage.notes`."""
        folder = self.notes_folder
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock"):  # the ranks of a machine come one by one, and find what the first did
            before = {}
            for name in _NOTES:
                with contextlib.suppress(FileNotFoundError):
                    before[name] = self.read(name)
                    write_whole(folder / name, before[name])
            yield folder
            for name in _NOTES:
                with contextlib.suppress(OSError):  # one who may only read looks at the files anew each time
                    if (data := (folder / name).read_bytes()) != before.get(name):
                        self.write(name, data)


def open_file_system(address: str) -> tuple[Any, str]:
    """Fsspec's file system of an address, and what the address is called in it.

    Raises:
        UserError: it knows no such address, or lacks the package that opens it.
    """
    import fsspec

    try:
        # Listings change while others write; an instance that another process opened is of no use here.
        fs, root = fsspec.url_to_fs(address, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise UserError(
            f"cannot open {address}: {' '.join(str(error).split())[:200]} (for s3://, pip install 'vidlit[s3]'; for "
            "gs://, pip install 'vidlit[gs]')."
        ) from error
    except ValueError as error:
        raise UserError(f"cannot open {address}: {' '.join(str(error).split())[:200]}.") from error
    return fs, str(root).rstrip("/")


def modified(found: dict[str, Any]) -> float:
    """Seconds since the epoch of an object's last change, by whatever name a file system has for it; else now."""
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        told = found.get(name)
        if isinstance(told, str):
            with contextlib.suppress(ValueError):
                told = datetime.datetime.fromisoformat(told)
        if isinstance(told, datetime.datetime):
            return told.timestamp()
        if isinstance(told, int | float):
            return float(told)
    return datetime.datetime.now().timestamp()


def as_os_error(action: Callable[[], T]) -> T:
    """Do something on a network; whatever a client library raises is an :exc:`OSError`.

    Raises:
        OSError: with ``ETIMEDOUT`` where another try may help.
    """
    try:
        return action()
    except (OSError, UserError, *_OURS) as error:
        if isinstance(error, OSError) and error.errno is None and type(error) is OSError:
            raise OSError(errno.EIO, _words(error)) from error
        raise
    except Exception as error:
        if "credential" in type(error).__name__.lower() + str(error).lower():
            raise PermissionError(errno.EACCES, f"{_words(error)}: set them as this file system wants it") from error
        raise OSError(errno.ETIMEDOUT, _words(error)) from error


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
