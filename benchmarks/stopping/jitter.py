"""How validation curves jitter, on runs on real clips.

Jitter is what is left of a curve of 240 checks after a smooth trend (`benchmarks.stopping.real_clips.smoother`), from a
tenth of the run on. A trend takes some of the jitter with it and leaves neighbours that seem to move against each
other; so memories are fitted to what the same smoother leaves of simulated correlations, not read off. A wider trend
leaves more: where the memory grows with it, the weights wander, and no line divides that from learning.

1. Correlation of jitter in time, and the memory that fits: of a shape ``exp(-distance / memory)``, and of a smooth one,
   as an optimizer with momentum makes it, ``(1 + 2 distance / memory) exp(-2 distance / memory)``.
2. What of it all recordings have in common, and what two noise levels a clip cost against four.
3. Noise levels: where curves jitter, where overfitting shows, and what weight levels above 0.7 should have.
4. Estimates of jitter from the 16 to 32 rows that the rule sees, against the jitter of those rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.stopping.real_clips import WINDOW, ClipRun, Way, smoother, weighted
from vidlit.stopping import curves
from vidlit.stopping.curves import without_jumps
from vidlit.stopping.rows import condense, row_numbers

Array = NDArray[np.float64]
LAGS = (1, 2, 3, 6, 12)  # checks of 240
FITTED = LAGS[:4]
WINDOWS = (41, 81)  # checks of the trend
MEMORIES = np.geomspace(0.001, 0.2, 47)  # of a run
SHAPES: dict[str, Callable[[Array], Array]] = {  # of the correlation, by distance in memories; both have integral 1
    "exponential": lambda apart: np.exp(-apart),
    "damped": lambda apart: (1.0 + 2.0 * apart) * np.exp(-2.0 * apart),
}
FROM = 0.1  # of a run: before, no trend is smooth
BINS = ((0.0, 0.35), (0.35, 0.7), (0.7, 1.0))
HIGH_WEIGHTS = (0.0, 0.25, 0.5, 1.0)


trend_of = lru_cache(smoother)


def residuals(values: Array, window: int = WINDOW) -> Array:
    """Curves (J, ...) less their trend, of the checks after a tenth of the run, the rest NaN."""
    flat = values.reshape(len(values), -1)
    left = flat - trend_of(len(values), window) @ flat
    left[: math.ceil(FROM * (len(values) - 1))] = np.nan
    return left.reshape(values.shape)


def correlations(left: Array, part: slice = slice(None)) -> Array:
    """Autocorrelation (len(LAGS),) of jitter (J, ...) in a part of the run, over all curves of it."""
    left = left[part].reshape(len(left[part]), -1)
    variance = np.nanmean(left**2, axis=0)
    return np.array([np.nanmean(np.nanmean(left[lag:] * left[:-lag], axis=0) / variance) for lag in LAGS])


class MemoryFit:
    """Finds the memory, as a share of the run, whose correlations after the smoother are nearest, for both shapes."""

    def __init__(self, checks: int, window: int) -> None:
        apart = np.abs(np.subtract.outer(np.arange(checks), np.arange(checks))) / (checks - 1)
        left = np.eye(checks) - trend_of(checks, window)
        settled = slice(math.ceil(FROM * (checks - 1)), None)
        self.expected = {}
        for name, shape in SHAPES.items():
            found = [(left @ shape(apart / memory) @ left.T)[settled, settled] for memory in MEMORIES]
            self.expected[name] = np.array([[one.diagonal(lag).mean() for lag in (0, *LAGS)] for one in found])

    def __call__(self, found: Array) -> dict[str, tuple[float, float]]:
        """Memory, and root mean square error of the correlations, by shape."""
        fits = {}
        for name, expected in self.expected.items():
            error = expected[:, 1 : 1 + len(FITTED)] / expected[:, :1] - found[: len(FITTED)]
            size = np.sqrt((error**2).mean(axis=1))
            fits[name] = float(MEMORIES[size.argmin()]), float(size.min())
        return fits


def time_table(runs: list[ClipRun]) -> list[str]:
    """1: correlations by kind, batch, spacing of checks and position, and the memory that fits."""
    checks = len(runs[0].steps)
    fits = {window: MemoryFit(checks, window) for window in WINDOWS}
    lags = " | ".join(f"lag {lag}/{checks - 1}" for lag in LAGS)
    shapes = " | ".join(f"{shape}: memory, of a run | in steps, by run | error" for shape in SHAPES)
    lines = [
        f"| jitter of | trend over | runs | {lags} | {shapes} |",
        "|---" * (3 + len(LAGS) + 3 * len(SHAPES)) + "|",
    ]

    def row(
        name: str, chosen: list[ClipRun], curve: Callable[[ClipRun], Array], window: int, part: slice = slice(None)
    ) -> None:
        each = np.array([correlations(residuals(curve(run), window), part) for run in chosen])
        found = each.mean(axis=0)
        cells = [f"{value:+.2f}" for value in found]
        for shape, (memory, error) in fits[window](found).items():
            steps = [fits[window](one)[shape][0] * run.plan.steps for one, run in zip(each, chosen, strict=True)]
            low, middle, high = np.percentile(steps, [10, 50, 90])
            cells += [f"{memory:.4f}", f"{middle:.0f} ({low:.0f}-{high:.0f})", f"{error:.3f}"]
        lines.append(f"| {name} | {window} | {len(chosen)} | " + " | ".join(cells) + " |")

    def mean(run: ClipRun) -> Array:
        return run.val.mean(axis=1)

    for window in WINDOWS:
        row("validation mean", runs, mean, window)
        row("single recordings", runs, lambda run: run.val, window)
        row("training subset, mean", runs, lambda run: run.train_eval.mean(axis=1), window)
        for name, chosen in groups(runs).items():
            row(f"validation mean, {name}", chosen, mean, window)
        third = (checks - 1) * 3 // 10
        for k, where in enumerate(("first", "middle", "last")):
            first = (checks - 1) // 10 + k * third
            row(f"validation mean, {where} third", runs, mean, window, slice(first, first + third))
    return lines


def groups(runs: list[ClipRun]) -> dict[str, list[ClipRun]]:
    """Runs by kind, batch size and steps between checks."""
    found: dict[str, list[ClipRun]] = {}
    for run in runs:
        plan = run.plan
        kind = "LoRA" if plan.rank else "scratch"
        names = [kind, f"batch {plan.batch_size}", f"{kind}, {plan.every} steps a check"]
        names += ["still improving"] if run.is_improving else []
        for name in names:
            found.setdefault(name, []).append(run)
    return dict(sorted(found.items()))


def common_share(left: Array) -> tuple[float, float]:
    """Share of the jitter (J, V) that all recordings have in common: of one recording's, and of their mean's."""
    mean = np.nanvar(left.mean(axis=1))
    single = np.nanvar(left, axis=0).mean()
    num = left.shape[1]
    common = max((num * mean - single) / (num - 1), 0.0)
    return float(common / single), float(common / mean)


def _correlation(a: Array, b: Array) -> float:
    known = ~np.isnan(a + b)
    return float(np.corrcoef(a[known], b[known])[0, 1])


def share_table(runs: list[ClipRun]) -> list[str]:
    """2: common and own jitter; two noise levels against four; other noise at the same levels."""
    lines = ["| | mean over runs | scratch | LoRA |", "|---" * 4 + "|"]

    def row(name: str, value: Callable[[ClipRun], float], chosen: Iterable[ClipRun] = runs) -> None:
        found = [(run.plan.rank > 0, value(run)) for run in chosen]
        parts = [[v for lora, v in found if which in (None, lora)] for which in (None, False, True)]
        cells = [f"{np.mean(part):.2f} ({len(part)})" if part else "" for part in parts]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    def val(run: ClipRun) -> Array:
        return residuals(run.val)

    row("share in common, of one recording's variance", lambda run: common_share(val(run))[0])
    row("share in common, of the variance of the mean", lambda run: common_share(val(run))[1])
    row("the same for 12 recordings", lambda run: _of_twelve(common_share(val(run))[0]))
    row(
        "correlation of the validation mean with the oracle",
        lambda run: _correlation(val(run).mean(axis=1)[::2], residuals(run.oracle)[::2]),  # scored at these
    )
    row(
        "correlation of the validation mean with the training subset's",
        lambda run: _correlation(val(run).mean(axis=1), residuals(run.train_eval).mean(axis=1)),
    )
    four = [run for run in runs if "val_4" in run.arrays]

    def both(run: ClipRun) -> tuple[Array, Array]:
        return val(run), residuals(weighted(run.arrays["val_4"], run.arrays["val_4_sigmas"]))

    row(
        "variance at 2 levels over that at 4: one recording",
        lambda run: float(np.divide(*(np.nanvar(left, axis=0).mean() for left in both(run)))),
        four,
    )
    row(
        "the same: a recording's own part",
        lambda run: float(np.divide(*(np.nanvar(left, axis=0).mean() * (1 - common_share(left)[0])
                                      for left in both(run)))),
        four,
    )  # fmt: skip
    row(
        "the same: the mean of all recordings",
        lambda run: float(np.divide(*(np.nanvar(left.mean(axis=1)) for left in both(run)))),
        four,
    )
    row("correlation of one evaluation with the same clip and level under other noise", _other_noise, four)
    row("the same, without what all recordings have in common", lambda run: _other_noise(run, own=True), four)
    return lines


def _of_twelve(of_one: float) -> float:
    return of_one / (of_one + (1.0 - of_one) / 12)


def _other_noise(run: ClipRun, own: bool = False) -> float:
    """Mean correlation of jitter at the same clip and level under two draws of noise: what is owed to the weights."""
    two, four = run.arrays["val"], run.arrays["val_4"]
    same = np.abs(run.arrays["val_4_sigmas"][:, None] - run.arrays["val_sigmas"][..., None]).argmin(axis=2)  # (N, 2)
    other = np.take_along_axis(four, np.broadcast_to(same, (len(four), *same.shape)), axis=2)
    a, b = residuals(two), residuals(other)
    if own:
        a, b = (left - left.mean(axis=1, keepdims=True) for left in (a, b))
    pairs = [(a[:, n, k], b[:, n, k]) for n in range(a.shape[1]) for k in range(2)]
    return float(np.mean([_correlation(x, y) for x, y in pairs]))


def level_tables(runs: list[ClipRun]) -> list[str]:
    """3: jitter and rise by noise level, and weights of the levels above 0.7."""
    lines = [
        "| noise levels | runs | oracle, fall to the minimum | oracle, rise from there to the end | jitter of one "
        "evaluation | rise / jitter | jitter of the mean over validation clips | rise / that |",
        "|---" * 8 + "|",
    ]
    over = [run for run in runs if run.has_turned]
    kinds = {
        kind: [run for run in over if (run.plan.rank > 0) == lora]
        for kind, lora in (("scratch", False), ("LoRA", True))
    }
    for kind, chosen in kinds.items():
        for low, high in BINS:
            numbers = np.array([_level(run, low, high) for run in chosen])
            if not len(numbers):
                continue
            fall, rise, jitter, of_mean = np.nanmean(numbers, axis=0)
            lines.append(
                f"| {kind}, sigma {low:g} to {high:g} | {len(numbers)} | {fall:+.4f} | {rise:+.4f} | {jitter:.4f} "
                f"| {np.nanmedian(numbers[:, 1] / numbers[:, 2]):.1f} | {of_mean:.4f} "
                f"| {np.nanmedian(numbers[:, 1] / numbers[:, 3]):.1f} |"
            )
    lines += [
        "",
        "| weight above 0.7 | kind | jitter / rise of the validation mean, median | regret, oracle in the package's "
        "weights | all levels alike | mean loss |",
        "|---" * 6 + "|",
    ]
    for kind, chosen in kinds.items():
        for high in HIGH_WEIGHTS:
            numbers = np.array([_weighting(run, high) for run in chosen])
            if len(numbers):
                noise = np.median(numbers[:, 0])
                regrets = " | ".join(f"{v.mean():.1%} / {v.max():.0%}" for v in numbers[:, 1:].T)
                lines.append(f"| {high:g} | {len(numbers)} {kind} | {noise:.3f} | {regrets} |")
    return lines


def _level(run: ClipRun, low: float, high: float) -> tuple[float, float, float, float]:
    """Fall and rise of the oracle in a range of noise levels; jitter of one evaluation, of the validation mean."""
    turn = int(run.trend.argmin())
    sigmas = run.arrays["oracle_sigmas"]
    inside = (sigmas > low) & (sigmas <= high)
    curve = trend_of(len(run.steps)) @ run.arrays["oracle"][:, inside].mean(axis=1)
    chosen = (run.arrays["val_sigmas"] > low) & (run.arrays["val_sigmas"] <= high)
    if not chosen.any():
        return float(curve[turn]), float(curve[-1] - curve[turn]), np.nan, np.nan
    left = residuals(run.arrays["val"][:, chosen])
    one = float(np.sqrt(np.nanvar(left, axis=0).mean()))
    return float(curve[turn]), float(curve[-1] - curve[turn]), one, float(np.nanstd(left.mean(axis=1)))


def _weighting(run: ClipRun, high: float) -> tuple[float, float, float, float]:
    """Jitter over rise of the validation mean, and regrets of its best check by three oracles."""
    by_clip = weighted(run.arrays["val"], run.arrays["val_sigmas"], high)
    by_clip = by_clip[:, ~np.isnan(by_clip).any(axis=0)]
    curve = by_clip.mean(axis=1)
    trend = trend_of(len(curve)) @ curve
    checks, _ = Way().checks(run)
    best = int(checks[without_jumps(curve[checks], by_clip[checks]).argmin()])
    loss = run.arrays["oracle_loss"]
    oracles = run.oracle, run.arrays["oracle"].mean(axis=1), np.log(loss / loss[0])
    regrets = []
    for oracle in oracles:
        lowest = float((trend_of(len(curve)) @ oracle)[1:].min())
        regrets.append((float(oracle[best]) - lowest) / max(-lowest, 0.01))
    return float(np.nanstd(residuals(curve)) / max(trend[-1] - trend[1:].min(), 1e-6)), *regrets


def difference_scale(curve: Array, order: int, lag: int) -> float:
    """Deviation of noise from the median absolute difference of an order at a lag."""
    for _ in range(order):
        curve = curve[lag:] - curve[:-lag]
    return float(1.4826 * np.median(np.abs(curve)) / math.sqrt(math.comb(2 * order, order)))


ESTIMATES: dict[str, Callable[[Array], float]] = {
    "as it ships": lambda curve: float(curves.jitter(curve)),
    "second differences, lag 1": lambda curve: difference_scale(curve, 2, 1),
    "second differences, lag 2": lambda curve: difference_scale(curve, 2, 2),
    "third differences, lag 1": lambda curve: difference_scale(curve, 3, 1),
    "third differences, lag 2": lambda curve: difference_scale(curve, 3, 2),
}


def estimate_table(runs: list[ClipRun]) -> list[str]:
    """4: estimates of jitter over its true deviation, on rows of the first half of a run and of all of it."""
    lines = [
        "| estimate / true deviation of the rows | median | 10 % | 90 % | deviation of its logarithm "
        "| half of the run, median | scratch | LoRA |",
        "|---" * 8 + "|",
    ]
    for name, estimate in ESTIMATES.items():
        whole = np.array([_ratio(run, estimate, 1.0) for run in runs])
        half = np.array([_ratio(run, estimate, 0.5) for run in runs])
        lora = np.array([run.plan.rank > 0 for run in runs])
        low, middle, high = np.percentile(whole, [10, 50, 90])
        lines.append(
            f"| {name} | {middle:.2f} | {low:.2f} | {high:.2f} | {np.log(whole).std():.2f} | {np.median(half):.2f} "
            f"| {np.median(whole[~lora]):.2f} | {np.median(whole[lora]) if lora.any() else np.nan:.2f} |"
        )
    return lines


def _ratio(run: ClipRun, estimate: Callable[[Array], float], part: float) -> float:
    """Estimate over true deviation of the rows that the rule sees after a part of the run."""
    checks, _ = Way().checks(run)
    checks = checks[run.steps[checks] <= part * run.plan.steps]
    rows = row_numbers(run.steps[checks])
    curve = run.val.mean(axis=1)
    left = curve - trend_of(len(curve)) @ curve
    seen, jitter = (condense(values[checks, None], rows)[:, 0] for values in (curve, left))
    settled = np.arange(len(jitter)) > FROM * len(jitter)
    return estimate(seen) / max(float(np.sqrt(np.mean(jitter[settled] ** 2))), 1e-9)


def report(runs: list[ClipRun]) -> str:
    """The tables."""
    lines = [f"# Jitter of checks, on {len(runs)} runs on real clips (`benchmarks/stopping/jitter.py`)", ""]
    for number, made in enumerate((time_table, share_table, level_tables, estimate_table), start=1):
        lines += [f"## {number}", "", *made(runs), ""]
    return "\n".join(lines)
