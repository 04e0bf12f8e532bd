"""What a layout is, and what it reads of a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

PATH_COLUMNS = ("file_name", "media_path", "video_path", "video", "path")
"""Columns that name a row's video."""
CAPTION_COLUMNS = ("caption", "text", "prompt")
COMPANION_COLUMNS = ("mask", "reference")
"""Columns that name a file which goes with a row's video."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that is left out, and why."""

    video: str
    """Relative path, or the file and line of a row that names none. What cannot be printed is written as escapes."""
    reason: str


Row = Mapping[str, Any] | Rejected
"""What a row says, by column: ``file_name`` (relative to the folder), ``caption`` and, where there are any, ``group``,
``mask`` and ``reference`` (paths, too), ``start`` and ``end`` in seconds or ``start_frame`` and ``end_frame``; others
are kept with the clip."""


class Listing(NamedTuple):
    """What a layout reads of a folder."""

    name: str
    """The file, or the pattern, that was read."""
    rows: Iterable[tuple[str, Row]]
    """Where each row stands, for messages, and what it says."""
    files: tuple[str, ...] = ()
    """Files beside videos that were read, relative to the folder: others are counted as left alone."""
    base: str = ""
    """Folder in the source that the rows' paths are relative to."""
    notes: tuple[str, ...] = ()
    """What else users should know, a line each: what was found and is not used."""


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
