"""The divergence rule as arithmetic: curves of many runs in, a case and its numbers out.

Written for R runs at once, so that the very code that stops a run can be measured on thousands of simulated ones
(benchmarks/stopping). Its numbers were chosen there, on other seeds than those reported; ``python -m
benchmarks.stopping --constants`` prints what other values would do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vidlit.errors import UserError
from vidlit.stopping import curves
from vidlit.stopping.curves import Array
from vidlit.stopping.schedule import MAX_ROWS
from vidlit.stopping.verdict import Action

Flags = NDArray[np.bool_]

MIN_VIDEOS = 4
"""Recordings from which a t-test across them is used; with fewer, all must agree."""
MEASURED_VIDEOS = 6
"""The fewest validation recordings that the rule was measured with, on simulated and on real runs (docs/measured.md):
of fewer, users are warned."""
STRETCH = 3
"""Rows of the lowest stretch: of two one lucky row is half; five see a turn later and cost 6 points more."""
SETTLING = 3
"""Nothing is decided before so many times the warm-up: humps of early steps pass by then. Once stops 1.6 % of the runs
too early, a third in the worst cell; twice, twice as many as this in the worst."""
SURE = 3.0
"""Jitters below the base model at which a loss has surely fallen. At 2 twice as many flat curves are stopped."""
PLATEAU_PACE = 0.2
"""Share of the training subset's fall under which the validation loss no longer improves. At 0.1 twice as many plateaus
are missed, at 0.25 more double descents are cut off."""
PLATEAU_Z = 1.5
"""Standard errors by which a plateau's fall must stay below that share, and the training subset's be above none. At 1
five times as many flat curves with nothing to learn are stopped, at 2 half as many overfit runs again are missed."""
PLATEAU_TOLERANCE = 0.03
"""Share of the gain by which the validation loss may fall within a plateau; the training subset's must fall more. At
0.01 plateaus are missed as at a pace of 0.1; at 0.1 four times as many humps are taken for one in the worst cell."""
PARTS = 6
"""Of a plateau's window, none of which may lie above a later one: the way down from a hump is no plateau. The tip of
a rise is the last of as many parts, too. Two rows and more each, in a window that stops."""

CASES: tuple[tuple[str, Action], ...] = (
    ("learning", "continue"),
    ("plateau", "warn"),
    ("plateau", "stop"),
    ("divergence", "stop"),
    ("no gain", "stop"),
    ("warm-up", "continue"),
)
LEARNING, PLATEAU_WARNED, PLATEAU, DIVERGENCE, NO_GAIN, WARM_UP = range(len(CASES))


@dataclass(frozen=True)
class DivergenceSettings:
    """Numbers of the divergence rule; one default serves all spacings of checks and levels of jitter.

    Checks are counted as the rule sees them: means over 16 to 32 even stretches of the run so far.

    Args:
        alpha: chance of a false alarm over a run whose loss stays flat, and level of each test across recordings.
        min_excess: smallest rise that counts, as a share of the gain so far.
        confirm: shortest duration of a rise, as a share of the time that it took to reach the lowest stretch.
        min_checks: number of checks after step 0 before anything is decided.
        plateau_checks: number of checks without improvement that stop a run; half of them warn.
        plateau_share: the same as a share of the checks so far; the larger of the two counts.

    Raises:
        UserError: If a number is out of its range.
    """

    alpha: float = 0.05
    min_excess: float = 0.01
    confirm: float = 0.55
    min_checks: int = 8
    plateau_checks: int = 16
    plateau_share: float = 0.7

    def __post_init__(self) -> None:
        for name, low, high in (
            ("alpha", 0.0, 0.5),
            ("min_excess", 0.0, 1.0),
            ("plateau_share", 0.0, 1.0),
        ):
            if not low < getattr(self, name) < high:
                raise UserError(f"{name} must be between {low:g} and {high:g}, got {getattr(self, name)}")
        if self.confirm < 0:
            raise UserError(f"confirm must not be negative, got {self.confirm}")
        if self.min_checks < 6:
            raise UserError(f"min_checks must be at least 6, got {self.min_checks}")
        if self.plateau_checks < 2 * PARTS:
            raise UserError(
                f"plateau_checks must be at least {2 * PARTS}, got {self.plateau_checks}: it counts the checks that "
                "stop a run, half of which warn (in older configs it counted those that warn; leave it out there, and "
                "plateau_share with it)"
            )


@dataclass(frozen=True)
class Findings:
    """What `assess` found in R runs.

    Args:
        case: Index into `CASES` (R,).
        numbers: The numbers behind it by name, each (R,): statistic, the rise of the validation loss since its lowest
            stretch, less what is not worth stopping for, in standard errors; its threshold; excess, the rise itself;
            train_eval_excess, the training subset's over the same time; p_value of the rise across recordings; jitter.
    """

    case: NDArray[np.int64]
    numbers: dict[str, Array]


def assess(
    val: Array, train_eval: Array, settings: DivergenceSettings, *, warmup_rows: int, curve: Array | None = None
) -> Findings:
    """Judges R runs after their latest check.

    Args:
        val: Validation log-ratios of each recording (R, J, V), J evenly spaced rows, step 0 first.
        train_eval: Log-ratios of the training subset, averaged by recording (R, J, P); P may be 0.
        settings: Numbers of the rule.
        warmup_rows: Rows after step 0 that belong to the learning rate's warm-up.
        curve: Mean validation log-ratios (R, J) where clips, not videos, count alike; the mean over videos by default.
    """
    curve = val.mean(axis=2) if curve is None else curve
    runs, now = curve.shape[0], curve.shape[1] - 1
    # The chance of one false alarm is shared out among the rows (Bonferroni).
    threshold = np.full(runs, NormalDist().inv_cdf(1.0 - settings.alpha / MAX_ROWS))
    if now < max(settings.min_checks, SETTLING * warmup_rows):
        return Findings(np.full(runs, WARM_UP), {"statistic": np.zeros(runs), "threshold": threshold})
    sigma = curves.jitter(curve)
    lowest, end = curves.lowest_average(curve, STRETCH)
    has_fallen = -lowest >= SURE * sigma
    risen, numbers = _risen(curve, val, train_eval, sigma, np.where(has_fallen, end, -1), threshold, settings)
    plateau, warned = (
        _plateau(curve, train_eval, sigma, np.maximum(-lowest, 0.0), settings, share) for share in (1.0, 0.5)
    )
    case = np.select(
        [risen & ~has_fallen, risen, plateau, warned], [NO_GAIN, DIVERGENCE, PLATEAU, PLATEAU_WARNED], LEARNING
    )
    return Findings(case, {**numbers, "threshold": threshold, "jitter": sigma})


def _risen(
    curve: Array,
    val: Array,
    train_eval: Array,
    sigma: Array,
    end: NDArray[np.int64],
    threshold: Array,
    settings: DivergenceSettings,
) -> tuple[Flags, dict[str, Array]]:
    """Whether each run has left its lowest stretch, which ends at row ``end`` (R,), for good; the numbers.

    Where ``end`` is -1 the loss never surely fell, and what it has left is step 0 itself: the lowest of many rows of
    pure noise lies under it by luck.
    """
    now = curve.shape[1] - 1
    first, last = np.where(end < 0, 0, end - STRETCH + 1), np.maximum(end, 0)
    latest = np.full(len(end), now)
    since = now - last
    # The later half of the time since then, by recording and on training clips.
    count = np.maximum(STRETCH, (since + 1) // 2)

    def rise(values: Array, count: NDArray[np.int64]) -> Array:
        recent: Array = curves.window_mean(values, latest - count + 1, latest)
        return recent - curves.window_mean(values, first, last)

    excess = rise(curve[..., None], count)[:, 0]
    worth = settings.min_excess * np.maximum(0.0, -curves.window_mean(curve[..., None], first, last)[:, 0])
    statistic = (excess - worth) / (sigma * np.sqrt(1.0 / STRETCH + 1.0 / count))
    p_value, across = _positive(rise(val, count), settings.alpha)
    # A hump passes: wait a share of the time it took to get here, and do not stop where it is on its way down.
    centre = (first + last) / 2.0
    patience = settings.confirm * (2.0 if val.shape[2] < MIN_VIDEOS else 1.0)
    confirmed = (since >= STRETCH) & (now - centre >= patience * centre)
    growing = rise(curve[..., None], np.maximum(2, since // PARTS))[:, 0] >= excess
    of_training = rise(train_eval, count).mean(axis=1) if train_eval.shape[2] else np.zeros(len(end))
    numbers = {"statistic": statistic, "excess": excess, "train_eval_excess": of_training, "p_value": p_value}
    return (statistic > threshold) & across & confirmed & growing, numbers


def _plateau(
    curve: Array, train_eval: Array, sigma: Array, gain: Array, settings: DivergenceSettings, share: float
) -> Flags:
    """The validation loss surely no longer improves while the training subset's does, over a share of the window.

    "Surely": with its standard error, the improvement from the first to the second half of the window is under a share
    of the training subset's, so a jittery curve has to wait for a longer window instead of being called flat. Nor may
    the loss have come down within the window: after a hump or a dip, more learning may follow.
    """
    now = curve.shape[1] - 1
    length = math.ceil(share * max(settings.plateau_checks, settings.plateau_share * now))
    if length > now or not train_eval.shape[2]:
        return np.zeros(len(curve), dtype=np.bool_)
    each = length // PARTS
    parts = curve[:, -PARTS * each :].reshape(len(curve), PARTS, each).mean(axis=2)
    down = (parts - np.minimum.accumulate(parts[:, ::-1], axis=1)[:, ::-1]).max(axis=1)
    noise = PLATEAU_Z * 2.0 * sigma / math.sqrt(length)
    tolerance = PLATEAU_TOLERANCE * gain
    train_eval_falls = _fall(train_eval, length)
    pace = train_eval_falls.mean(axis=1)
    found: Flags = _fall(curve, length) + noise < PLATEAU_PACE * pace
    found &= down < tolerance + 0.5 * sigma * math.sqrt(2.0 / each)
    found &= (pace - noise > tolerance) & _positive(train_eval_falls, settings.alpha)[1]
    return found


def _fall(values: Array, length: int) -> Array:
    """Fall of values (R, J, ...) from the first to the second half of the last ``length`` checks."""
    half = length // 2
    fall: Array = values[:, -2 * half : -half].mean(axis=1) - values[:, -half:].mean(axis=1)
    return fall


def _positive(by_video: Array, alpha: float) -> tuple[Array, Flags]:
    """Whether differences (R, V) are above zero across recordings: p-value (R,) and verdict (R,).

    With fewer than four videos a t-test has no power: all of them must agree, and the p-value is the sign test's.
    """
    videos = by_video.shape[1]
    if videos < MIN_VIDEOS:
        agree = np.all(by_video > 0, axis=1)
        return np.where(agree, 0.5**videos, 1.0), agree
    p_value = curves.p_greater(by_video)
    return p_value, p_value < alpha
