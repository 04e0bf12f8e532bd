"""A store on object storage, by any of fsspec's file systems: ``s3://``, ``gs://``, ``az://``, ...

An object is there whole or not at all, so nothing is written beside its place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from vidlit.errors import UserError
from vidlit.latents.storage.interface import GONE, TRUNCATED, Entry, Range, RangeError, Storage
from vidlit.latents.storage.lease import leased
from vidlit.latents.storage.range_cache import RangeCache
from vidlit.remote_files import RemoteFiles, modified
from vidlit.whole_files import write_whole

_NOTES = ("files.json", "repeats.json")
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
        self._files = RemoteFiles(address)
        super().__init__(self._files.address)
        own = hashlib.blake2b(self.address.encode(), digest_size=8).hexdigest()
        self.notes_folder = cache_folder / "notes" / own
        self.cache = RangeCache(cache_folder / "ranges", cache_bytes)
        self._num_changes = 0

    def entries(self, folder: str) -> dict[str, Entry]:
        """As :meth:`Storage.entries`."""
        try:
            listed = self._files.do("looking at", folder, lambda fs, path: fs.ls(path, detail=True, refresh=True))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {}
        for each in listed:
            name = str(each["name"]).rstrip("/").rpartition("/")[2]
            if str(each["name"]).strip("/") != self._files.path(folder).strip("/"):  # some list the folder itself
                is_file = each.get("type") == "file"
                size = each.get("size") if is_file else None
                changed = modified(each)
                found[name] = Entry("file" if is_file else "folder", size, time.time() if changed is None else changed)
        return found

    def size(self, name: str) -> int | None:
        """As :meth:`Storage.size`."""
        try:
            found = self._files.do("looking at", name, lambda fs, path: fs.info(path, refresh=True))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {self.where(name)}: {error.strerror or error}") from error
        return found["size"] if found["type"] == "file" else None

    def read(self, name: str) -> bytes:
        """As :meth:`Storage.read`."""
        found: bytes = self._files.do("reading", name, lambda fs, path: fs.cat_file(path))
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
            paths = [self._files.path(ranges[position].name) for position in left]
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
            self._files.do("reading", ranges[wanted[0]].name, get)
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
        self._num_changes += 1
        self._files.do("writing", name, lambda fs, path: fs.pipe_file(path, bytes(data)))

    def remove(self, name: str) -> None:
        """As :meth:`Storage.remove`."""
        self._num_changes += 1
        with contextlib.suppress(FileNotFoundError):
            self._files.do("removing", name, lambda fs, path: fs.rm_file(path))

    def version(self) -> Hashable:
        """As :meth:`Storage.version`; of what others write only :meth:`refresh` tells: looking costs a round trip."""
        return self._num_changes

    def refresh(self) -> None:
        """As :meth:`Storage.refresh`."""
        self._num_changes += 1

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
                try:
                    before[name] = self.read(name)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise UserError(f"cannot read {self.where(name)}: {error.strerror or error}") from error
                write_whole(folder / name, before[name])
            yield folder
            for name in _NOTES:
                with contextlib.suppress(OSError):  # one who may only read looks at the files anew each time
                    if (data := (folder / name).read_bytes()) != before.get(name):
                        self.write(name, data)
