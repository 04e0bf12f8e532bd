"""Masks of videos, before any is decoded: which rows have one that can be laid over their video."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vidlit.video.frames import VideoInfo
from vidlit.video.inspection import Inspection, Wanted, inspect_files
from vidlit.video.isolation import IsolatedReader
from vidlit.video.sources import Rejected, SourceVideo

MOST_OFF = 0.02
"""Logarithm by which a mask's aspect ratio may be off: at a lower resolution it has whole pixels, too."""


def inspect_masks(
    rows: Sequence[SourceVideo],
    known: Mapping[str, Inspection],
    cache: Path | None,
    reader: Callable[[], IsolatedReader],
) -> tuple[list[tuple[SourceVideo, str | None]], list[Rejected]]:
    """Look at the masks of rows.

    Args:
        rows: of good videos.
        known: what was read of the videos, by name.
        cache: as for :func:`vidlit.video.inspection.inspect_files`.
        reader: makes the readers that open files.

    Returns:
        Rows with the SHA-256 of their mask, ``None`` where they have none; and those whose mask cannot be used.
    """
    files = {row.mask: row.mask_path for row in rows if row.mask is not None and row.mask_path is not None}
    found = inspect_files(files, Wanted(), cache, reader, None) if files else {}
    good: list[tuple[SourceVideo, str | None]] = []
    bad = []
    for row in rows:
        mask = found[row.mask] if row.mask is not None else None
        if isinstance(mask, str):
            bad.append(Rejected(row.video, f"its mask {row.mask} {mask}"))
        elif mask is not None and not _is_alike(mask.info, video := known[row.video].info):
            sizes = f"{mask.info.width}x{mask.info.height} pixels, its video {video.width}x{video.height}"
            bad.append(Rejected(row.video, f"its mask {row.mask} has another shape: {sizes}"))
        else:
            good.append((row, None if mask is None else mask.content))
    return good, bad


def _is_alike(mask: VideoInfo, video: VideoInfo) -> bool:
    """Whether both are cropped alike."""
    return abs(math.log(mask.width / mask.height * video.height / video.width)) <= MOST_OFF
