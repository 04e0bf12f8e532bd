"""Near-duplicates of a set of files, sought once: what was found is kept beside what was read of the files."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import filelock

from vidlit.video.inspection import Inspection
from vidlit.video.repeats.duplicates import Ties, find_near_duplicates
from vidlit.whole_files import write_whole

_VERSION = 2  # goes up whenever other pairs would be found
_logger = logging.getLogger(__name__)


def near_duplicates(known: Mapping[str, Inspection], cache: Path | None) -> list[tuple[str, str, float]]:
    """As :func:`vidlit.video.repeats.duplicates.find_near_duplicates`; what was compared before is not compared again.

    Args:
        known: what was read of the files, by name.
        cache: file that remembers inspections; what is found is kept in ``repeats.json`` beside it. Several processes
            wait for the one that seeks. Where nothing can be written, each seeks by itself.
    """
    fingerprints = {video: found.fingerprint for video, found in known.items() if found.fingerprint is not None}
    if cache is None:
        return find_near_duplicates(fingerprints)
    path = cache.with_name("repeats.json")
    contents = {video: known[video].content for video in sorted(fingerprints)}
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(filelock.FileLock(path.with_name(f".{path.name}.lock")))
        except (OSError, NotImplementedError) as error:  # a read-only disk; a file system without locks
            _logger.debug("%s is read without a lock: %s", path, error)
        compared, pairs = _read(path)
        if compared == contents:
            return pairs
        new, kept = _changes(contents, compared, pairs)
        found = find_near_duplicates(fingerprints, kept, new)
        with contextlib.suppress(OSError):
            write_whole(path, json.dumps({"version": _VERSION, "compared": contents, "pairs": found}).encode())
    return found


def _changes(
    contents: Mapping[str, str], compared: Mapping[str, str], pairs: Iterable[tuple[str, str, float]]
) -> tuple[set[str], list[tuple[str, str, float]]]:
    """Videos that are to be compared with all, and the pairs that stand.

    A video that is gone, or another one by now, may have been what tied others to each other: these are compared anew.
    """
    ties = Ties()
    for first, second, _ in pairs:
        ties.tie(first, second)
    changed = {video for video, content in compared.items() if contents.get(video) != content}
    broken = {ties.root(video) for video in changed}
    new = {video for video in contents if video not in compared or ties.root(video) in broken}
    return new, [pair for pair in pairs if ties.root(pair[0]) not in broken]


def _read(path: Path) -> tuple[dict[str, str], list[tuple[str, str, float]]]:
    """What is kept, if it is whole: contents that were compared, by name, and the pairs among them."""
    try:
        kept = json.loads(path.read_bytes())
        compared = {str(video): str(content) for video, content in kept["compared"].items()}
        pairs = [(str(first), str(second), float(distance)) for first, second, distance in kept["pairs"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, []
    if kept.get("version") != _VERSION or not all({first, second} <= compared.keys() for first, second, _ in pairs):
        return {}, []
    return compared, pairs
