"""What planning reads of each file: header, checksum, hashes, cuts. Remembered, as files rarely change."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock

from vidlit.video.frames import VideoError, VideoInfo
from vidlit.video.isolation import IsolatedReader
from vidlit.video.repeats.duplicates import Fingerprint
from vidlit.whole_files import write_whole

_CACHE_VERSION = 3  # goes up whenever a file that did not change would be inspected differently
_MAX_READERS = 8
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a plan needs to know of files, beyond their headers and checksums."""

    fingerprint: bool = False
    """Perceptual hashes: :func:`vidlit.video.repeats.duplicates.fingerprint`."""
    cuts: bool = False
    """Where scenes begin: :func:`vidlit.video.scenes.find_cuts`."""
    frames: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Numbers of frames whose times are wanted, by the name of the file."""
    sound: bool = False
    """Whether there is any, which earlier versions did not look for."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was read of one file."""

    content: str
    """SHA-256 of its bytes, in hexadecimal."""
    info: VideoInfo
    fingerprint: Fingerprint | None = None
    """``None`` if it was not asked for, as are cuts."""
    cuts: tuple[float, ...] | None = None
    """Seconds at which a scene begins, but for the first."""
    frame_times: Mapping[int, float] = field(default_factory=dict)
    """Seconds at which frames appear, by their numbers: those that were asked for. Of a number beyond the last frame
    those at which the video ends."""

    def lacks(self, video: str, wanted: Wanted) -> bool:
        """Whether the file has to be opened again."""
        return (
            (wanted.fingerprint and self.fingerprint is None)
            or (wanted.cuts and self.cuts is None)
            or (wanted.sound and self.info.has_sound is None)
            or not wanted.frames.get(video, frozenset()) <= self.frame_times.keys()
        )

    def with_what_was_known(self, earlier: Inspection | None) -> Inspection:
        """Together with another inspection of the same bytes."""
        if earlier is None or earlier.content != self.content:
            return self
        return replace(
            self,
            fingerprint=self.fingerprint or earlier.fingerprint,
            cuts=self.cuts if self.cuts is not None else earlier.cuts,
            frame_times={**earlier.frame_times, **self.frame_times},
        )


def inspect_files(
    files: dict[str, Path],
    wanted: Wanted,
    cache: Path | None,
    reader: Callable[[], IsolatedReader],
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Inspection | str]:
    """Read every file that the cache does not know, several at once, in child processes.

    Args:
        files: paths by the names they are reported under.
        wanted: what to read of them.
        cache: file that remembers inspections by address, size and time of change; one that cannot be written, such as
            in a read-only store, remembers nothing new. Files that cannot be used are looked at each time.
        reader: makes the readers.
        on_progress: called with (files done, files in all).

    Returns:
        Each file's inspection, or the reason why it cannot be used; sorted by name.
    """
    with contextlib.ExitStack() as held:
        if cache is not None:
            try:
                cache.parent.mkdir(parents=True, exist_ok=True)
                # Of several ranks, or runs, one reads the files and the others then find them in the cache.
                held.enter_context(filelock.FileLock(cache.with_name(f".{cache.name}.lock")))
            except (OSError, NotImplementedError) as error:  # a read-only disk; a file system without locks
                _logger.debug("%s is read without a lock: %s", cache, error)
        return _inspect_files(files, wanted, cache, reader, on_progress)


def _inspect_files(
    files: dict[str, Path],
    wanted: Wanted,
    cache: Path | None,
    reader: Callable[[], IsolatedReader],
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Inspection | str]:
    remembered = _read_cache(cache)
    results: dict[str, Inspection | str] = {}
    stamps: dict[str, tuple[str, int, int]] = {}
    missing = []
    address = reader().address
    for video, path in sorted(files.items()):
        status = path.stat()
        stamps[video] = (address(path), status.st_size, status.st_mtime_ns)
        found = remembered.get(stamps[video])
        if found is None or found.lacks(video, wanted):
            missing.append(video)
        else:
            results[video] = found

    readers: list[IsolatedReader] = []
    mine = threading.local()

    def start_reader() -> None:
        mine.reader = reader()
        readers.append(mine.reader)

    def inspect(video: str) -> Inspection | str:
        try:
            return _inspect(mine.reader, video, files[video], wanted)
        except (VideoError, OSError) as error:
            return str(error)

    workers = min(_MAX_READERS, os.cpu_count() or 1, len(missing))
    if workers:
        pool = ThreadPoolExecutor(workers, initializer=start_reader)
        try:
            for done, (video, result) in enumerate(zip(missing, pool.map(inspect, missing), strict=True), 1):
                if isinstance(result, Inspection):
                    result = result.with_what_was_known(remembered.get(stamps[video]))
                results[video] = result
                if on_progress is not None:
                    on_progress(len(files) - len(missing) + done, len(files))
        finally:  # after Ctrl-C, too: what is known is kept, what waits is not begun, what runs loses its reader
            pool.shutdown(wait=False, cancel_futures=True)
            for each in readers:
                each.close()
            pool.shutdown(wait=True)  # no thread is left for the end of the interpreter
            for each in readers:  # one may have just begun
                each.close()
            new = {stamps[video]: results[video] for video in missing if video in results}
            known = {stamp: result for stamp, result in new.items() if isinstance(result, Inspection)}
            try:
                _write_cache(cache, remembered | known)
            except OSError as error:
                _logger.debug("%s is not written: %s", cache, error)
    return {video: results[video] for video in sorted(results)}


def _inspect(reader: IsolatedReader, video: str, path: Path, wanted: Wanted) -> Inspection:
    info, hashes = reader.inspect(path, wanted.fingerprint)
    is_video = info.kind == "video"
    numbers = sorted(wanted.frames.get(video, ()))
    times = reader.frame_times(path, numbers) if numbers and is_video else [0.0] * len(numbers)
    cuts = tuple(reader.find_cuts(path, info)) if wanted.cuts and is_video else ()
    return Inspection(
        reader.content(path),
        info,
        fingerprint=_fingerprint(hashes) if wanted.fingerprint else None,
        cuts=cuts if wanted.cuts else None,
        frame_times=dict(zip(numbers, times, strict=True)),
    )


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
                content,
                VideoInfo(**info),
                _fingerprint(hashes) if hashes is not None else None,
                tuple(cuts) if cuts is not None else None,
                {int(number): float(time) for number, time in times},
            )
            for path, size, mtime_ns, content, info, hashes, cuts, times in saved["files"]
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _write_cache(cache: Path | None, entries: dict[tuple[str, int, int], Inspection]) -> None:
    if cache is None:
        return
    latest = {stamp[0]: (stamp, entry) for stamp, entry in entries.items()}  # one entry a path: the newest
    files = [
        [*stamp, e.content, asdict(e.info), e.fingerprint, e.cuts, list(e.frame_times.items())]
        for stamp, e in latest.values()
    ]
    write_whole(cache, json.dumps({"version": _CACHE_VERSION, "files": files}).encode())
