"""A folder someone prepared, in any of the usual layouts, to rows of videos with captions. Opens no video."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vidlit.errors import UserError
from vidlit.video.buckets import Bucket
from vidlit.video.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES

ACCEPTED_LAYOUTS = """accepted layouts of a folder of clips:
  metadata.csv, metadata.jsonl or metadata.parquet with the columns file_name and caption (or text, or prompt);
      optional columns: group, start and end (seconds) or start_frame and end_frame
  prompts.txt and videos.txt, one caption and one path a line
  a.mp4 beside a.txt, which holds its caption, in any folder below
  any other .csv, .json or .jsonl file with the columns media_path and caption
Images count as clips of one frame."""

_METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_TABLE_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
_PATH_COLUMNS = ("file_name", "media_path", "video_path", "video", "path")
_CAPTION_COLUMNS = ("caption", "text", "prompt")
_MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """One row: a video, or a span of one, and its caption."""

    path: Path
    """Absolute, inside the source folder with all links resolved."""
    video: str
    """Posix path relative to the source folder: how people and clip names know it."""
    caption: str
    group: str
    """What must stay on one side of the split: videos of one film. The video itself by default."""
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


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that is left out, and why."""

    video: str
    """Relative path, or the file and line of a row that names none."""
    reason: str


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
        folder: a folder in one of the accepted layouts, or a table whose paths are relative to its own folder.

    Returns:
        Good rows in the order of the file, bad ones with their reasons.

    Raises:
        UserError: no such folder, no accepted or an ambiguous layout, an unreadable table, or no good row at all.
    """
    folder = Path(folder)
    if folder.is_file() and folder.suffix.lower() in _TABLE_SUFFIXES:
        folder, layout, rows = folder.parent, folder.name, _read_table(folder)
    elif folder.is_dir():
        layout, rows = _find_layout(folder)
    else:
        raise UserError(f"{folder} is not a folder of clips: no such folder or table")
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
    unlisted = tuple(video for video in _media_files(folder) if video not in named)
    return Sources(folder, layout, tuple(videos), tuple(quarantined), unlisted)


_Row = Mapping[str, Any] | Rejected
_Rows = Iterator[tuple[str, _Row]]  # where it stands, and what it says


def _find_layout(folder: Path) -> tuple[str, _Rows]:
    metadata = [folder / name for name in _METADATA_NAMES if (folder / name).is_file()]
    prompts = next((folder / n for n in ("prompts.txt", "prompt.txt") if (folder / n).is_file()), None)
    listed = folder / "videos.txt"
    if len(metadata) == 1:
        return metadata[0].name, _read_table(metadata[0])
    if not metadata and prompts is not None and listed.is_file():
        return f"{prompts.name} + videos.txt", _read_lines(prompts, listed)
    tables = metadata or [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _TABLE_SUFFIXES and path.is_file() and _has_path_column(path)
    ]
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise UserError(f"{folder} holds several tables ({names}): name the one to use instead of the folder")
    if tables:
        return tables[0].name, _read_table(tables[0])
    media = list(_media_files(folder))
    if any((folder / video).with_suffix(".txt").is_file() for video in media):
        return "a caption file beside each video", _read_pairs(folder, media)
    found = f"{len(media)} videos but no captions" if media else "no videos and no table of them"
    raise UserError(f"{folder} holds {found}; {ACCEPTED_LAYOUTS}")


def _media_files(folder: Path) -> Iterator[str]:
    """Relative paths of videos and images; hidden files (``._a.mp4`` of other systems) are none."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() in _MEDIA_SUFFIXES and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix()


def _read_pairs(folder: Path, media: Iterable[str]) -> _Rows:
    for video in media:
        caption = (folder / video).with_suffix(".txt")
        if not caption.is_file():
            yield video, Rejected(video, f"no caption file {caption.name} beside it")
            continue
        if not caption.resolve().is_relative_to(folder.resolve()):
            yield video, Rejected(video, f"its caption file {caption.name} is a link that leads out of the folder")
            continue
        try:
            yield video, {"file_name": video, "caption": caption.read_text("utf-8-sig")}
        except ValueError as error:
            yield video, Rejected(video, f"its caption file {caption.name} is not UTF-8 text: {error}")


def _read_lines(prompts: Path, listed: Path) -> _Rows:
    captions, videos = (_text(path).strip("\n").split("\n") for path in (prompts, listed))
    if len(captions) != len(videos):
        raise UserError(
            f"{prompts} has {len(captions)} lines and {listed.name} has {len(videos)}: "
            "line N of one must belong to line N of the other"
        )
    for number, (caption, video) in enumerate(zip(captions, videos, strict=True), 1):
        yield f"{listed.name} line {number}", {"file_name": video.strip(), "caption": caption}


def _has_path_column(path: Path) -> bool:
    """Whether a table lists videos; a report or a notebook's JSON that lies in the folder does not."""
    try:
        _, row = next(_read_table(path))
    except (UserError, StopIteration):
        return False
    return not isinstance(row, Rejected) and any(column in row for column in _PATH_COLUMNS)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except ValueError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error


def _read_table(path: Path) -> _Rows:
    """Rows of a CSV, JSON, JSONL or parquet file, each with where it stands."""
    match path.suffix.lower():
        case ".csv":
            try:
                # strict=False as in csv itself: a stray quote costs a row, which has no such file, not the table.
                reader = csv.DictReader(io.StringIO(_text(path)))
                for row in reader:
                    place = f"{path.name} line {reader.line_num}"
                    if None in row:
                        yield place, Rejected(place, "has more fields than the header has columns")
                    else:
                        yield place, {key.strip(): value for key, value in row.items()}
            except csv.Error as error:
                raise UserError(f"{path} line {reader.line_num} is not valid CSV: {error}") from error
        case ".jsonl":
            for number, line in enumerate(_text(path).split("\n"), 1):
                place = f"{path.name} line {number}"
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield place, Rejected(place, f"is not valid JSON: {error}")
                    continue
                yield place, row if isinstance(row, dict) else Rejected(place, "is not a JSON object")
        case ".json":
            try:
                rows = json.loads(_text(path))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path} is not valid JSON: {error}") from error
            if not isinstance(rows, list):
                raise UserError(f"{path} must hold a list of objects, not {type(rows).__name__}")
            for number, row in enumerate(rows, 1):
                place = f"{path.name} entry {number}"
                yield place, row if isinstance(row, dict) else Rejected(place, "is not a JSON object")
        case _:
            import pyarrow as pa  # a folder without parquet starts without it
            import pyarrow.parquet as pq

            try:
                rows = pq.read_table(path).to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{path} is not a readable parquet file: {error}") from error
            for number, row in enumerate(rows, 1):
                yield f"{path.name} row {number}", row


def _read_row(root: Path, place: str, row: Mapping[str, Any]) -> SourceVideo | Rejected:
    """Check one row; a bad one costs itself only."""
    fields = {str(key): value for key, value in row.items() if value is not None and value != ""}

    def take(*columns: str) -> Any:
        found = [fields.pop(column) for column in columns if column in fields]
        return found[0] if found else None

    path_column = next((column for column in _PATH_COLUMNS if column in fields), None)
    if path_column is None:
        return Rejected(place, f"names no video: none of the columns {', '.join(_PATH_COLUMNS)} is filled")
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
