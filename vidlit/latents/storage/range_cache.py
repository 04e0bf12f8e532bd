"""A local copy of what was read from object storage, of limited size: what was not used for longest goes first."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from pathlib import Path

from vidlit.whole_files import UNFINISHED, open_regular, replacing

_SHARE_BYTES = 2**30
"""What a folder of the cache holds: few enough files to look through in milliseconds when it is full."""
_KEPT_FREE_BYTES = 2**31  # of the disk: a run's checkpoints and logs go to the same one, as a rule
_NAME = re.compile("[0-9a-f]{32}")


class RangeCache:
    """Ranges of files that never change, each a file of its own. Processes share it.

    A range that cannot be kept, for want of room or permission, is read from its origin again: nothing else happens.

    Args:
        folder: where; made when the first range is kept.
        limit_bytes: size that it may have; 0 keeps nothing. Each process looks again when it has added a sixteenth.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._num_folders = max(1, limit_bytes // _SHARE_BYTES)
        self._share = limit_bytes // self._num_folders
        self._added: dict[Path, int] = {}  # bytes since this process last looked through a folder

    def read_into(self, origin: str, offset: int, buffer: memoryview) -> bool:
        """Fill a buffer with a range, if it is here.

        Args:
            origin: the file.
            offset: where the range begins in it.
            buffer: of the range's size.
        """
        path = self._path(origin, offset, len(buffer))
        try:
            with open(open_regular(path), "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != len(buffer) or file.readinto(buffer) != len(buffer):
                    return False
                os.utime(path)  # used last
        except OSError:
            return False
        return True

    def keep(self, origin: str, offset: int, data: bytes | memoryview) -> None:
        """Keep a range that was read."""
        if len(data) > self._share // 4:
            return
        path = self._path(origin, offset, len(data))
        with contextlib.suppress(OSError):
            self._make_room(path.parent, len(data))
            if shutil.disk_usage(path.parent).free > _KEPT_FREE_BYTES + len(data):
                with replacing(path) as unfinished:
                    unfinished.write_bytes(data)

    def forget(self, origin: str, offset: int, size: int) -> bool:
        """Remove a range; was it here?"""
        try:
            self._path(origin, offset, size).unlink()
        except OSError:
            return False
        return True

    def _path(self, origin: str, offset: int, size: int) -> Path:
        name = hashlib.blake2b(f"{origin} {offset} {size}".encode(), digest_size=16).hexdigest()
        return self.folder / f"{int(name[:8], 16) % self._num_folders:04d}" / name

    def _make_room(self, folder: Path, size: int) -> None:
        """Remove what was used longest ago where the folder would become larger than its share."""
        folder.mkdir(parents=True, exist_ok=True)
        added = self._added.get(folder)
        if added is not None and added + size <= self._share // 16:
            self._added[folder] = added + size
            return
        found, total = [], size + self._share // 16
        with os.scandir(folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) or UNFINISHED.fullmatch(entry.name):
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_mtime_ns, status.st_size, entry.path))
                        total += status.st_size
        for _, freed, path in sorted(found):
            if total <= self._share:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= freed
        self._added[folder] = size
