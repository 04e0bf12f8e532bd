"""Statistics of loss curves, for one run or many at once: the last axes are checks (J,) or recordings (V,)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def jitter(curve: Array, window: int = 96) -> Array:
    """Standard deviation of the noise between checks, estimated so that the trend does not count.

    Robust lag-2 second differences; where these see more than twice the lag-1 ones they see the curve bend, not noise.
    Where neighbouring checks move together, averages are noisier than independent checks would make them: means over a
    sixteenth of the window raise the estimate accordingly, up to twice.

    Args:
        curve: Mean log-ratio at each check (..., J), J >= 5.
        window: Latest checks to use.

    Returns:
        Standard deviation (...,), at least 1e-6.
    """
    recent = curve[..., -window:]
    sigma = np.minimum(_robust_scale(recent, 2), 2.0 * _robust_scale(recent, 1))
    length = max(3, recent.shape[-1] // 16)
    num_blocks = recent.shape[-1] // length
    if num_blocks >= 6:
        blocks = recent[..., -length * num_blocks :].reshape(*recent.shape[:-1], num_blocks, length).mean(axis=-1)
        sigma = np.maximum(sigma, np.minimum(np.sqrt(length) * _robust_scale(blocks, 1), 2.0 * sigma))
    else:
        sigma = 1.25 * sigma  # few differences: the median of them is itself uncertain
    result: Array = np.maximum(sigma, 1e-6)
    return result


def _robust_scale(curve: Array, lag: int) -> Array:
    """Noise scale from the median absolute second difference at a lag; the variance of such a difference is 6."""
    second = curve[..., 2 * lag :] - 2.0 * curve[..., lag:-lag] + curve[..., : -2 * lag]
    scale: Array = 1.4826 * np.median(np.abs(second), axis=-1) / math.sqrt(6.0)
    return scale


def without_spikes(curve: Array, sigma: Array) -> Array:
    """The curve (..., J) with each check held within three ``sigma`` (...,) of the median of the five around it."""
    padded = np.concatenate([curve[..., :1]] * 2 + [curve] + [curve[..., -1:]] * 2, axis=-1)
    around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5, axis=-1), axis=-1)
    bound = 3.0 * sigma[..., None]
    held: Array = np.clip(curve, around - bound, around + bound)
    return held


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


def lowest_average(curve: Array, width: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Lowest moving average of a curve (..., J) over ``width`` (...,) checks.

    Returns:
        The average (...,) and the index of the last check in it (...,).
    """
    total = np.concatenate([np.zeros((*curve.shape[:-1], 1)), np.cumsum(curve, axis=-1)], axis=-1)
    last = np.arange(curve.shape[-1])
    first = last - width[..., None] + 1
    average = (total[..., 1:] - np.take_along_axis(total, np.maximum(first, 0), axis=-1)) / width[..., None]
    average = np.where(first >= 0, average, np.inf)
    end = np.argmin(average, axis=-1)
    return np.take_along_axis(average, end[..., None], axis=-1)[..., 0], end


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
