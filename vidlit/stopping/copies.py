"""When generated clips have become copies of training clips.

The ratio of a clip (``vidlit.metrics.copy_distance``) is 0 for an exact copy of a training clip and about 1 for another
video of its scene, in content and motion. Samples are drawn from the same prompts and noise at every audit, the first
of them from the base model: what is near a training clip there was not learned here and does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidlit.stopping.verdict import Action, Verdict

SUSPECT_RATIO = 0.6
CERTAIN_RATIO = 1 / 3
MIN_COPIES, MIN_COPIES_OF_ONE_TAKE = 2, 3
"""Clips below the limit that raise an alarm: one alone may be chance; where nothing says how far clips of one recording
differ, two may be."""
CERTAIN_SHARE = 0.25
"""Share of clips below ``CERTAIN_RATIO`` that stops at once."""


def copy_limit(held_out: ArrayLike) -> float:
    """The ratio below which a generated clip counts as a copy: 0.6, or lower where real validation clips come nearer.

    Args:
        held_out: Ratios of real validation clips (N,), NaN where there is none.
    """
    ratios = np.asarray(held_out, dtype=np.float64)
    return float(np.nanmin(np.append(ratios, SUSPECT_RATIO)))


def min_copies(videos: Sequence[str]) -> int:
    """Copies that raise an alarm: two; three where most training clips are the only ones of their recording (N,).

    The ratio of such a clip rests on an estimate of how far clips of one recording differ.
    """
    clips = Counter(videos)
    alone = sum(clips[video] == 1 for video in videos)
    return MIN_COPIES_OF_ONE_TAKE if 2 * alone > len(videos) else MIN_COPIES


def judge_copies(
    steps: Sequence[int],
    ratios: ArrayLike,
    limit: float,
    samples: Sequence[str],
    nearest: Sequence[str],
    alarm: int = MIN_COPIES,
) -> Verdict:
    """Judges the clips generated so far.

    Some clips below the limit are an alarm; two alarms in a row stop, and so does a quarter of the clips below 1/3.

    Args:
        steps: Optimizer steps of the audits (J,), the base model's first.
        ratios: Ratio of each clip at each audit (J, n); NaN where there is none.
        limit: From :func:`copy_limit`.
        samples: Names of the latest audit's clips (n,), for the evidence.
        nearest: clip_id of the training clip nearest to each (n,).
        alarm: Clips below the limit that are an alarm; see :func:`min_copies`.

    Returns:
        A verdict with evidence: step, clips, copies, certain, base_copies, limit and, where a ratio is known,
        ratio_min; sample and nearest_clip of the clip with the lowest ratio that the base model did not have.

    Raises:
        ValueError: If shapes disagree or there is no audit.
    """
    table = np.asarray(ratios, dtype=np.float64)
    if table.shape != (len(steps), len(samples)) or len(nearest) != len(samples) or not table.size:
        raise ValueError(f"ratios are {table.shape} for {len(steps)} audits of {len(samples)} clips")
    num_clips = table.shape[1]
    copied = _learned(table, limit)
    certain = int(_learned(table, min(limit, CERTAIN_RATIO))[-1].sum())
    alarms = copied.sum(axis=1) >= alarm
    evidence: dict[str, float | int | str] = {
        "step": int(steps[-1]),
        "clips": num_clips,
        "copies": int(copied[-1].sum()),
        "certain": certain,
        "base_copies": int((table[0] < limit).sum()),
        "limit": float(limit),
    }
    if np.isnan(table[-1]).all():
        reason = "Copies cannot be detected with a single training recording: there is no other to compare with."
        return Verdict("copies", "continue", reason, evidence)
    worst = suspects(table, limit)[0]
    evidence |= {
        "ratio_min": float(np.nanmin(table[-1])),
        "ratio": float(table[-1, worst]),
        "sample": samples[worst],
        "nearest_clip": nearest[worst],
    }
    action: Action = "warn" if alarms[-1] else "continue"
    if certain >= max(alarm, CERTAIN_SHARE * num_clips) or bool(alarms[-2:].all() and len(alarms) > 1):
        action = "stop"
    return Verdict("copies", action, _reason(evidence), evidence)


def suspects(ratios: ArrayLike, limit: float) -> list[int]:
    """Which clips of the latest audit to show: its copies, the worst first; the nearest of all where none is one.

    Args:
        ratios: Ratio of each clip at each audit (J, n), the base model's first; NaN where there is none.
        limit: From :func:`copy_limit`.
    """
    table = np.asarray(ratios, dtype=np.float64)
    order = [int(clip) for clip in np.argsort(table[-1]) if np.isfinite(table[-1, clip])]
    copied = _learned(table, limit)[-1]
    return [clip for clip in order if copied[clip]] or order[:1]


def _learned(table: NDArray[np.float64], limit: float) -> NDArray[np.bool_]:
    """Which clips (J, n) are below a limit and were not at the first audit."""
    learned: NDArray[np.bool_] = (table < limit) & ~(table[0] < limit)
    return learned


def _reason(evidence: dict[str, float | int | str]) -> str:
    count, clips = int(evidence["copies"]), evidence["clips"]
    if count == 0:
        return f"No copies in {clips} samples."
    copies = "1 copy" if count == 1 else f"{count} copies"
    return (
        f"{copies} of training clips in {clips} samples at step {evidence['step']}: "
        f"{evidence['sample']} is nearest to {evidence['nearest_clip']}, at {float(evidence['ratio']):.2f} of the "
        f"distance between two videos of one scene (limit {float(evidence['limit']):.2f})."
    )
