"""The divergence rule and its competitors, each from runs (R, J + 1) to the check at which it stops (J: never)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlit.stopping.curves import jitter, without_jumps
from vidlit.stopping.rows import condense, row_length, row_numbers
from vidlit.stopping.rule import CASES, DIVERGENCE, LEARNING, DivergenceSettings, Findings, assess


@dataclass(frozen=True)
class Runs:
    """R runs of J checks after step 0.

    Args:
        val: Mean validation log-ratios (R, J + 1).
        probe: Mean log-ratios of the training subset (R, J + 1).
        val_by_video: (R, J + 1, V).
        probe_by_video: (R, J + 1, P).
        truth: What clips that no rule sees measure (R, J + 1).
        oracle: Check of its minimum (R,).
        right_from: First check at which a stop is right (R,); J + 1 where it never is.
        fresh: Validation loss with fresh draws (R, J + 1).
        warmup_checks: Checks of the warm-up.
    """

    val: NDArray[np.float64]
    probe: NDArray[np.float64]
    val_by_video: NDArray[np.float64]
    probe_by_video: NDArray[np.float64]
    truth: NDArray[np.float64]
    oracle: NDArray[np.int64]
    right_from: NDArray[np.int64]
    fresh: NDArray[np.float64]
    warmup_checks: int


Stops = tuple[NDArray[np.int64], NDArray[np.int64]]  # check of the stop, restored check


def divergence(runs: Runs) -> Stops:
    """The rule as it ships, asked at every check."""
    steps = np.arange(runs.val.shape[1])
    stop = ask_at_every_check(steps, runs.val_by_video, runs.probe_by_video, warmup_steps=runs.warmup_checks)
    return stop, _lowest(without_jumps(runs.val, runs.val_by_video), stop)


def ask_at_every_check(
    steps: NDArray[np.int64],
    val: NDArray[np.float64],
    probe: NDArray[np.float64],
    *,
    warmup_steps: int,
    condensed: bool = True,
    judge: Callable[..., Findings] = assess,
) -> NDArray[np.int64]:
    """Checks (R,) at which the rule stops runs (R, J, V) that are checked at these steps (J,); J - 1: never.

    Where it is not ``condensed`` it sees the checks as they come, as it once did. ``judge``: another rule in its place.
    """
    stop = np.full(len(val), len(steps) - 1)
    going = np.arange(len(val))
    stops = np.array([action == "stop" for _, action in CASES])
    for now in range(1, len(steps) - 1):
        seen = steps[: now + 1]
        rows = row_numbers(seen) if condensed else np.arange(now + 1)
        length = row_length(seen) if condensed else steps[1]
        found = judge(
            condense(val[:, : now + 1], rows),
            condense(probe[:, : now + 1], rows),
            DivergenceSettings(),
            warmup_rows=-(-warmup_steps // length),
        )
        over = stops[found.case]
        if over.any():
            stop[going[over]] = now
            going, val, probe = going[~over], val[~over], probe[~over]
            if not len(going):
                break
    return stop


def patience(runs: Runs, checks: int, fresh: bool) -> Stops:
    """Lightning's EarlyStopping(patience=checks): that many checks without a new lowest value."""
    monitored = runs.fresh if fresh else runs.val
    return _first(_waited(monitored) >= checks, monitored)


def scaled_patience(steps: NDArray[np.int64], curve: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Where a curve (R, J) has had no new lowest value for a share of the steps so far."""
    last = len(steps) - 1
    over: NDArray[np.bool_] = steps - steps[np.arange(last + 1) - _waited(curve)] >= share * steps
    over[:, :8] = False
    return over


def twelve_lines(val: NDArray[np.float64], *_: object, **__: object) -> Findings:
    """The shortest rule that does much of what ours does, in its place; what it is told beside the curves is unused.

    Has the curve, averaged over max(3, J / 16) rows, had its lowest value 0.3 of the rows ago, and risen since by 1 %
    of the gain and three jitters?
    """
    curve = val.mean(axis=2)
    now = curve.shape[1] - 1
    if now < 8:
        return Findings(np.full(len(curve), LEARNING), {})
    width = max(3, now // 16)
    means = np.lib.stride_tricks.sliding_window_view(curve, width, axis=1).mean(axis=2)
    lowest, since = means.min(axis=1), means.shape[1] - 1 - means.argmin(axis=1)
    worth = 0.01 * np.maximum(-lowest, 0.0) + 3.0 * jitter(curve) * math.sqrt(2.0 / width)
    return Findings(np.where((means[:, -1] - lowest > worth) & (since >= 0.3 * now), DIVERGENCE, LEARNING), {})


def generalisation_loss(runs: Runs, percent: float) -> Stops:
    """Prechelt's GL: the loss is more than ``percent`` above its lowest so far."""
    return _first(_gl(runs) > percent, runs.val)


def progress_quotient(runs: Runs, alpha: float, strip: int = 5) -> Stops:
    """Prechelt's PQ: GL over the training progress (in thousandths) within the last strip of checks."""
    train = np.exp(runs.probe)
    progress = np.full_like(train, np.inf)
    for j in range(strip - 1, train.shape[1]):
        window = train[:, j - strip + 1 : j + 1]
        progress[:, j] = 1000.0 * (window.mean(axis=1) / window.min(axis=1) - 1.0)
    return _first(_gl(runs) / np.maximum(progress, 1e-9) > alpha, runs.val)


def strips_up(curve: NDArray[np.float64], times: int, strip: int = 5) -> NDArray[np.bool_]:
    """Prechelt's UP: where a curve (R, J) rose over each of the last ``times`` strips of checks."""
    over = np.zeros(curve.shape, dtype=np.bool_)
    for j in range(times * strip, curve.shape[1], strip):
        ends = curve[:, j - times * strip : j + 1 : strip]
        over[:, j] = (np.diff(ends, axis=1) > 0).all(axis=1)
    return over


def no_stop(runs: Runs) -> Stops:
    """The whole plan, the last weights kept."""
    last = np.full(len(runs.val), runs.val.shape[1] - 1)
    return last, last


RULES: dict[str, Callable[[Runs], Stops]] = {
    "vidlit divergence": divergence,
    **{f"patience {p}, paired": lambda runs, p=p: patience(runs, p, fresh=False) for p in (3, 5, 10, 20)},
    **{f"patience {p}, fresh": lambda runs, p=p: patience(runs, p, fresh=True) for p in (3, 5, 10, 20)},
    **{f"Prechelt GL {a}": lambda runs, a=a: generalisation_loss(runs, a) for a in (1, 2, 5)},
    "Prechelt PQ 0.5": lambda runs: progress_quotient(runs, 0.5),
    "Prechelt PQ 1": lambda runs: progress_quotient(runs, 1.0),
    **{f"Prechelt UP {n}": lambda runs, n=n: _first(strips_up(runs.val, n), runs.val) for n in (2, 3)},
    "no stop": no_stop,
}

OTHERS: dict[str, Callable[[NDArray[np.int64], NDArray[np.float64]], NDArray[np.bool_]]] = {
    **{f"patience {p}": lambda _, curve, p=p: _waited(curve) >= p for p in (5, 10, 20)},
    "patience of 0.3 of the steps so far": lambda steps, curve: scaled_patience(steps, curve, 0.3),
    "Prechelt UP 3": lambda _, curve: strips_up(curve, 3),
    "no stop": lambda _, curve: np.zeros(curve.shape, dtype=np.bool_),
}
"""Other rules at any schedule: from steps (J,) and mean validation curves (R, J) to where each would stop (R, J)."""


def _gl(runs: Runs) -> NDArray[np.float64]:
    return 100.0 * np.expm1(runs.val - np.minimum.accumulate(runs.val, axis=1))


def _waited(curve: NDArray[np.float64]) -> NDArray[np.int64]:
    """Checks since the lowest value so far (R, J)."""
    waited: NDArray[np.int64] = np.arange(curve.shape[1]) - _last_minimum(curve)
    return waited


def _last_minimum(curve: NDArray[np.float64]) -> NDArray[np.int64]:
    """Check of the lowest value so far, at each check."""
    lower = np.concatenate(
        [np.ones((len(curve), 1), dtype=bool), curve[:, 1:] < np.minimum.accumulate(curve, axis=1)[:, :-1]], axis=1
    )
    return np.maximum.accumulate(np.where(lower, np.arange(curve.shape[1]), 0), axis=1)


def first_of(over: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first check (R,) that is over (R, J); J - 1 where none is."""
    return np.where(over.any(axis=1), over.argmax(axis=1), over.shape[1] - 1)


def _first(over: NDArray[np.bool_], monitored: NDArray[np.float64]) -> Stops:
    stop = first_of(over)
    return stop, _lowest(monitored, stop)


def _lowest(monitored: NDArray[np.float64], stop: NDArray[np.int64]) -> NDArray[np.int64]:
    """The best check seen until the stop."""
    seen = np.arange(monitored.shape[1]) <= stop[:, None]
    return np.where(seen, monitored, np.inf).argmin(axis=1)
