"""Clip by clip and recording by recording: what a look at a checkpoint found, against the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoredClip:
    """One clip, or the clips of one recording, under the base model and now.

    Args:
        name: of the clip, or of the recording.
        group: the recording.
        clips: number of clips.
        loss: mean loss now.
        reference: mean loss of the base model; ``None`` where it is not known.
        log_ratio: mean of the weighted ``log(loss / reference)``; negative is better. ``None`` as the reference.
        exposures: times that it was in a training batch; of a recording all its clips together. ``None`` for what is
            not trained on, or where it is not known.
    """

    name: str
    group: str
    clips: int
    loss: float
    reference: float | None = None
    log_ratio: float | None = None
    exposures: float | None = None


def by_recording(clips: Sequence[ScoredClip], exposures: Mapping[str, int]) -> list[ScoredClip]:
    """One row a recording, those that gained least first.

    Args:
        clips: that were scored.
        exposures: of recordings that are trained on, counted over all their clips, those that are not scored as well.
    """
    groups: dict[str, list[ScoredClip]] = {}
    for clip in clips:
        groups.setdefault(clip.group, []).append(clip)
    rows = [
        ScoredClip(
            name=name,
            group=name,
            clips=len(each),
            loss=_mean([clip.loss for clip in each]) or 0.0,
            reference=_mean([clip.reference for clip in each]),
            log_ratio=_mean([clip.log_ratio for clip in each]),
            exposures=exposures.get(name),
        )
        for name, each in groups.items()
    ]
    return sorted(rows, key=worst_first)


def worst_first(row: ScoredClip) -> float:
    """What rows are sorted by: their change, or where no base is known their loss."""
    return -(row.loss if row.log_ratio is None else row.log_ratio)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
