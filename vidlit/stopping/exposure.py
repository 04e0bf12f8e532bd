"""How often each training video is seen: bands, adjusted exposure, forecast, cap.

An exposure of a video is one time that any of its clips was in a training batch, over all ranks and the whole life of
the run. The bands read raw exposures only. The adjusted exposure is a prior on how far training has come, by which runs
can be compared; it never sets the band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidlit.errors import UserError
from vidlit.stopping.verdict import Verdict

Band = Literal["conservative", "moderate", "high", "risky"]

MEANING: dict[Band, str] = {
    "conservative": "strong generalisation expected",
    "moderate": "usually fine, watch the validation loss",
    "high": "overfitting becomes likely",
    "risky": "overfitting is likely",
}

CONSERVATIVE, MODERATE, RISKY = 10, 50, 100  # exposures per video: up to, up to, from

LOW_LEARNING_RATE = 4e-5
LOW_LEARNING_RATE_SAFE = 30.0  # exposures that are still relatively safe at or below LOW_LEARNING_RATE

# The reference run of the adjusted exposure: LoRA's usual learning rate at batch size 1 over a hundred videos, which is
# also where the bands come from.
REFERENCE_LEARNING_RATE = 1e-4
REFERENCE_BATCH_SIZE = 1
REFERENCE_VIDEOS = 100
# On public fine-tuning logs the best number of exposures falls as the set grows, about as n ** -0.45.
VIDEOS_POWER = 0.45


def band(exposures: float) -> Band:
    """Names the band of a number of raw exposures per video.

    At most 10 is conservative, at most 50 moderate, under 100 high, from 100 on risky.
    """
    if exposures <= CONSERVATIVE:
        return "conservative"
    if exposures <= MODERATE:
        return "moderate"
    return "high" if exposures < RISKY else "risky"


def video_exposures(clip_exposures: ArrayLike, videos: Sequence[str]) -> dict[str, int]:
    """Sums the exposures of clips (C,) over their videos (C,), in order of first appearance."""
    totals: dict[str, int] = {}
    for count, video in zip(np.asarray(clip_exposures).tolist(), videos, strict=True):
        totals[video] = totals.get(video, 0) + int(count)
    return totals


def adjusted_exposure(learning_rates: ArrayLike, batch_size: int, num_videos: int) -> NDArray[np.float64]:
    """Exposures per video after each step, converted to exposures of the reference run.

    A step at learning rate ``lr`` with ``B`` samples over ``n`` videos adds ``B / n`` raw exposures, times

    - ``lr / 1e-4``: on public logs, learning rate times steps at the minimum is constant over a 50x range of rates;
    - ``sqrt(1 / B)``: AdamW's progress per step grows with the square root of the batch, not with the batch;
    - ``(n / 100) ** 0.45``: larger sets reach their minimum after fewer exposures.

    Each factor is held within [1/4, 4]: beyond that the evidence ends. Runs trained from scratch show the opposite
    trend in ``n``; this is a prior for fine-tuning, not a proof.

    Args:
        learning_rates: Learning rate of each optimizer step (S,).
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        num_videos: Training videos.

    Returns:
        Adjusted exposures after each step (S,), non-decreasing.
    """
    rates = np.asarray(learning_rates, dtype=np.float64)
    factor = (
        _held(rates / REFERENCE_LEARNING_RATE)
        * _held(np.sqrt(REFERENCE_BATCH_SIZE / batch_size))
        * _held((num_videos / REFERENCE_VIDEOS) ** VIDEOS_POWER)
    )
    total: NDArray[np.float64] = np.cumsum(factor * batch_size / num_videos)
    return total


def _held(factor: ArrayLike) -> NDArray[np.float64]:
    return np.clip(np.asarray(factor, dtype=np.float64), 0.25, 4.0)


@dataclass(frozen=True)
class Forecast:
    """What a run of ``max_steps`` will expose each video to.

    Args:
        exposures: Mean raw exposures per video at the end.
        adjusted: Mean adjusted exposures per video at the end.
        band: Band of ``exposures``.
        steps_to_band: Steps after which each band above conservative begins, whether within the plan or not.
        reason: One sentence for the user.
    """

    exposures: float
    adjusted: float
    band: Band
    steps_to_band: dict[Band, int]
    reason: str


def forecast(max_steps: int, batch_size: int, num_videos: int, learning_rates: ArrayLike) -> Forecast:
    """Computes the exposures of a run before it starts.

    Args:
        max_steps: Planned optimizer steps.
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        num_videos: Training videos.
        learning_rates: One learning rate, or one for each step (max_steps,).

    Raises:
        ValueError: If a count is not positive.
    """
    for name, count in (("max_steps", max_steps), ("batch_size", batch_size), ("num_videos", num_videos)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    rates = np.broadcast_to(np.asarray(learning_rates, dtype=np.float64), (max_steps,))
    exposures = max_steps * batch_size / num_videos
    # Whole numbers: a quotient in floating point is off by a step now and then.
    steps_to_band: dict[Band, int] = {
        "moderate": CONSERVATIVE * num_videos // batch_size + 1,
        "high": MODERATE * num_videos // batch_size + 1,
        "risky": -(-RISKY * num_videos // batch_size),
    }
    name = band(exposures)
    reason = (
        f"{max_steps:,} steps at batch size {batch_size} show each of {num_videos:,} videos {_times(exposures)} times: "
        f"{name} ({MEANING[name]})."
    )
    reason += _low_learning_rate_remark(exposures, float(rates.max()))
    if name in ("high", "risky"):
        reason += (
            f" At most {steps_to_band['high'] - 1:,} steps, or at least "
            f"{-(-max_steps * batch_size // MODERATE):,} videos, would keep exposures moderate."
        )
    adjusted = float(adjusted_exposure(rates, batch_size, num_videos)[-1])
    return Forecast(exposures, adjusted, name, steps_to_band, reason)


def judge_exposure(
    exposures: ArrayLike, *, peak_learning_rate: float, adjusted: float | None = None, hard_cap: float | None = None
) -> Verdict:
    """Judges how often the training videos were seen so far.

    Warns from 100 mean exposures on, stops at ``hard_cap`` where one is set.

    Args:
        exposures: Raw exposures of each training video (n,).
        peak_learning_rate: Highest learning rate of the schedule, for the remark on low rates.
        adjusted: Mean adjusted exposures so far, to be recorded as evidence.
        hard_cap: Mean raw exposures at which the run stops; None for no cap.

    Raises:
        ValueError: If there are no videos, or the cap is not positive.
    """
    counts = np.asarray(exposures, dtype=np.float64)
    if counts.size == 0:
        raise ValueError("there are no videos to judge exposures of")
    if hard_cap is not None and not hard_cap > 0:
        raise UserError(f"hard_cap must be positive, got {hard_cap}")
    mean, highest = float(counts.mean()), float(counts.max())
    name = band(mean)
    evidence: dict[str, float | int | str] = {
        "mean": mean,
        "min": float(counts.min()),
        "max": highest,
        "band": name,
        "videos": int(counts.size),
    }
    if adjusted is not None:
        evidence["adjusted"] = float(adjusted)
    seen = f"Each video was seen {_times(mean)} times on average (at most {highest:,.0f})"
    if hard_cap is not None:
        evidence["hard_cap"] = float(hard_cap)
        if mean >= hard_cap:
            return Verdict("exposure", "stop", f"{seen}: the cap of {hard_cap:g} is reached.", evidence)
    reason = f"{seen}: {name} ({MEANING[name]})." + _low_learning_rate_remark(mean, peak_learning_rate)
    return Verdict("exposure", "warn" if name == "risky" else "continue", reason, evidence)


def _low_learning_rate_remark(exposures: float, learning_rate: float) -> str:
    if learning_rate > LOW_LEARNING_RATE or not CONSERVATIVE < exposures <= LOW_LEARNING_RATE_SAFE:
        return ""
    return f" At a learning rate of {learning_rate:g} this is still relatively safe; under 10 is ideal."


def _times(exposures: float) -> str:
    """Three digits, and never as ``4.8e+03``."""
    return f"{exposures:,.0f}" if exposures >= 100 else f"{exposures:.3g}"
