"""What becomes of a folder: every row of it is used, dropped or quarantined, and so is every clip."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vidlit.errors import printable
from vidlit.latents.encoding import QuarantinedClip, first_three
from vidlit.video.cut import DatasetPlan
from vidlit.video.sources import Rejected

if TYPE_CHECKING:
    from vidlit.data.split import Split


@dataclass(frozen=True)
class Usage:
    """Rows and clips by what becomes of them: ``plan``, ``encode`` and ``fit`` say the same.

    Args:
        rows: number of rows of which at least one clip is used.
        clips: number of clips used.
        dropped: rows of sound videos that fit no bucket, or that repeat another row.
        quarantined: rows that cannot be read, or none of whose clips could be encoded.
        quarantined_clips: clips that could not be encoded.
        in_no_row: names of further files, by what they are.
        remarks: what else is not used as it stands in the source, a line each.
    """

    rows: int
    clips: int
    dropped: Sequence[Rejected] = ()
    quarantined: Sequence[Rejected] = ()
    quarantined_clips: Sequence[QuarantinedClip] = ()
    in_no_row: Mapping[str, Sequence[str]] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @classmethod
    def of(cls, plan: DatasetPlan, failed: Mapping[str, QuarantinedClip]) -> Usage:
        """Count a plan.

        Args:
            plan: of the folder.
            failed: clips that could not be encoded, by clip id.
        """
        # The clips of a row share one source.
        rows = {id(clip.source) for clip in plan.clips if clip.clip_id not in failed}
        lost = {id(clip.source): clip for clip in plan.clips if id(clip.source) not in rows}
        return cls(
            rows=len(rows),
            clips=sum(clip.clip_id not in failed for clip in plan.clips),
            dropped=plan.dropped,
            quarantined=[
                *plan.quarantined,
                *(Rejected(clip.source.video, failed[clip.clip_id].words) for clip in lost.values()),
            ],
            quarantined_clips=[failed[clip.clip_id] for clip in plan.clips if clip.clip_id in failed],
            in_no_row={"videos and images in no row": plan.unlisted, **plan.skipped},
            remarks=plan.remarks,
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Numbers of ``rows``, ``clips`` and ``files``, as JSON takes them."""
        return {
            "rows": {"used": self.rows, "dropped": len(self.dropped), "quarantined": len(self.quarantined)},
            "clips": {"used": self.clips, "quarantined": len(self.quarantined_clips)},
            "files": {what: len(names) for what, names in self.in_no_row.items() if names},
        }

    def lines(self) -> list[str]:
        """The counts in words, and the first reasons of each."""
        said = [count_words(self.counts())]
        for what, rows in (("dropped", self.dropped), ("quarantined", self.quarantined)):
            if rows:
                said.append(f"{what}: {first_three([f'{row.video}: {row.reason}' for row in rows], '; ')}")
        said += [f"{what}: {first_three(names)}" for what, names in self.in_no_row.items() if names]
        said += self.remarks
        return said if len(said) == 1 else [*said, "`vidlit plan` lists all that is left out"]


def count_words(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Counts as one line: ``"rows: 12 used, 1 dropped, 0 quarantined; clips: 30 used, 0 quarantined"``."""
    parts = [f"{kind}: {', '.join(f'{n} {what}' for what, n in counts[kind].items())}" for kind in ("rows", "clips")]
    return "; ".join(parts + [f"{number} {what}" for what, number in counts["files"].items()])


# -- beside a run, for people to look at

MOST_SHOWN = 5_000
"""Clips in the table beside a run: more than anybody looks at, less than a megabyte. The whole list is clips.csv."""


class ShownClip(NamedTuple):
    """A clip as a page shows it."""

    clip_id: str
    file: str
    """Relative to the source folder."""
    group: str
    side: str
    """``train``, ``val`` or ``test``."""
    bucket: str
    """Frames x height x width."""
    start: float
    """Seconds after the file's first frame."""
    fps: float
    caption: str


class LeftOut(NamedTuple):
    """A row, a clip or a file that is not used, and why."""

    name: str
    what: str
    """``dropped``, ``quarantined``, or what kind of file it is."""
    reason: str


def shown_clips(split: Split, most: int = MOST_SHOWN) -> list[ShownClip]:
    """The clips of a run: all of validation and test first, then those trained on, up to ``most``."""
    sides = (("val", split.val), ("test", split.test), ("train", split.train))
    every = [(side, clip) for side, clips in sides for clip in clips]
    return [
        ShownClip(
            clip.clip_id,
            clip.source.video,
            clip.source.group,
            side,
            str(clip.bucket),
            round(clip.start, 6),
            clip.fps,
            clip.source.caption,
        )
        for side, clip in every[:most]
    ]


def left_out(usage: Usage, most: int = MOST_SHOWN) -> list[LeftOut]:
    """What is not used, with its reason, up to ``most``."""
    found = [
        *(LeftOut(row.video, "quarantined", row.reason) for row in usage.quarantined),
        *(LeftOut(clip.clip_id, "quarantined", clip.words) for clip in usage.quarantined_clips),
        *(LeftOut(row.video, "dropped", row.reason) for row in usage.dropped),
        *(LeftOut(name, "in no row", what) for what, names in usage.in_no_row.items() for name in names),
    ]
    return [row._replace(name=printable(row.name)) for row in dict.fromkeys(found)][:most]


def as_csv(rows: Sequence[ShownClip] | Sequence[LeftOut], kind: type[ShownClip | LeftOut]) -> str:
    """Rows as a CSV file; what no UTF-8 can hold is written as an escape."""
    table = io.StringIO()
    writer = csv.writer(table)  # whose line ends have names with a carriage return quoted
    writer.writerow(kind._fields)
    writer.writerows(rows)
    return table.getvalue().encode("utf-8", "backslashreplace").decode()


def read_shown_clips(path: Path) -> list[ShownClip]:
    """What was written of :func:`shown_clips`; nothing where there is no such file.

    Raises:
        KeyError, ValueError: it is another table.
    """
    return [
        ShownClip(**{**row, "start": float(row["start"]), "fps": float(row["fps"])}) for row in _read(path, ShownClip)
    ]


def read_left_out(path: Path) -> list[LeftOut]:
    """What was written of :func:`left_out`; nothing where there is no such file."""
    return [LeftOut(**row) for row in _read(path, LeftOut)]


def _read(path: Path, kind: type[ShownClip | LeftOut]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return [{name: row[name] for name in kind._fields} for row in csv.DictReader(file)]
