"""What each rule did in each cell: premature and false stops, regret, overshoot, steps saved.

- premature: stopped before it was right (share of runs; scenarios in which a stop is right at some time, and double
  descent);
- false: stopped where every stop is wrong (share of runs; scenarios that improve to the end or lie flat with the
  probe);
- regret: what the restored weights lose against the lowest point of the noise-free curve, as a share of the gain, never
  below zero for a run; measured on clips that no rule sees (they share the common jitter, since the weights do);
- overshoot: (stop - oracle) / oracle, of all runs of a cell, those never stopped counted at their end; ``late`` is the
  mean overshoot less the mean of what is allowed, 60 % plus ten checks: above zero the target is missed;
- saved: share of the planned steps that were not trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.stopping.curves import SCENARIOS, SHOWN_ONLY, Runs
from benchmarks.stopping.rules import Stops

Array = NDArray[np.float64]

WITH_ORACLE = ("overfit", "slow overfit", "early hump", "heavy tails, overfit")
NEVER_RIGHT = (
    "still improving",
    "heavy tails, improving",
    "plateau, probe flat",
    "learning-rate bend",
    "nothing to learn",
)
METRICS = ("premature", "false", "regret", "overshoot", "late", "missed", "saved")
Cell = tuple[str, int, float]


@dataclass(frozen=True)
class Outcome:
    """One rule in one cell: per run (R,), by metric; a metric that has no meaning in the scenario is left out."""

    values: dict[str, Array]


def measure(scenario: str, runs: Runs, stops: Stops) -> Outcome:
    """Per-run numbers of one rule in one cell."""
    stop, restored = stops
    checks = runs.val.shape[1] - 1
    stopped = stop < checks
    every = np.arange(len(stop))
    values: dict[str, Array] = {"saved": 1.0 - stop / checks}
    if scenario in NEVER_RIGHT:
        values["false"] = stopped.astype(float)
    else:
        values["premature"] = (stopped & (stop < runs.right_from)).astype(float)
        if "double descent" not in scenario:
            values["missed"] = (~stopped).astype(float)
    if scenario in WITH_ORACLE:
        oracle = np.maximum(runs.oracle, 1)
        values["overshoot"] = (stop - oracle) / oracle
        values["late"] = values["overshoot"] - 0.6 - 10.0 / oracle
    if scenario not in ("no gain", "nothing to learn"):
        lowest = runs.truth.min(axis=1)
        values["regret"] = np.maximum(runs.population[every, restored] - lowest, 0.0) / -lowest
    return Outcome(values)


def summarise(outcomes: dict[Cell, Outcome], bootstrap: int = 1000) -> dict[str, dict[str, object]]:
    """Mean over all cells and worst cell of each metric, with 95 % bootstrap intervals over runs.

    Only the scenarios that the targets speak of count; overshoot is worst where ``late`` is.
    """
    rng = np.random.default_rng(0)
    summary: dict[str, dict[str, object]] = {}
    for metric in METRICS:
        cells = {
            cell: outcome.values[metric]
            for cell, outcome in outcomes.items()
            if cell[0] not in SHOWN_ONLY and metric in outcome.values
        }
        if not cells:
            continue
        draws = {cell: _resampled_means(values, bootstrap, rng) for cell, values in cells.items()}
        sign = -1.0 if metric == "saved" else 1.0
        worst = max(cells, key=lambda cell: sign * cells[cell].mean())
        summary[metric] = {
            "mean": float(np.mean([values.mean() for values in cells.values()])),
            "mean_interval": _interval(np.mean(list(draws.values()), axis=0)),
            "worst": float(cells[worst].mean()),
            "worst_interval": _interval(draws[worst]),
            "worst_cell": f"{worst[0]}, {worst[1]} checks, jitter {worst[2]:g}",
        }
    return summary


def without(outcomes: dict[Cell, Outcome], *scenarios: str) -> dict[Cell, Outcome]:
    """The outcomes of all other scenarios."""
    return {cell: outcome for cell, outcome in outcomes.items() if cell[0] not in scenarios}


def by_scenario(outcomes: dict[Cell, Outcome]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean over runs of every metric in every cell, as scenario -> "checks/jitter" -> metric."""
    table: dict[str, dict[str, dict[str, float]]] = {name: {} for name in SCENARIOS}
    for (scenario, checks, jitter), outcome in outcomes.items():
        table[scenario][f"{checks}/{jitter:g}"] = {k: float(v.mean()) for k, v in outcome.values.items()}
    return {name: cells for name, cells in table.items() if cells}


def premature_and_overshoot(outcomes: dict[Cell, Outcome], leave_out: tuple[str, ...] = ()) -> tuple[float, float]:
    """Mean premature stops and mean overshoot over all cells that have them, for comparing rules at equal overshoot."""
    kept = [outcome.values for cell, outcome in outcomes.items() if cell[0] not in (*SHOWN_ONLY, *leave_out)]
    premature = np.mean([values["premature"].mean() for values in kept if "premature" in values])
    overshoot = np.mean([values["overshoot"].mean() for values in kept if "overshoot" in values])
    return float(premature), float(overshoot)


def _resampled_means(values: Array, times: int, rng: np.random.Generator) -> Array:
    means: Array = values[rng.integers(0, len(values), (times, len(values)))].mean(axis=1)
    return means


def _interval(draws: Array) -> list[float]:
    return [float(bound) for bound in np.percentile(draws, [2.5, 97.5])]
