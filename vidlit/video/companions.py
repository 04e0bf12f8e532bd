"""Files that go with videos, their masks and references, before any is decoded: which can be laid over their video."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vidlit.video.frames import VideoInfo
from vidlit.video.inspection import Inspection, Wanted, inspect_files
from vidlit.video.isolation import IsolatedReader
from vidlit.video.sources import Rejected, SourceVideo

MOST_OFF = 0.02
"""Logarithm by which the aspect ratio may be off: at a lower resolution there are whole pixels, too."""


def inspect_companions(
    rows: Sequence[SourceVideo],
    known: Mapping[str, Inspection],
    cache: Path | None,
    reader: Callable[[], IsolatedReader],
) -> tuple[list[SourceVideo], list[Rejected]]:
    """Look at the masks and references of rows.

    Args:
        rows: of good videos.
        known: what was read of the videos, by name.
        cache: as for :func:`vidlit.video.inspection.inspect_files`.
        reader: makes the readers that open files.

    Returns:
        Rows with the content of what goes with them, and those of which something cannot be used. References are all
        videos or all images, as most are: no batch can have both.
    """
    files = {each.name: each.path for row in rows for each in row.companions.values()}
    found = inspect_files(files, Wanted(), cache, reader, None) if files else {}
    kinds = Counter(each.info.kind for row in rows if (each := _of_reference(row, found)) is not None)
    most = max(sorted(kinds, reverse=True), key=kinds.__getitem__, default=None)  # of as many the videos
    good, bad = [], []
    for row in rows:
        reason = None
        contents = {}
        for what, companion in row.companions.items():
            inspected = found[companion.name]
            if isinstance(inspected, str):
                reason = f"its {what} {companion.name} {inspected}"
            elif not _is_alike(inspected.info, video := known[row.video].info):
                sizes = f"{inspected.info.width}x{inspected.info.height} pixels, its video {video.width}x{video.height}"
                reason = f"its {what} {companion.name} has another shape: {sizes}"
            elif what == "reference" and inspected.info.kind != most:
                reason = (
                    f"its reference {companion.name} is of another kind than those of most rows, which are {most}s: "
                    "clips of one batch have references of one length"
                )
            else:
                contents[what] = companion._replace(content=inspected.content)
        if reason is None:
            good.append(replace(row, companions=contents))
        else:
            bad.append(Rejected(row.video, reason))
    return good, bad


def _of_reference(row: SourceVideo, found: Mapping[str, Inspection | str]) -> Inspection | None:
    """What was read of a row's reference, where it has a good one."""
    inspected = found[row.reference.name] if row.reference is not None else None
    return None if isinstance(inspected, str) else inspected


def _is_alike(companion: VideoInfo, video: VideoInfo) -> bool:
    """Whether both are cropped alike."""
    return abs(math.log(companion.width / companion.height * video.height / video.width)) <= MOST_OFF
