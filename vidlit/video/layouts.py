"""How a folder of clips may be laid out: one class a layout, each asked in turn whether the folder is its own."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from vidlit.errors import UserError
from vidlit.video.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES

PATH_COLUMNS = ("file_name", "media_path", "video_path", "video", "path")
"""Columns that name a row's video."""
_METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_TABLE_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
_MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that is left out, and why."""

    video: str
    """Relative path, or the file and line of a row that names none."""
    reason: str


Row = Mapping[str, Any] | Rejected
"""What a row says, by column: ``file_name`` (relative to the folder), ``caption`` and, where there are any, ``group``,
``start`` and ``end`` in seconds or ``start_frame`` and ``end_frame``; others are kept with the clip."""


class Listing(NamedTuple):
    """What a layout reads of a folder."""

    name: str
    """The file, or the pattern, that was read."""
    rows: Iterator[tuple[str, Row]]
    """Where each row stands, for messages, and what it says."""


class Layout(ABC):
    """One way to lay out a folder of clips.

    A subclass is all that it takes: it is found wherever it is defined, and asked before the package's own.
    """

    description: ClassVar[str]
    """What the folder holds: said to users whose folder no layout fits."""

    @classmethod
    @abstractmethod
    def read(cls, source: Path) -> Listing | None:
        """The rows of a source, or ``None`` where it is laid out in another way. Opens no video.

        Args:
            source: an existing folder, or a file that was named in its place and whose paths are relative to its own
                folder.

        Raises:
            UserError: it is this layout, and cannot be read.
        """


class Table(Layout):
    """A file that was named itself."""

    description = "the path of a .csv, .json, .jsonl or .parquet file with the columns media_path and caption"

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`."""
        is_table = source.is_file() and source.suffix.lower() in _TABLE_SUFFIXES
        return Listing(source.name, _read_table(source)) if is_table else None


class Metadata(Layout):
    """The table that Hugging Face's video folders have."""

    description = """metadata.csv, metadata.jsonl or metadata.parquet with the columns file_name and caption (or text,
    or prompt); optional columns: group, start and end (seconds) or start_frame and end_frame"""

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`."""
        return _read_only_table(source, [source / name for name in _METADATA_NAMES if (source / name).is_file()])


class PromptsAndVideos(Layout):
    """Two text files side by side."""

    description = "prompts.txt and videos.txt, one caption and one path a line"

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`."""
        prompts = next((source / name for name in ("prompts.txt", "prompt.txt") if (source / name).is_file()), None)
        videos = source / "videos.txt"
        if prompts is None or not videos.is_file():
            return None
        return Listing(f"{prompts.name} + videos.txt", _read_lines(prompts, videos))


class AnyTable(Layout):
    """A table of any other name."""

    description = "any other .csv, .json, .jsonl or .parquet file with the columns media_path and caption"

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`. A report or a notebook's JSON that lies in the folder lists no videos."""
        files = sorted(source.iterdir()) if source.is_dir() else []
        tables = [path for path in files if path.suffix.lower() in _TABLE_SUFFIXES and path.is_file()]
        return _read_only_table(source, [path for path in tables if _has_path_column(path)])


class CaptionFiles(Layout):
    """A text file beside each video."""

    description = "a.mp4 beside a.txt, which holds its caption, in any folder below"

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`."""
        media = list(media_files(source))
        if not any((source / video).with_suffix(".txt").is_file() for video in media):
            return None
        return Listing("a caption file beside each video", _read_pairs(source, media))


def known_layouts() -> list[type[Layout]]:
    """Every layout, in the order in which they are asked: those of plugins first."""
    return sorted(_subclasses(Layout), key=lambda layout: layout.__module__ == __name__)


def find_layout(source: Path) -> Listing:
    """What the first layout reads that a source belongs to.

    Raises:
        UserError: no such folder or table, none or an ambiguous layout, an unreadable table.
    """
    if not source.exists():
        raise UserError(f"{source} is not a folder of clips: no such folder or table")
    for layout in known_layouts():
        listing = layout.read(source)
        if listing is not None:
            return listing
    if source.is_file():
        raise UserError(f"{source} is not a folder of clips, and no table; {_accepted()}")
    count = sum(1 for _ in media_files(source))
    found = f"{count} videos but no captions" if count else "no videos and no table of them"
    raise UserError(f"{source} holds {found}; {_accepted()}")


def media_files(folder: Path) -> Iterator[str]:
    """Relative paths of videos and images; hidden files (``._a.mp4`` of other systems) are none."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() in _MEDIA_SUFFIXES and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix()


def _subclasses(layout: type[Layout]) -> list[type[Layout]]:
    return [derived for child in layout.__subclasses__() for derived in (child, *_subclasses(child))]


def _accepted() -> str:
    lines = [f"  {layout.description}".replace("\n", "\n  ") for layout in known_layouts()]
    return "\n".join(["accepted layouts:", *lines, "Images count as clips of one frame."])


def _read_only_table(folder: Path, tables: list[Path]) -> Listing | None:
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise UserError(f"{folder} holds several tables ({names}): name the one to use instead of the folder")
    return Listing(tables[0].name, _read_table(tables[0])) if tables else None


def _read_pairs(folder: Path, media: list[str]) -> Iterator[tuple[str, Row]]:
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


def _read_lines(prompts: Path, listed: Path) -> Iterator[tuple[str, Row]]:
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
    return not isinstance(row, Rejected) and any(column in row for column in PATH_COLUMNS)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except ValueError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error


def _read_table(path: Path) -> Iterator[tuple[str, Row]]:
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
