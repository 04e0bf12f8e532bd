"""What becomes of a folder: every row of it is used, dropped or quarantined, and so is every clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vidlit.latents.encoding import QuarantinedClip, first_three
from vidlit.video.cut import DatasetPlan
from vidlit.video.sources import Rejected


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
