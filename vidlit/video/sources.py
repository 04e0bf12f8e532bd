"""A folder someone prepared, in any of the usual layouts, to rows of videos with captions. Opens no video."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vidlit.errors import UserError
from vidlit.video.buckets import Bucket
from vidlit.video.frames import BLACK, ClipRequest, Color
from vidlit.video.layouts import PATH_COLUMNS, Rejected, find_layout, media_files

__all__ = ["Clip", "Rejected", "SourceVideo", "Sources", "read_sources"]

_CAPTION_COLUMNS = ("caption", "text", "prompt")


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """One row: a video, or a span of one, and its caption."""

    path: Path
    """Absolute, inside the source folder with all links resolved."""
    video: str
    """Posix path relative to the source folder: how people and clip names know it."""
    caption: str
    group: str
    """Name of its recording: files of one stay on one side of the split. The video itself by default."""
    start: float | None = None
    """Seconds; ``None`` for the first frame."""
    end: float | None = None
    """Seconds; ``None`` for the end."""
    frame_span: tuple[int, int | None] | None = None
    """A span given in frames of the file, end excluded; becomes seconds when its frame rate is known."""
    extra: dict[str, str] = field(default_factory=dict)
    """Columns that are not vidlit's own, as text."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A span of one video, brought to one bucket: what is encoded, split, sampled and counted."""

    clip_id: str
    """Relative path and span, ``nasa.mp4@1.000-2.062``: the same in every run and on every machine."""
    source: SourceVideo
    start: float
    """Seconds after the first frame."""
    fps: float
    bucket: Bucket
    content: str
    """SHA-256 of the file's bytes, in hexadecimal."""

    def request(self, background: Color = BLACK) -> ClipRequest:
        """Its frames, as they are asked of a reader."""
        frames, height, width = self.bucket
        return ClipRequest(self.source.path, self.start, frames, self.fps, height, width, background)


@dataclass(frozen=True, slots=True)
class Sources:
    """What a folder holds, before any video is opened."""

    folder: Path
    layout: str
    """The file, or the pattern, that was read."""
    videos: tuple[SourceVideo, ...]
    quarantined: tuple[Rejected, ...]
    unlisted: tuple[str, ...]
    """Videos and images that lie in the folder and that no row names."""


def read_sources(folder: Path) -> Sources:
    """Read the rows of a folder, or of one table file.

    Args:
        folder: a folder in one of the accepted layouts (:mod:`vidlit.video.layouts`), or a table whose paths are
            relative to its own folder.

    Returns:
        Good rows in the order of the file, bad ones with their reasons.

    Raises:
        UserError: no such folder, no accepted or an ambiguous layout, an unreadable table, or no good row at all.
    """
    source = Path(folder)
    layout, rows = find_layout(source)
    folder = source.parent if source.is_file() else source
    root = folder.resolve()
    videos, quarantined = [], []
    for place, row in rows:
        result = row if isinstance(row, Rejected) else _read_row(root, place, row)
        if isinstance(result, SourceVideo):
            videos.append(result)
        else:
            quarantined.append(result)
    if not videos:
        reasons = "; ".join(f"{bad.video}: {bad.reason}" for bad in quarantined[:3]) or "it lists none"
        raise UserError(f"no usable video in {folder} ({layout}): {reasons}")
    named = {video.video for video in videos} | {bad.video for bad in quarantined}
    unlisted = tuple(video for video in media_files(folder) if video not in named)
    return Sources(folder, layout, tuple(videos), tuple(quarantined), unlisted)


def _read_row(root: Path, place: str, row: Mapping[str, Any]) -> SourceVideo | Rejected:
    """Check one row; a bad one costs itself only."""
    fields = {str(key): value for key, value in row.items() if value is not None and value != ""}

    def take(*columns: str) -> Any:
        found = [fields.pop(column) for column in columns if column in fields]
        return found[0] if found else None

    path_column = next((column for column in PATH_COLUMNS if column in fields), None)
    if path_column is None:
        return Rejected(place, f"names no video: none of the columns {', '.join(PATH_COLUMNS)} is filled")
    video = str(fields.pop(path_column)).strip()
    reason = _refuse_path(root, video)
    if reason:
        return Rejected(video, f"{reason} ({place})")
    video = PurePosixPath(video).as_posix()
    caption_column = next((column for column in _CAPTION_COLUMNS if column in fields), "caption")
    caption = str(fields.pop(caption_column, "")).strip()
    if not caption:
        return Rejected(video, f"has no caption ({place})")
    group = str(take("group") or video)
    try:
        start, end = (_number(take(column), column) for column in ("start", "end"))
        first, last = (_number(take(column), column) for column in ("start_frame", "end_frame"))
    except ValueError as error:
        return Rejected(video, f"{error} ({place})")
    frames = first is not None or last is not None
    if frames and (start is not None or end is not None):
        return Rejected(video, f"gives a span in seconds and one in frames: keep one of them ({place})")
    low, high = (first, last) if frames else (start, end)
    if high is not None and high <= (low or 0):
        return Rejected(video, f"its span ends at {high:g}, before it starts ({place})")
    frame_span = (int(first or 0), None if last is None else int(last)) if frames else None
    extra = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in fields.items()}
    return SourceVideo((root / video).resolve(), video, caption, group, start, end, frame_span, extra)


def _number(value: Any, column: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{column} is {value!r}, not a number from 0 up")
    return number


def _refuse_path(root: Path, video: str) -> str | None:
    """Why a row may not name this path; nothing outside the folder is ever touched."""
    if "://" in video or "\0" in video:
        return "is not a path: URLs are not fetched"
    if PurePosixPath(video).is_absolute() or PureWindowsPath(video).is_absolute() or PureWindowsPath(video).drive:
        return "is an absolute path: paths are relative to the folder"
    if ".." in PurePosixPath(video).parts or ".." in PureWindowsPath(video).parts:
        return "leads out of the folder with '..'"
    path = root / video
    try:
        if not path.resolve().is_relative_to(root):
            return "is a link that leads out of the folder: copy the file, or use its folder as the source"
        if not path.exists():
            return "does not exist"
        if not path.is_file():
            return "is not a regular file"
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links, no permission
        return f"cannot be opened: {error}"
    return None
