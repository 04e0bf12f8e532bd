"""When samples have become copies of training clips: the twin of the gap between the losses.

Samples of the same prompts and noise are drawn at every audit: of training clips' captions, and of held-out ones. With
``d`` the distance from a sample to the clip whose caption it was given, the nearest where several have that caption
(``vidlit.metrics.sample_distance``),

    s = log d(now) - log d(step 0)                              of each prompt, averaged by recording
    G = mean of s over held-out prompts - mean over training prompts

is how much nearer training prompts have come to their clips than held-out ones. Learning a subject or a style brings
both nearer; memorising brings training's alone. A *copy* is a sample nearer to its clip than half of what lies between
that clip and the nearest one of another recording, where it was not at step 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlit.stopping.curves import by_video, student_tail
from vidlit.stopping.verdict import Action, Verdict

COPY_RATIO = 0.5
"""Of the distance to the nearest clip of another recording: nearer is a copy, as contact sheets show."""
MIN_COPIES, COPIED_SHARE = 2, 0.25
"""Copies that are an alarm, and the share of the training prompts (two at least) that stops."""
GAP, STRONG_GAP = 0.4, 0.7
"""Of ``G``: an alarm, and what stops where held-out recordings are few. Of 58 runs (docs/science.md) the first was
reached by all that copied, and with plenty of data by none; there ``G`` has a standard deviation of 0.08."""
ALPHA, STRONG_ALPHA = 0.05, 0.01
"""Levels of the test across recordings, of an alarm and of a stop: the size of the gap decides, and this keeps chance
out. Where recordings are few, an alarm at 0.01 came after the copies (``python -m benchmarks.audits``)."""
FEW_RECORDINGS = 4
"""Held-out recordings below which one audit is enough to stop: nothing else tells in time there."""


@dataclass(frozen=True)
class AuditHistory:
    """Samples of the same n prompts at every audit so far; the first is of the base model.

    Args:
        steps: Optimizer steps of the audits (J,).
        distances: From each sample to the nearest clip of its caption (J, n).
        ratios: The same as a share of the distance from that clip to the nearest one of another recording (J, n); NaN
            where there is no other.
        trained: Which prompts are of training clips (n,).
        groups: Recording of each prompt's clip (n,).

    Raises:
        ValueError: If shapes disagree or there is no audit.
    """

    steps: tuple[int, ...]
    distances: NDArray[np.float64]
    ratios: NDArray[np.float64]
    trained: NDArray[np.bool_]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        prompts = len(self.groups)
        if self.distances.shape != (len(self.steps), prompts) or not self.distances.size:
            raise ValueError(f"distances are {self.distances.shape} for {len(self.steps)} audits of {prompts} prompts")
        if self.ratios.shape != self.distances.shape or self.trained.shape != (prompts,):
            raise ValueError(f"ratios are {self.ratios.shape} and trained {self.trained.shape} for {prompts} prompts")

    @property
    def copies(self) -> NDArray[np.bool_]:
        """Which samples (J, n) are copies that the base model did not make."""
        near = (self.ratios < COPY_RATIO) & self.trained
        learned: NDArray[np.bool_] = near & ~near[0]
        return learned

    def num_groups(self, *, trained: bool) -> int:
        """Recordings of one side's prompts."""
        return len({group for group, mine in zip(self.groups, self.trained, strict=True) if mine == trained})

    def approach(self, *, trained: bool) -> NDArray[np.float64]:
        """Log-ratio of the distances to step 0's, by recording of one side: (J, number of recordings)."""
        rows = np.flatnonzero(self.trained == trained)
        tiny = 1e-6  # a pixel in a million, on a scale from -1 to 1: no two videos are nearer unless they are one
        change = np.log(np.maximum(self.distances[:, rows], tiny)) - np.log(np.maximum(self.distances[0, rows], tiny))
        return by_video(change, tuple(self.groups[row] for row in rows))

    def gap(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``G`` of each audit (J,) and the p-value of a one-sided pooled t-test; NaN and 1 without held-out prompts."""
        train, held_out = self.approach(trained=True), self.approach(trained=False)
        sizes = train.shape[1], held_out.shape[1]
        freedom = sum(sizes) - 2
        if not all(sizes):
            return np.full(len(self.steps), np.nan), np.ones(len(self.steps))
        gap = held_out.mean(axis=1) - train.mean(axis=1)
        if freedom < 1:
            return gap, np.ones(len(gap))
        spread = sum(((side - side.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) for side in (train, held_out))
        error = np.sqrt(np.maximum(spread / freedom * (1 / sizes[0] + 1 / sizes[1]), 1e-12))
        return gap, student_tail(gap / error, freedom)


def judge_copies(history: AuditHistory, samples: tuple[str, ...], clips: tuple[str, ...]) -> Verdict:
    """Judges the samples drawn so far.

    Two copies, or a gap of 0.4 across recordings, are an alarm, which stands once it was raised: a model can break
    later, and its samples leave their clips again. Copies of a quarter of the training prompts, in two audits in a row,
    stop; with fewer than four held-out recordings one such audit stops, and so does a gap of 0.7.

    Args:
        history: All audits so far.
        samples: Names of the latest audit's samples (n,), for the evidence.
        clips: clip_id of the clip nearest to each (n,).

    Returns:
        A verdict with evidence: step, clips (training prompts), copies, base_copies, limit; where there are held-out
        prompts gap and p_value, and how much nearer each side has come (train_approach, held_out_approach: log-ratios);
        ratio_min, and sample, nearest_clip and ratio of the nearest sample.
    """
    count = history.copies.sum(axis=1)
    gap, p_value = history.gap()
    prompts = int(history.trained.sum())
    held_out = history.num_groups(trained=False)
    alarms = (count >= MIN_COPIES) | ((gap >= GAP) & (p_value < ALPHA) & (held_out > 1))
    stops = count >= max(MIN_COPIES, COPIED_SHARE * prompts)
    few = held_out < FEW_RECORDINGS
    strong = few and held_out > 1 and bool(gap[-1] >= STRONG_GAP and p_value[-1] < STRONG_ALPHA)
    stop = bool(stops[-1] and (few or stops[-2:].sum() == 2)) or strong
    action: Action = "stop" if stop else "warn" if alarms.any() else "continue"

    evidence: dict[str, float | int | str] = {
        "step": int(history.steps[-1]),
        "clips": prompts,
        "copies": int(count[-1]),
        "base_copies": int(((history.ratios[0] < COPY_RATIO) & history.trained).sum()),
        "limit": COPY_RATIO,
    }
    if held_out:
        evidence |= {
            "gap": float(gap[-1]),
            "p_value": float(p_value[-1]),
            "train_approach": float(history.approach(trained=True)[-1].mean()),
            "held_out_approach": float(history.approach(trained=False)[-1].mean()),
            "held_out_videos": held_out,
        }
    if shown := suspects(history):
        nearest = shown[0]
        ratio = float(history.ratios[-1, nearest])
        evidence |= {"ratio_min": float(np.nanmin(history.ratios[-1, history.trained])), "ratio": ratio}
        evidence |= {"sample": samples[nearest], "nearest_clip": clips[nearest]}
    if action != "continue":
        evidence["alarm_step"] = int(history.steps[int(alarms.argmax())])
    return Verdict("copies", action, _reason(action, evidence), evidence)


def suspects(history: AuditHistory) -> list[int]:
    """Which prompts of the latest audit to show: its copies, nearest first; the nearest of all where none is one."""
    latest = np.where(history.trained, history.ratios[-1], np.nan)
    order = [int(row) for row in np.argsort(latest) if np.isfinite(latest[row])]
    return [row for row in order if history.copies[-1, row]] or order[:1]


def _reason(action: Action, evidence: dict[str, float | int | str]) -> str:
    number = {name: float(value) for name, value in evidence.items() if not isinstance(value, str)}
    step, prompts = evidence["step"], evidence["clips"]
    sides = ""
    if "gap" in evidence:
        train, held_out = (_nearer(number[f"{side}_approach"]) for side in ("train", "held_out"))
        sides = (
            f"since step 0 samples of training prompts have come {train} to their clips, those of validation prompts "
            f"{held_out}"
        )
    go_on = "" if action == "continue" else " Stop soon, or train on more recordings."
    if number["copies"]:
        copies = "1 sample is a copy" if number["copies"] == 1 else f"{evidence['copies']} samples are copies"
        also = f" Also, {sides}." if sides else ""
        return (
            f"{copies} of a training clip ({prompts} training prompts, step {step}): {evidence['sample']} is at "
            f"{number['ratio']:.2f} of the distance from {evidence['nearest_clip']} to the nearest clip of another "
            f"recording (limit {number['limit']:.2f}).{also}{go_on}"
        )
    if "ratio" not in evidence:
        return "Copies cannot be detected with a single recording: there is no other to compare with."
    if action == "continue":
        return f"No copies in samples of {prompts} training prompts."
    if number["alarm_step"] < number["step"]:
        return f"No copies at step {step}, but the alarm of step {evidence['alarm_step']} stands.{go_on}"
    return f"Copies begin at step {step}: {sides} (p = {number['p_value']:.1g}).{go_on}"


def _nearer(log_ratio: float) -> str:
    share = round(100.0 * (1.0 - np.exp(log_ratio)))
    return "no nearer" if share == 0 else f"{share} % nearer" if share > 0 else f"{-share} % farther"
