"""Near-duplicates of a set of files, sought once: what was found is kept beside what was read of the files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping, Set
from pathlib import Path

import filelock

from vidlit.video.inspection import Inspection
from vidlit.video.repeats.duplicates import find_near_duplicates
from vidlit.whole_files import write_whole

_VERSION = 1  # goes up whenever other pairs would be found
_logger = logging.getLogger(__name__)


def near_duplicates(known: Mapping[str, Inspection], cache: Path | None) -> list[tuple[str, str, float]]:
    """As :func:`vidlit.video.repeats.duplicates.find_near_duplicates`, once for a set of names and contents.

    Args:
        known: what was read of the files, by name.
        cache: file that remembers inspections; what is found is kept in ``repeats.json`` beside it. Several processes
            wait for the one that seeks. Where nothing can be written, each seeks by itself.
    """
    fingerprints = {video: found.fingerprint for video, found in known.items() if found.fingerprint is not None}
    if cache is None:
        return find_near_duplicates(fingerprints)
    path = cache.with_name("repeats.json")
    digest = hashlib.sha256(f"{_VERSION}".encode())
    for video in sorted(fingerprints):
        digest.update(f"{len(video.encode())} {video} {known[video].content} ".encode())
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(filelock.FileLock(path.with_name(f".{path.name}.lock")))
        except (OSError, NotImplementedError) as error:  # a read-only disk; a file system without locks
            _logger.debug("%s is read without a lock: %s", path, error)
        found = _read(path, digest.hexdigest(), fingerprints.keys())
        if found is None:
            found = find_near_duplicates(fingerprints)
            with contextlib.suppress(OSError):
                write_whole(path, json.dumps({"of": digest.hexdigest(), "pairs": found}).encode())
    return found


def _read(path: Path, wanted: str, videos: Set[str]) -> list[tuple[str, str, float]] | None:
    """What is kept, if it is of the same files and whole."""
    try:
        kept = json.loads(path.read_bytes())
        if kept["of"] != wanted:
            return None
        pairs = [(str(first), str(second), float(distance)) for first, second, distance in kept["pairs"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return pairs if all(first in videos and second in videos for first, second, _ in pairs) else None
