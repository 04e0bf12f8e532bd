"""The divergence rule as arithmetic: curves of many runs in, a case and its numbers out.

Written for R runs at once, so that the very code that stops a run can be measured on thousands of simulated ones
(benchmarks/stopping). Its numbers were chosen there, on other seeds than those reported.
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
from vidlit.stopping.verdict import Action

Flags = NDArray[np.bool_]

MIN_VIDEOS = 4
"""Recordings from which a t-test across them is used; with fewer, all must agree."""
PLATEAU_Z = 2.0
"""Standard errors by which a curve called flat must stay below its limit; the fall on training clips above its own."""
PLATEAU_PACE = 0.1
"""Share of the training subset's fall below which the validation loss counts as no longer improving."""
PLATEAU_TOLERANCE = 0.03
"""Share of the gain by which the validation loss may fall within a plateau; on training clips it must fall more."""
PLATEAU_HUMP = 0.5
"""Standard errors by which a plateau may rise and come down again; after a hump, more learning may follow."""
LUCK = 0.5
"""Share of a lowest stretch's depth that is owed to luck, of that of as many averages of pure noise, once the loss has
surely fallen: few averages compete at the bottom of a curve. Before, all of it is."""
LONGEST_STRETCH = 6
"""The lowest stretch is at most one part in this many of the checks so far."""
TIP = 6
"""The tip of a rise is the last of this many parts of it."""
GROWING = 1.1
"""The tip of a rise over the mean of its later half, at least: a straight line has 1.2, a hump past its top under 1."""

CASES: tuple[tuple[str, Action], ...] = (
    ("learning", "continue"),
    ("gap", "warn"),
    ("plateau", "warn"),
    ("plateau", "stop"),
    ("divergence", "stop"),
    ("no gain", "stop"),
    ("warm-up", "continue"),
)
LEARNING, GAP, PLATEAU_WARNED, PLATEAU, DIVERGENCE, NO_GAIN, WARM_UP = range(len(CASES))


@dataclass(frozen=True)
class DivergenceSettings:
    """Numbers of the divergence rule; one default serves all spacings of checks and levels of jitter.

    Checks are counted as the rule sees them: means over at most 40 even stretches of the run so far.

    Args:
        alpha: chance of a false alarm over a run whose loss stays flat, and level of each test across recordings.
        min_excess: smallest rise that counts, as a share of the gain so far.
        confirm: shortest duration of a rise, as a share of the checks that it took to reach the lowest stretch.
        min_checks: number of checks after step 0 before anything is decided.
        plateau_checks: number of checks without improvement before a plateau is warned of; twice as many stop.
        plateau_share: the same as a share of the checks so far; the larger of the two counts.

    Raises:
        UserError: If a number is out of its range.
    """

    alpha: float = 0.05
    min_excess: float = 0.01
    confirm: float = 0.55
    min_checks: int = 8
    plateau_checks: int = 8
    plateau_share: float = 0.35

    def __post_init__(self) -> None:
        for name, low, high in (
            ("alpha", 0.0, 0.5),
            ("min_excess", 0.0, 1.0),
            ("plateau_share", 0.0, 0.5),
        ):
            if not low < getattr(self, name) < high:
                raise UserError(f"{name} must be between {low:g} and {high:g}, got {getattr(self, name)}")
        if self.confirm < 0:
            raise UserError(f"confirm must not be negative, got {self.confirm}")
        if self.min_checks < 6 or self.plateau_checks < 6:
            raise UserError(
                f"min_checks must be at least 6 and plateau_checks at least 6, got {self.min_checks} and "
                f"{self.plateau_checks}"
            )


@dataclass(frozen=True)
class Findings:
    """What `assess` found in R runs.

    Args:
        case: Index into `CASES` (R,).
        numbers: The numbers behind it by name, each (R,): statistic, the rise of the validation loss since its lowest
            stretch in standard errors, less what is not worth stopping for and what luck explains; its threshold;
            excess, the rise itself; train_eval_excess, the training subset's over the same time; p_value of the rise
            across recordings; jitter.
    """

    case: NDArray[np.int64]
    numbers: dict[str, Array]


def assess(
    val: Array,
    train_eval: Array,
    settings: DivergenceSettings,
    *,
    planned_checks: int,
    warmup_checks: int,
    curve: Array | None = None,
) -> Findings:
    """Judges R runs after their latest check.

    Args:
        val: Validation log-ratios of each recording (R, J, V), step 0 first.
        train_eval: Log-ratios of the training subset, averaged by recording (R, J, P).
        settings: Numbers of the rule.
        planned_checks: Checks after step 0 in the whole run, as the rule sees them.
        warmup_checks: Checks after step 0 that belong to the warm-up. Nothing is decided before three times as many:
            what the first steps disturb takes that long to settle.
        curve: Mean validation log-ratios (R, J) where clips, not videos, count alike; the mean over videos by default.
    """
    curve = val.mean(axis=2) if curve is None else curve
    runs, checks = curve.shape
    now = checks - 1
    # Bonferroni over the planned checks.
    quantile = NormalDist().inv_cdf(1.0 - settings.alpha / max(planned_checks, now, 1))
    threshold = np.full(runs, quantile)
    if now < max(settings.min_checks, 3 * warmup_checks):
        zero = np.zeros(runs)
        return Findings(np.full(runs, WARM_UP), {"statistic": zero, "threshold": threshold})
    sigma = curves.jitter(curve)
    curve = curves.without_spikes(curve, sigma)
    diverged, gain, numbers = _divergence(curve, val, train_eval, sigma, threshold, settings)
    no_gain = _no_gain(curve, val, sigma, diverged, settings, max(3 * warmup_checks, 0.15 * planned_checks))
    plateau, warned = (_plateau(curve, train_eval, sigma, gain, settings, times) for times in (2, 1))
    case = np.select(
        [no_gain, diverged, plateau, warned, _gap_opens(curve, train_eval, sigma, settings)],
        [NO_GAIN, DIVERGENCE, PLATEAU, PLATEAU_WARNED, GAP],
        LEARNING,
    )
    return Findings(case, {**numbers, "threshold": threshold, "jitter": sigma})


def _divergence(
    curve: Array, val: Array, train_eval: Array, sigma: Array, threshold: Array, settings: DivergenceSettings
) -> tuple[Flags, Array, dict[str, Array]]:
    """Whether each run has left its lowest stretch for good; the gain at that stretch (R,); the numbers."""
    runs, checks = curve.shape
    now = checks - 1
    # The reference: the lowest stretch, as long as the jitter asks for and the run allows.
    rough, _ = curves.lowest_average(curve, np.full(runs, 3))
    wanted = np.ceil((sigma / np.maximum(settings.min_excess * -rough, 1e-9)) ** 2)
    width = np.clip(wanted, 3, max(3, now // LONGEST_STRETCH)).astype(np.int64)
    lowest, end = curves.lowest_average(curve, width)
    gain = np.maximum(-lowest, 0.0)
    # The lowest of many averages is too low: add what that of now / width averages of pure noise lies under zero,
    # (3) of docs/science.md; the statistic below is (4).
    luck = np.where(-rough < 3.0 * sigma, 1.0, LUCK)
    lucky = luck * sigma / np.sqrt(width) * np.sqrt(2.0 * np.log(np.maximum(now / width, 1.0)))
    worth = settings.min_excess * gain

    # The later half of the time since then against the reference: in the mean, by video, and on training clips.
    latest = np.full(runs, now)
    count = np.maximum(3, (now - end + 1) // 2)
    start = end - width + 1
    recent = curves.window_mean(curve[..., None], latest - count + 1, latest)[:, 0]
    rise = recent - lowest
    by_video = curves.window_mean(val, latest - count + 1, latest) - curves.window_mean(val, start, end)
    train_eval_rise = curves.window_mean(train_eval, latest - count + 1, latest) - curves.window_mean(
        train_eval, start, end
    )
    p_value, across = _positive(by_video, settings.alpha)
    statistic = (rise - worth - lucky) / (sigma * np.sqrt(1.0 / width + 1.0 / count))

    # A hump passes: wait a share of the time it took to get here, and do not stop where it is on its way down.
    centre = end - (width - 1) / 2.0
    patience = settings.confirm * (2.0 if val.shape[2] < MIN_VIDEOS else 1.0)
    confirmed = (now - end >= 3) & (now - centre >= patience * centre)
    tip = curves.window_mean(curve[..., None], latest - np.maximum(2, (now - end) // TIP) + 1, latest)[:, 0] - lowest
    # Few checks after the lowest stretch say little about the shape of a rise: there, not falling is enough.
    growing = tip >= np.where(now - end >= 12, GROWING, 1.0) * rise
    return (
        (statistic > threshold) & across & confirmed & growing,
        gain,
        {"statistic": statistic, "excess": rise, "train_eval_excess": train_eval_rise.mean(axis=1), "p_value": p_value},
    )


def _no_gain(
    curve: Array, val: Array, sigma: Array, diverged: Flags, settings: DivergenceSettings, patience: float
) -> Flags:
    """Never surely below the base model, and now above it: on three checks in a row, across recordings, not falling."""
    lowest, _ = curves.lowest_average(curve, np.full(len(curve), 3))
    latest = curve[:, -3:].mean(axis=1)
    above = np.logical_and.reduce([_positive(val[:, -k], settings.alpha)[1] for k in (1, 2, 3)])
    above &= (latest > 2.5 * sigma) & (latest > curve[:, -6:-3].mean(axis=1) - sigma)
    never_below: Flags = -lowest < 2.0 * sigma
    found: Flags = never_below & (diverged | (above & (curve.shape[1] - 1 >= patience)))
    return found


def _plateau(
    curve: Array, train_eval: Array, sigma: Array, gain: Array, settings: DivergenceSettings, times: int
) -> Flags:
    """The validation loss surely no longer improves while the training subset surely does.

    "Surely": with its standard error, the improvement from the first to the second half of the window is under a tenth
    of the training subset's, so a jittery curve has to wait for a longer window instead of being called flat. Nor may
    the window hold the way into a dip (a sixth of it above a later one) or a hump that has passed (a sixth above an
    earlier and a later one): after both, more learning may follow.
    """
    now = curve.shape[1] - 1
    length = _window(now, settings) * times
    if length > now:
        return np.zeros(len(curve), dtype=np.bool_)
    each = length // 6
    sixths = curve[:, -6 * each :].reshape(len(curve), 6, each).mean(axis=2)
    lowest_before = np.minimum.accumulate(sixths, axis=1)
    lowest_after = np.minimum.accumulate(sixths[:, ::-1], axis=1)[:, ::-1]
    down = (sixths - lowest_after).max(axis=1)
    hump = np.minimum(sixths - lowest_before, sixths - lowest_after).max(axis=1)
    of_a_sixth = sigma * math.sqrt(2.0 / each)
    noise = PLATEAU_Z * 2.0 * sigma / math.sqrt(length)
    tolerance = PLATEAU_TOLERANCE * gain
    train_eval_falls = _fall(train_eval, length)
    pace = train_eval_falls.mean(axis=1)
    flat = _fall(curve, length) + noise < PLATEAU_PACE * pace
    flat &= (down < tolerance + of_a_sixth) & (hump < PLATEAU_HUMP * of_a_sixth)
    flat &= (pace - noise > tolerance) & _positive(train_eval_falls, settings.alpha)[1]
    found: Flags = flat
    return found


def _gap_opens(curve: Array, train_eval: Array, sigma: Array, settings: DivergenceSettings) -> Flags:
    """The validation loss falls at less than a tenth of the pace on training clips, where it surely falls."""
    now = curve.shape[1] - 1
    length = _window(now, settings)
    if length > now:
        return np.zeros(len(curve), dtype=np.bool_)
    train_eval_falls = _fall(train_eval, length)
    pace = train_eval_falls.mean(axis=1)
    sure = (pace > 2.0 * 2.0 * sigma / math.sqrt(length)) & _positive(train_eval_falls, settings.alpha)[1]
    found: Flags = sure & (_fall(curve, length) < 0.1 * pace)
    return found


def _window(now: int, settings: DivergenceSettings) -> int:
    return max(settings.plateau_checks, math.ceil(settings.plateau_share * now))


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
