"""The rule and the schedule that ship, on runs on real clips.

The runs (``benchmarks.stopping.real --source``) are checked 240 times, and a schedule is read from them: of each of its
steps the nearest check. What no rule sees is the oracle, 14 recordings or so, in the package's weights of the noise
levels. Its curve jitters as the weights do, so

- its minimum is that of a smooth trend through it, `smoother`;
- a stop is right from the step on at which the trend has come within 1 % of the gain there; where the gain is under
  1 % of the loss, at any time;
- a run whose minimum lies in its last twentieth is still improving: every stop is false; one whose minimum lies before
  three fifths of it has turned: only of these there are cost, overshoot and misses;
- regret is the oracle's value at the check kept, less the trend's lowest, in gains: below 0 where luck kept a good one;
- cost is training until the stop and all checks, in steps, over the steps to the minimum; where nothing stops, the
  whole run's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stopping.real_runs import FOLDER_CURVES, WARMUP_STEPS, FolderPlan, stored
from benchmarks.stopping.rules import OTHERS, ask_at_every_check, first_of
from vidlit.metrics.paired_loss import HIGH_SIGMA, HIGH_SIGMA_WEIGHT
from vidlit.stopping.curves import without_jumps
from vidlit.stopping.schedule import TRAINING_EVALUATIONS, CheckSchedule, check_schedule

Array = NDArray[np.float64]
NEAR = 0.01  # of the gain: as good as the oracle
NO_GAIN = 0.01  # in log-ratio: with less to win a stop is right at any time, and regret is counted in shares of this
STILL_IMPROVING = 0.95  # of the run: a minimum after it is none yet
TURNED = 0.6  # of the run: a minimum before it leaves enough of a rise to see
WINDOW = 41  # checks of the local quadratic, a sixth of a run
METRICS = ("cost", "overshoot", "premature", "false", "missed", "regret")


def weighted(ratios: Array, sigmas: Array, high: float = HIGH_SIGMA_WEIGHT) -> Array:
    """Mean over noise levels, those above 0.7 with weight ``high``: (J, N, K) at (N, K) to (J, N)."""
    weights = np.where(sigmas > HIGH_SIGMA, high, 1.0)
    total = weights.sum(axis=-1)
    # At weight 0 a clip may have no level left: it is out of the mean over clips, too.
    return np.where(total > 0, (ratios * weights).sum(axis=-1) / np.where(total > 0, total, 1.0), np.nan)


def smoother(checks: int, window: int = WINDOW) -> Array:
    """The matrix (J, J) that fits a quadratic around each check and reads it there.

    It spans ``window`` checks, and fewer in the beginning, where curves fall fast: a third of those before, and as many
    after.
    """
    matrix = np.zeros((checks, checks))
    for j in range(checks):
        half = min(max(j // 3, 2), window // 2)
        first = max(min(j - half, checks - 2 * half - 1), 0)
        near = np.arange(first, min(first + 2 * half + 1, checks))
        powers = np.vander((near - j) / half, 3, increasing=True)
        matrix[j, near] = np.linalg.pinv(powers)[0]
    return matrix


@dataclass(frozen=True)
class ClipRun:
    """One stored run on real clips; J = 241 checks, step 0 first.

    Args:
        plan: what was trained.
        steps: of the checks (J,).
        val: log-ratios of each validation recording (J, V), as shipped.
        train_eval: of each scored training recording (J, M).
        oracle: mean log-ratio of the oracle's clips (J,), in the package's weights.
        arrays: everything that is stored.
    """

    plan: FolderPlan
    steps: NDArray[np.int64]
    val: Array
    train_eval: Array
    oracle: Array
    arrays: dict[str, Array]

    @property
    def trend(self) -> Array:
        """Smooth oracle (J,), 0 at step 0."""
        trend = smoother(len(self.steps)) @ self.oracle
        return np.where(self.steps == 0, 0.0, trend)

    @property
    def is_improving(self) -> bool:
        """Whether it still improves at its end."""
        return bool(self.trend.argmin() >= STILL_IMPROVING * (len(self.steps) - 1))

    @property
    def has_turned(self) -> bool:
        """Whether its end is well past its minimum."""
        return bool(self.trend.argmin() <= TURNED * (len(self.steps) - 1))


def read(path: Path = FOLDER_CURVES) -> list[ClipRun]:
    """All stored runs."""
    return [_run(arrays) for arrays in stored(path).values()]


def _run(arrays: dict[str, Any]) -> ClipRun:
    plan = FolderPlan(**json.loads(str(arrays["plan"])))
    numbers = {name: array.astype(np.float64) for name, array in arrays.items() if name != "plan"}
    checks = np.arange(len(numbers["val"]))
    for name in ("oracle", "oracle_loss"):  # scored at every second check: lines between them
        scored = np.linspace(0, checks[-1], len(numbers[name]))
        numbers[name] = np.apply_along_axis(lambda values, at=scored: np.interp(checks, at, values), 0, numbers[name])
    val, train_eval = (weighted(numbers[name], numbers[f"{name}_sigmas"]) for name in ("val", "train_eval"))
    weights = np.where(numbers["oracle_sigmas"] > HIGH_SIGMA, HIGH_SIGMA_WEIGHT, 1.0)
    oracle = numbers["oracle"] @ weights / weights.sum()
    return ClipRun(plan, checks * plan.every, val, train_eval, oracle, numbers)


@dataclass(frozen=True)
class Way:
    """When to check, and what stops.

    Args:
        sixteen: 16 checks of 8 + 8 clips at 4 levels, seen as they come, as before; else as shipped.
        rule: of :data:`benchmarks.stopping.rules.OTHERS`; ours by default.
    """

    sixteen: bool = False
    rule: str = ""

    def checks(self, run: ClipRun) -> tuple[NDArray[np.int64], float]:
        """Indices of the checks (J',), step 0 first, and the steps that one costs."""
        clips = run.val.shape[1] + run.train_eval.shape[1]
        evaluations = 64 if self.sixteen else 2 * clips
        schedule = (
            CheckSchedule(max(1, run.plan.steps // 16), doubles=False)
            if self.sixteen
            else check_schedule(run.plan.batch_size, evaluations)
        )
        nearest = np.round(np.array([0, *schedule.checks(run.plan.steps)]) / run.plan.every).astype(np.int64)
        return np.unique(nearest), evaluations / (TRAINING_EVALUATIONS * run.plan.batch_size)

    def stop(self, run: ClipRun, checks: NDArray[np.int64]) -> tuple[int, bool]:
        """Which of the checks it stops at, the last one where it does not; and whether it stops."""
        steps, val, train_eval = run.steps[checks], run.val[checks][None], run.train_eval[checks][None]
        if self.rule:
            stop = first_of(OTHERS[self.rule](steps, val.mean(axis=2)))
        else:
            stop = ask_at_every_check(steps, val, train_eval, warmup_steps=WARMUP_STEPS, condensed=not self.sixteen)
        return int(stop[0]), bool(stop[0] < len(checks) - 1)


WAYS = {
    "**as it ships**": Way(),
    "16 checks, as before": Way(sixteen=True),
    **{f"{rule} at the same checks": Way(rule=rule) for rule in OTHERS},
    "patience 5, 16 checks": Way(sixteen=True, rule="patience 5"),
}


def outcome(run: ClipRun, way: Way) -> dict[str, float]:
    """What one way does on one run."""
    checks, each = way.checks(run)
    stop, stopped = way.stop(run, checks)
    seen = run.val[checks[: stop + 1]]
    kept = int(checks[without_jumps(seen.mean(axis=1), seen).argmin()])
    end = int(run.steps[checks[stop]]) if stopped else run.plan.steps
    trend = run.trend
    gain, oracle = -float(trend.min()), max(1, int(run.steps[trend.argmin()]))
    found = {
        "checks": float(stop),
        "stop": float(end) if stopped else np.nan,
        "kept": float(run.steps[kept]),
        "oracle": float(oracle),
        "gain": gain,
        "regret": (float(run.oracle[kept]) + gain) / max(gain, NO_GAIN),
    }
    if run.is_improving:
        return {**found, "false": float(stopped)}
    if run.has_turned:
        found["cost"] = (end + each * (stop + 1)) / oracle
        found["overshoot"] = end / oracle - 1.0
        found["missed"] = float(not stopped)
    right_from = run.steps[(trend <= (1.0 - NEAR) * trend.min()).argmax()] if gain > NO_GAIN else 0
    return {**found, "premature": float(stopped and end < right_from)}


def table(runs: list[ClipRun]) -> list[str]:
    """Markdown: every way by kind of run, mean / worst run."""
    lines = ["| what stops | runs | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 2) + "|"]
    kinds: dict[str, Callable[[ClipRun], bool]] = {
        "all": lambda run: True,
        "scratch": lambda run: run.plan.rank == 0,
        "lora": lambda run: run.plan.rank > 0,
    }
    for name, way in WAYS.items():
        found = [outcome(run, way) for run in runs]
        for kind, belongs in kinds.items():
            rows = [row for run, row in zip(runs, found, strict=True) if belongs(run)]
            cells = [_mean_and_worst([row[metric] for row in rows if metric in row]) for metric in METRICS]
            lines.append(f"| {name} | {len(rows)} {kind} | " + " | ".join(cells) + " |")
    return lines


def run_table(runs: list[ClipRun], way: Way) -> list[str]:
    """Markdown: one way on every run."""
    lines = ["| run | steps | oracle | stop | kept | checks | gain | cost | regret | |", "|---" * 10 + "|"]
    for run in runs:
        found = outcome(run, way)
        words = [word for word in ("premature", "false", "missed") if found.get(word)]
        words += ["improving"] * run.is_improving + ["not turned"] * (not run.is_improving and not run.has_turned)
        cost = f"{found['cost']:.0%}" if "cost" in found else ""
        stop = "never" if np.isnan(found["stop"]) else f"{found['stop']:.0f}"
        lines.append(
            f"| {run.plan.name} | {run.plan.steps} | {found['oracle']:.0f} | {stop} | {found['kept']:.0f} "
            f"| {found['checks']:.0f} | {found['gain']:.3f} | {cost} | {found['regret']:.1%} | {', '.join(words)} |"
        )
    return lines


def _mean_and_worst(values: list[float]) -> str:
    return f"{np.mean(values):.1%} / {max(values):.0%}" if values else ""


def report(runs: list[ClipRun]) -> str:
    """The tables."""
    return "\n".join(
        [
            f"# Stopping on {len(runs)} runs on real clips",
            "",
            "Mean over runs / worst run; what the columns mean is said in `benchmarks/stopping/real_clips.py`.",
            "",
            *table(runs),
            "",
            "## As it ships, run by run (steps)",
            "",
            *run_table(runs, Way()),
            "",
        ]
    )
