"""A folder someone prepared, in any of the usual layouts, to rows of videos with captions. Opens no video."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from vidlit.errors import UserError, printable
from vidlit.video.buckets import Bucket
from vidlit.video.frames import BLACK, IMAGE_SUFFIXES, ClipRequest, Color
from vidlit.video.layouts.cells import (
    CellError,
    read_name,
    read_note,
    read_number,
    read_text,
    read_texts,
    shown,
)
from vidlit.video.layouts.finding import find_layout
from vidlit.video.layouts.layout import CAPTION_COLUMNS, COMPANION_COLUMNS, PATH_COLUMNS, Rejected
from vidlit.video.layouts.source_folder import SourceFolder, is_media, is_utf8, refuse_name

__all__ = ["Clip", "Rejected", "SourceVideo", "Sources", "read_sources"]

_Read = TypeVar("_Read")


class Companion(NamedTuple):
    """A file that goes with a video."""

    name: str
    """Posix path relative to the source folder."""
    path: Path
    """The same, absolute, with all links resolved."""
    content: str = ""
    """SHA-256 of the file's bytes, in hexadecimal, once it was looked at."""

    @property
    def is_image(self) -> bool:
        """Whether it is the same for all frames."""
        return self.path.suffix.lower() in IMAGE_SUFFIXES


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
    further_captions: tuple[str, ...] = ()
    """Of rows with several: training reads them in turn, all else ``caption``, the first."""

    @property
    def captions(self) -> tuple[str, ...]:
        """All of them, the first one first."""
        return (self.caption, *self.further_captions)

    companions: Mapping[str, Companion] = field(default_factory=dict)
    """What goes with the video, by the names of its columns."""

    @property
    def mask(self) -> Companion | None:
        """An image or a video of the same shape: white counts in the loss, black does not."""
        return self.companions.get("mask")

    @property
    def reference(self) -> Companion | None:
        """An image or a video of the same shape that the model is given, and makes the video from."""
        return self.companions.get("reference")


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

    def mask_request(self) -> ClipRequest | None:
        """The frames of its mask, cut as its own are: one of an image, which goes for all; ``None`` without a mask."""
        return None if self.source.mask is None else self._of(self.source.mask).request()

    def reference(self) -> Clip | None:
        """Its reference as a clip, cut as it is itself: of one frame, if that is an image; ``None`` without one."""
        return None if self.source.reference is None else self._of(self.source.reference)

    def _of(self, companion: Companion) -> Clip:
        name, path, content = companion
        source = replace(self.source, path=path, video=name, companions={})
        clip = replace(self, clip_id=f"{name} of {self.clip_id}", source=source, content=content)
        return replace(clip, start=0.0, bucket=self.bucket._replace(num_frames=1)) if companion.is_image else clip


@dataclass(frozen=True, slots=True)
class Sources:
    """What a folder holds, before any video is opened.

    Every row is in ``videos`` or ``quarantined``. Every file that is not hidden was read (a table, a caption), is named
    by a row, or is in ``quarantined``, ``unlisted`` or ``skipped``.
    """

    folder: Path
    layout: str
    """The file, or the pattern, that was read."""
    videos: tuple[SourceVideo, ...]
    quarantined: tuple[Rejected, ...]
    """Bad rows, and videos whose names are no UTF-8."""
    unlisted: tuple[str, ...]
    """Videos and images that lie in the folder and that no row names."""
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What else is left alone, by reason: other files by their suffix, links to folders outside. Their names."""
    further_captions: Mapping[str, int] = field(default_factory=dict)
    """Where a row has several captions, and how many beside the first."""
    triggered: int = 0
    """Rows that got the trigger; the others had it in their first caption."""
    notes: tuple[str, ...] = ()
    """What the layout has to say, a line each: options of another trainer that have no counterpart, other splits."""

    def on_captions(self, trigger: str | None, first_captions: bool) -> list[str]:
        """What becomes of captions: which of several are used, and how many got the trigger."""
        said, further = [], self.further_captions
        others = sum(further.values())
        if further:
            used = (
                f"of which the first is used: {others} are left out"
                if first_captions
                else f"which training reads in turn ({others} beside the first); all else uses the first"
            )
            first = next(iter(further))
            said.append(f"{len(further)} rows have several captions, {used} (the first such row: {first})")
        if trigger:
            had = len(self.videos) - self.triggered
            said.append(f"the trigger {trigger!r} was put before the captions of {self.triggered} rows; {had} had it")
        return said


def read_sources(
    folder: Path, trigger: str | None = None, *, first_captions: bool = False, with_references: bool = False
) -> Sources:
    """Read the rows of a folder, or of one table file.

    Args:
        folder: a folder in one of the accepted layouts (:mod:`vidlit.video.layouts`), or a table or another trainer's
            config whose paths are relative to its own folder.
        trigger: see :func:`with_trigger`; ``None`` for none.
        first_captions: leave out the further captions of rows with several.
        with_references: every row needs a reference; else those that there are are left alone.

    Returns:
        Good rows in the order of the file, bad ones with their reasons.

    Raises:
        UserError: no such folder, no accepted or an ambiguous layout, an unreadable table, or no good row at all.
    """
    source = Path(folder)
    if not is_utf8(f"{source.resolve()}"):
        raise UserError(f"{printable(str(source.resolve()))}: the name of this folder is not UTF-8; rename it")
    listing = find_layout(source)
    files = SourceFolder(source.parent if source.is_file() else source)
    videos: list[SourceVideo] = []
    quarantined: list[Rejected] = []
    further: dict[str, int] = {}
    triggered = 0
    named: set[str] = set()
    for place, row in listing.rows:
        try:
            if isinstance(row, Rejected):
                raise _RowError(row.video, row.reason)
            video = _read_row(files, listing.base, place, row, with_references)
        except _RowError as bad:
            named.add(bad.video)
            quarantined.append(Rejected(printable(bad.video), bad.reason))
            continue
        named |= {video.video, *(companion.name for companion in video.companions.values())}
        if video.further_captions:
            further[place] = further.get(place, 0) + len(video.further_captions)
        if first_captions:
            video = replace(video, further_captions=())
        first, *others = (with_trigger(caption, trigger) for caption in video.captions)
        triggered += first != video.caption
        videos.append(replace(video, caption=first, further_captions=tuple(others)))
    if not videos:
        reasons = "; ".join(f"{shown(bad.video)[1:-1]}: {bad.reason}" for bad in quarantined[:3]) or "it lists none"
        raise UserError(f"no usable video in {files.path} ({listing.name}): {reasons}")
    if any(video.path != files.root / video.video for video in videos):  # some are links: to files with other names
        reached = {str(video.path) for video in videos}
        named |= {name for name in files.media if os.path.realpath(files.root / name) in reached}
    named |= set(listing.files)
    left = [name for name in files.files if name not in named]
    unread = sum("reference" in video.extra for video in videos)
    unnamed = [printable(name) for name in left if is_media(name) and not is_utf8(name)]
    return Sources(
        folder=files.path,
        layout=listing.name,
        videos=tuple(videos),
        quarantined=(*quarantined, *(Rejected(name, "its name is not UTF-8: rename it") for name in unnamed)),
        unlisted=tuple(name for name in left if is_media(name) and is_utf8(name)),
        skipped=_by_suffix(name for name in left if not is_media(name))
        | {reason: tuple(map(printable, names)) for reason, names in files.skipped.items()},
        further_captions=further,
        triggered=triggered,
        notes=(
            *listing.notes,
            *([f"{unread} rows name a reference, for which model.conditions does not ask"] if unread else []),
        ),
    )


def with_trigger(caption: str, trigger: str | None) -> str:
    """A caption that begins with a trigger, ``ohwx, a dog runs``; as it is where the trigger is a word of it."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}"


class _RowError(Exception):
    """A row that is left out; costs itself only."""

    def __init__(self, video: str, reason: str) -> None:
        super().__init__(reason)
        self.video, self.reason = video, reason


def _read_row(files: SourceFolder, base: str, place: str, row: Mapping[str, Any], with_references: bool) -> SourceVideo:
    """A row, checked."""
    cells = {f"{column}": cell for column, cell in row.items()}
    video = place  # until it is known

    def take(column: str, read: Callable[[Any], _Read]) -> _Read:
        try:
            return read(cells.pop(column, None))
        except CellError as error:
            raise _RowError(video, f"{column} {error} ({place})") from error

    def take_first(columns: Iterable[str], read: Callable[[Any], _Read]) -> _Read | None:
        return next((found for column in columns if column in cells and (found := take(column, read))), None)

    name = take_first(PATH_COLUMNS, lambda cell: cell if files.has(cell) else read_text(cell))
    if name is None:
        has = shown(list(row))
        raise _RowError(place, f"names no video: none of the columns {', '.join(PATH_COLUMNS)} is filled; it has {has}")
    video, path = name, files.root
    reason = refuse_name(name)
    if reason is None:
        video = files.find(f"{base}/{name}" if base else name)
        reason, path = files.locate(video)
    if reason is not None:
        raise _RowError(video, f"{reason} ({place})")
    captions = take_first(CAPTION_COLUMNS, lambda cell: read_texts(cell) or None)
    if captions is None:
        raise _RowError(video, f"has no caption ({place})")
    companions = {}
    for what in COMPANION_COLUMNS if with_references else ("mask",):
        companion = _find_companion(files, base, take(what, read_text))
        if isinstance(companion, str):
            raise _RowError(video, f"its {what} {companion} ({place})")
        if companion is not None:
            companions[what] = companion
    if with_references and "reference" not in companions:
        raise _RowError(video, f"has no reference, which model.conditions asks for ({place})")
    group = take("group", read_name)
    spans = ("start", "end", "start_frame", "end_frame")
    start, end, first, last = (take(each, read_number) if each in cells else None for each in spans)
    frames = first is not None or last is not None
    if frames and (start is not None or end is not None):
        raise _RowError(video, f"gives a span in seconds and one in frames: keep one of them ({place})")
    if any(number is not None and not number.is_integer() for number in (first, last)):
        raise _RowError(video, f"gives a span in parts of a frame: frames are whole numbers ({place})")
    low, high = (first, last) if frames else (start, end)
    if high is not None and high <= (low or 0):
        raise _RowError(video, f"its span ends at {high:g}, before it starts ({place})")
    frame_span = (int(first or 0), None if last is None else int(last)) if frames else None
    notes = {column: note for column, cell in cells.items() if (note := read_note(cell)) is not None}
    caption, *further = dict.fromkeys(captions)
    spans_and_notes = start, end, frame_span, notes
    return SourceVideo(path, video, caption, group or video, *spans_and_notes, tuple(further), companions)


def _find_companion(files: SourceFolder, base: str, name: str | None) -> Companion | str | None:
    """What a row names to go with its video, or why it cannot be used."""
    if name is None:
        return None
    reason, path = refuse_name(name), files.root
    if reason is None:
        name = files.find(f"{base}/{name}" if base else name)
        reason, path = files.locate(name)
    return Companion(name, path) if reason is None else f"{printable(name)} {reason}"


def _by_suffix(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Files that no row and no layout has use for, by what they are."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        kind = suffix if re.fullmatch(r"\.[a-z]\w{0,9}", suffix) else "other"  # .00001 is a number, not a kind
        kinds[f"{kind} files that belong to no video"].append(printable(name))
    return {kind: tuple(kinds[kind]) for kind in sorted(kinds)}
