"""What planning reads of each file: header, checksum, perceptual hashes. Remembered, as files rarely change."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from vidlit.video.duplicates import Fingerprint
from vidlit.video.frames import VideoError, VideoInfo
from vidlit.video.isolation import IsolatedReader

_CACHE_VERSION = 2  # goes up whenever a file that did not change would be inspected differently
_MAX_READERS = 8


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was read of one file."""

    content: str
    """SHA-256 of its bytes, in hexadecimal."""
    info: VideoInfo
    fingerprint: Fingerprint | None
    """Of :func:`vidlit.video.duplicates.fingerprint`; ``None`` if it was not asked for."""


def inspect_files(
    files: dict[str, Path],
    fingerprint: bool,
    cache: Path | None,
    reader: Callable[[], IsolatedReader],
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Inspection | str]:
    """Read every file that the cache does not know, several at once, in child processes.

    Args:
        files: paths by the names they are reported under.
        fingerprint: whether perceptual hashes are wanted.
        cache: file that remembers inspections by path, size and time of change.
        reader: makes the readers.
        on_progress: called with (files done, files in all).

    Returns:
        Each file's inspection, or the reason why it cannot be used; sorted by name.
    """
    with contextlib.ExitStack() as held:
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            # Of several ranks, or runs, one reads the files and the others then find them in the cache.
            held.enter_context(filelock.FileLock(cache.with_name(f".{cache.name}.lock")))
        return _inspect_files(files, fingerprint, cache, reader, on_progress)


def _inspect_files(
    files: dict[str, Path],
    fingerprint: bool,
    cache: Path | None,
    reader: Callable[[], IsolatedReader],
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Inspection | str]:
    remembered = _read_cache(cache)
    results: dict[str, Inspection | str] = {}
    stamps: dict[str, tuple[str, int, int]] = {}
    missing = []
    for video, path in sorted(files.items()):
        status = path.stat()
        stamps[video] = (str(path), status.st_size, status.st_mtime_ns)
        found = remembered.get(stamps[video])
        if found is not None and (found.fingerprint is not None or not fingerprint):
            results[video] = found
        else:
            missing.append(video)

    readers: list[IsolatedReader] = []
    mine = threading.local()

    def start_reader() -> None:
        mine.reader = reader()
        readers.append(mine.reader)

    def inspect(video: str) -> Inspection | str:
        try:
            info, hashes = mine.reader.inspect(files[video], fingerprint)
            with files[video].open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except (VideoError, OSError) as error:
            return str(error)
        return Inspection(content, info, _fingerprint(hashes) if fingerprint else None)

    workers = min(_MAX_READERS, os.cpu_count() or 1, len(missing))
    if workers:
        pool = ThreadPoolExecutor(workers, initializer=start_reader)
        try:
            for done, (video, result) in enumerate(zip(missing, pool.map(inspect, missing), strict=True), 1):
                results[video] = result
                if on_progress is not None:
                    on_progress(len(files) - len(missing) + done, len(files))
        finally:  # after Ctrl-C, too: what is known is kept, what waits is not begun
            pool.shutdown(wait=False, cancel_futures=True)
            for each in readers:
                each.close()
            new = {stamps[video]: results[video] for video in missing if video in results}
            known = {stamp: result for stamp, result in new.items() if isinstance(result, Inspection)}
            _write_cache(cache, remembered | known)
    return {video: results[video] for video in sorted(results)}


def _fingerprint(fields: list[Any]) -> Fingerprint:
    """From JSON, which knows lists only."""
    spread, timeline = fields
    return Fingerprint(tuple(spread), tuple((time, code) for time, code in timeline))


def _read_cache(cache: Path | None) -> dict[tuple[str, int, int], Inspection]:
    """An unreadable or older cache is no cache."""
    try:
        saved = json.loads(cache.read_text("utf-8")) if cache is not None else {}
        if saved.get("version") != _CACHE_VERSION:
            return {}
        return {
            (path, size, mtime_ns): Inspection(
                content, VideoInfo(**info), _fingerprint(hashes) if hashes is not None else None
            )
            for path, size, mtime_ns, content, info, hashes in saved["files"]
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _write_cache(cache: Path | None, entries: dict[tuple[str, int, int], Inspection]) -> None:
    if cache is None:
        return
    latest = {stamp[0]: (stamp, entry) for stamp, entry in entries.items()}  # one entry a path: the newest
    files = [[*stamp, e.content, asdict(e.info), e.fingerprint] for stamp, e in latest.values()]
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps({"version": _CACHE_VERSION, "files": files}), "utf-8")
    temporary.replace(cache)
