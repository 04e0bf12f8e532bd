"""A source on object storage: a local folder that looks like it, whose videos come one at a time when they are read.

Layouts, the cache of inspections and rows know only folders. So captions and tables are copied to one; a video or an
image stands there as an empty file of the object's size and time of change, which takes no room on the disk, and is
fetched to a temporary file by the reader that opens it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import filelock

from vidlit.errors import UserError
from vidlit.held_lock import is_alive
from vidlit.remote_files import RemoteFiles, modified
from vidlit.video.frames import TransientVideoError
from vidlit.video.isolation import IsolatedReader
from vidlit.video.layouts.source_folder import is_media
from vidlit.video.layouts.table_files import TABLE_SUFFIXES

_LARGEST_CAPTION, _LARGEST_TABLE = 2**20, 2**30
"""Bytes of what is copied whole: a table of a million rows has a third of it. Archives and weights lie beside videos,
too, and nobody reads them."""
_COPIES = "vidlit-video-"  # beginning of the names of temporary folders, before the number of their process


class RemoteSource:
    """A folder on object storage.

    Args:
        address: a URL that fsspec knows.
        cache_folder: local folder for the one that looks like it.

    Raises:
        UserError: fsspec does not know the address, or lacks the package that opens it.
    """

    def __init__(self, address: str, cache_folder: Path) -> None:
        self.files = RemoteFiles(address)
        own = hashlib.blake2b(self.files.address.encode(), digest_size=8).hexdigest()
        self.folder = (cache_folder / "sources" / own).absolute()

    @property
    def open_reader(self) -> Callable[[], FetchingReader]:
        """Makes readers of its videos; can be sent to other machines."""
        return partial(FetchingReader, self.files, self.folder)

    def refresh(self) -> Path:
        """Bring the local folder up to date, and say where it is. Several processes wait for each other.

        Raises:
            UserError: the source cannot be listed or read, or there is nothing.
        """
        address = self.files.address
        try:
            found = self.files.do("looking at", "", lambda fs, path: fs.find(path, detail=True, refresh=True))
            listed = self._by_name(found)
            if not listed:
                raise UserError(f"{address} holds no files: is data.source right?")
            self.folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.folder.with_name(f".{self.folder.name}.lock")):
                self._remove_others(listed)
                for name, info in listed.items():
                    self._bring(name, int(info.get("size") or 0), int((modified(info) or 0.0) * 1e6) * 1000)
        except OSError as error:
            raise UserError(f"cannot read {address}: {error.strerror or error}") from error
        return self.folder

    def _by_name(self, found: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """What was found, by names relative to the source; what would leave the folder is left out."""
        root = self.files.path("").strip("/")
        listed, refused = {}, []
        for path, info in found.items():
            name = path.strip("/").removeprefix(root).strip("/")
            parts = name.split("/")
            if info.get("type") != "file" or path.endswith("/") or any(part.startswith(".") for part in parts[:-1]):
                continue
            if name and not any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
                listed[name] = info
            else:
                refused.append(name)
        if refused:
            print(f"vidlit: {len(refused)} files of {self.files.address} have names that are no paths", file=sys.stderr)
        return listed

    def _remove_others(self, listed: Mapping[str, Any]) -> None:
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is in a folder before the folder
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in listed:
                path.unlink()

    def _bring(self, name: str, size: int, time_ns: int) -> None:
        """One file: its text, or an empty one that looks like it."""
        path = self.folder / name
        with contextlib.suppress(OSError):
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) == (size, time_ns):
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.part")
        is_table = PurePosixPath(name).suffix.lower() in TABLE_SUFFIXES
        if not is_media(name) and size <= (_LARGEST_TABLE if is_table else _LARGEST_CAPTION):
            fetch(self.files, name, unfinished)
        else:
            with unfinished.open("wb") as file:
                file.truncate(size)
        os.utime(unfinished, ns=(time_ns, time_ns))
        unfinished.replace(path)


class _Copy(NamedTuple):
    """Of a file of the source, and the process that fetched it: a fork holds the same, which is not its own."""

    of: Path
    path: Path
    process: int


class FetchingReader(IsolatedReader):
    """Reads videos of a :class:`RemoteSource`: keeps a temporary copy of the one that it read last.

    Args:
        files: of the source.
        folder: that looks like it.
    """

    def __init__(self, files: RemoteFiles, folder: Path) -> None:
        self._copy: _Copy | None = None
        super().__init__()
        self.files, self.folder = files, folder

    def local(self, path: Path) -> Path:
        """Fetch a video, unless it is the last one.

        Raises:
            TransientVideoError: it cannot be fetched.
        """
        if not path.is_relative_to(self.folder):
            return path
        if self._copy is None or self._copy.of != path or self._copy.process != os.getpid():
            self._forget()
            _remove_left_copies()
            try:
                folder = tempfile.mkdtemp(prefix=f"{_COPIES}{os.getpid()}-")
                self._copy = _Copy(path, Path(folder) / f"video{path.suffix}", os.getpid())
                fetch(self.files, self._name(path), self._copy.path)
            except OSError as error:
                self._forget()
                raise TransientVideoError(f"cannot be fetched: {error.strerror or error}") from error
        return self._copy.path

    def address(self, path: Path) -> str:
        """The URL of a video: its place in the local folder is another one on each machine."""
        return self.files.where(self._name(path)) if path.is_relative_to(self.folder) else str(path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _forget(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None and copy.process == os.getpid():
            shutil.rmtree(copy.path.parent, ignore_errors=True)

    def close(self) -> None:
        """End the child, and remove the copy."""
        super().close()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_copy": None}


@functools.cache  # once a process
def _remove_left_copies() -> None:
    """Of processes of this machine that were killed, as Ray's workers are in the end."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_COPIES}*-*"):
        number = folder.name.removeprefix(_COPIES).partition("-")[0]
        if number.isdecimal() and not is_alive(int(number)) and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def fetch(files: RemoteFiles, name: str, path: Path) -> None:
    """Copy a file to this machine.

    Raises:
        OSError: it cannot be read, or there is no room.
    """
    files.do("fetching", name, lambda fs, remote: fs.get_file(remote, str(path)))
