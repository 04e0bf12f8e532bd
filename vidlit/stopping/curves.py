"""Statistics of loss curves, for one run or many at once: the last axes are checks (J,) or recordings (V,)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def jitter(curve: Array) -> Array:
    """Standard deviation of the noise between checks, estimated so that the trend does not count.

    From third differences, which see neither slope nor bend (the variance of one is 20 times that of independent
    checks). Where those at lag 2 are larger, neighbouring checks move together, and averages are noisier than
    independent checks would make them: the larger counts, up to twice the other. A quarter is added, since the median
    of few differences is itself uncertain.

    Args:
        curve: Mean log-ratio at each check (..., J), J >= 7.

    Returns:
        Standard deviation (...,), at least 1e-6.
    """
    near, far = (_robust_scale(curve, lag) for lag in (1, 2))
    result: Array = np.maximum(1.25 * np.clip(far, near, 2.0 * near), 1e-6)
    return result


def _robust_scale(curve: Array, lag: int) -> Array:
    """Noise scale from the median absolute third difference at a lag."""
    third = (
        curve[..., 3 * lag :] - 3.0 * (curve[..., 2 * lag : -lag] - curve[..., lag : -2 * lag]) - curve[..., : -3 * lag]
    )
    scale: Array = 1.4826 * np.median(np.abs(third), axis=-1) / math.sqrt(20.0)
    return scale


def without_jumps(curve: Array, by_video: Array) -> Array:
    """The curve without what single recordings do at single checks: what checks are ranked by.

    Each video's deviation from the median of its last five checks is held within three robust standard deviations
    (1.4826 times the median absolute deviation) of the median video's. A check that is low because one clip's loss
    jumped is no better than its neighbours; one that is low for all videos is. Later checks do not change a score, so
    the best so far can be saved as it comes.

    Args:
        curve: Mean log-ratio at each check (..., J).
        by_video: Log-ratio of each recording (..., J, V); with fewer than five nothing is held.

    Returns:
        (..., J).
    """
    if by_video.shape[-1] < 5:
        return curve
    padded = np.concatenate([by_video[..., :1, :]] * 4 + [by_video], axis=-2)
    deviation = by_video - np.median(np.lib.stride_tricks.sliding_window_view(padded, 5, axis=-2), axis=-1)
    middle = np.median(deviation, axis=-1, keepdims=True)
    bound = 3.0 * 1.4826 * np.median(np.abs(deviation - middle), axis=-1, keepdims=True)
    jumps = deviation - np.clip(deviation, middle - bound, middle + bound)
    scores: Array = curve - jumps.mean(axis=-1)
    return scores


def lowest_average(curve: Array, width: int) -> tuple[Array, NDArray[np.int64]]:
    """Lowest moving average of a curve (..., J) over ``width`` checks.

    Returns:
        The average (...,) and the index of the last check in it (...,).
    """
    averages = np.lib.stride_tricks.sliding_window_view(curve, width, axis=-1).mean(axis=-1)
    first = np.argmin(averages, axis=-1)
    return np.take_along_axis(averages, first[..., None], axis=-1)[..., 0], first + width - 1


def window_mean(values: Array, first: NDArray[np.int64], last: NDArray[np.int64]) -> Array:
    """Mean of values (R, J, V) over checks first (R,) to last (R,), both included: (R, V)."""
    checks = np.arange(values.shape[1])
    inside = (checks >= first[:, None]) & (checks <= last[:, None])
    mean: Array = np.einsum("rj,rjv->rv", inside / inside.sum(axis=1, keepdims=True), values)
    return mean


def p_greater(values: Array) -> Array:
    """One-sided paired t-test that the mean over recordings is above zero.

    Args:
        values: One difference per recording (..., V), V >= 2.

    Returns:
        p-value (...,).
    """
    num = values.shape[-1]
    error = np.maximum(values.std(axis=-1, ddof=1) / math.sqrt(num), 1e-12)
    return student_tail(values.mean(axis=-1) / error, num - 1)


def student_tail(t: Array, freedom: int) -> Array:
    """P(T > t) of Student's t with whole degrees of freedom, by the finite series (Abramowitz & Stegun 26.7.3-4)."""
    theta = np.arctan(np.asarray(t, dtype=np.float64) / math.sqrt(freedom))
    sin, cos = np.sin(theta), np.cos(theta)
    odd = freedom % 2 == 1
    term = cos if odd else np.ones_like(theta)
    series = np.zeros_like(theta)
    for k in range(1 if odd else 0, freedom - 1, 2):
        series = series + term
        term = term * cos * cos * (k + 1) / (k + 2)
    inside = 2.0 / math.pi * (theta + sin * series) if odd else sin * series
    tail: Array = 0.5 * (1.0 - inside)
    return tail


def by_video(clips: Array, videos: tuple[str, ...]) -> Array:
    """Averages clips (J, N) within each recording (J, V), in order of first appearance."""
    names = {name: k for k, name in enumerate(dict.fromkeys(videos))}
    member = np.zeros((len(videos), len(names)))
    member[np.arange(len(videos)), [names[video] for video in videos]] = 1.0
    grouped: Array = clips @ (member / member.sum(axis=0))
    return grouped
