"""``python -m benchmarks.stopping --quick|--schedule|--full``: the stop on simulated and real runs; tables and plots.

Quick: the schedule that ships and what came before, 20 runs a cell, and the real runs: two minutes. ``--schedule``
draws 100 runs a cell, and nothing else. Full: these and every rule at three constant spacings of checks, 500 runs a
cell, and the runs with few source videos. ``--real`` leaves the simulated runs out: seconds. Real ones are made by
``python -m benchmarks.stopping.real --train``.
``--tune`` draws the runs on which the rule's numbers were chosen; without it, runs that it has never seen.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stopping import real_measure, report, schedules
from benchmarks.stopping.curves import CHECKS, JITTERS, SCENARIOS, simulate
from benchmarks.stopping.measure import (
    WITH_ORACLE,
    Cell,
    Outcome,
    by_scenario,
    measure,
    premature_and_overshoot,
    summarise,
    without,
)
from benchmarks.stopping.rules import RULES, divergence, patience
from vidlit.stopping.rule import DivergenceSettings

TUNE_SEED, TEST_SEED = 1, 2
PATIENCES = (2, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80)  # for patience at equal overshoot
OURS = "vidlit divergence"
AMBIGUOUS = ("double descent",)  # see curves.py; reported with and without
DEEP = "deep double descent"
PLATEAU = "plateau, probe falls"
PLATEAU_SHARES, NOISY = (0.25, 0.35, 0.42, 0.49), (0.03, 0.08)  # for the trade-off


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping", description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="20 runs a cell at the schedule that ships (the default)")
    mode.add_argument("--schedule", action="store_true", help="100 runs a cell, nothing else")
    mode.add_argument("--full", action="store_true", help="the same, then every rule, 500 runs a cell")
    mode.add_argument("--real", action="store_true", help="the real runs alone")
    parser.add_argument("--runs", type=int, help="runs a cell at the schedule that ships, instead")
    parser.add_argument("--tune", action="store_true", help="the seeds on which the rule was tuned")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    seed, tuned = (TUNE_SEED, "_tune") if args.tune else (TEST_SEED, "")
    if not args.real:
        at_schedules = run_schedules(args.runs or (100 if args.full or args.schedule else 20), seed)
        name = f"schedule{'' if args.full or args.schedule else '_quick'}{tuned}"
        _write(args.out / name, at_schedules, report.schedule_table(at_schedules))
    if args.full:
        results = run(runs=500, seed=seed)
        _write(args.out / f"simulated_full{tuned}", results, report.table(results))
        report.plot(results, args.out / f"simulated_full{tuned}.png")
    if not args.schedule:
        real = real_measure.measure_all()
        _write(args.out / "real", real, report.real_table(real))
        report.real_plot(*real_measure.shown(), args.out / "real.png")


def _write(path: Path, results: dict[str, object], table: str) -> None:
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)
    print(f"written to {path}.md and .json")


def run_schedules(runs: int, seed: int) -> dict[str, object]:
    """The rule at every way to check; plain numbers, ready for JSON."""
    begun = time.perf_counter()
    found = schedules.measure_all(runs, seed)
    return {"runs_per_cell": runs, "seed": seed, "ways": found, "seconds": round(time.perf_counter() - begun, 1)}


def run(runs: int, seed: int) -> dict[str, object]:
    """Every rule in every cell of constant spacing; plain numbers, ready for JSON."""
    begun = time.perf_counter()
    outcomes: dict[str, dict[Cell, Outcome]] = {name: {} for name in RULES}
    ladder: dict[int, dict[Cell, Outcome]] = {p: {} for p in PATIENCES}
    for scenario in SCENARIOS:
        for checks in CHECKS:
            for jitter in JITTERS:
                drawn = simulate(scenario, checks, jitter, runs, seed)
                for name, rule in RULES.items():
                    outcomes[name][scenario, checks, jitter] = measure(scenario, drawn, rule(drawn))
                for p in PATIENCES:
                    outcome = measure(scenario, drawn, patience(drawn, p, fresh=False))
                    ladder[p][scenario, checks, jitter] = outcome
    return {
        "runs_per_cell": runs,
        "seed": seed,
        "summary": {name: summarise(found) for name, found in outcomes.items()},
        "summary_without_double_descent": {
            name: summarise(without(found, *AMBIGUOUS)) for name, found in outcomes.items()
        },
        "cells": by_scenario(outcomes[OURS]),
        "equal_overshoot": _equal_overshoot(outcomes[OURS], ladder, ()),
        "equal_overshoot_without_double_descent": _equal_overshoot(outcomes[OURS], ladder, AMBIGUOUS),
        "few_videos": _few_videos(runs, seed),
        "trade_off": _trade_off(min(runs, 100), seed),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _equal_overshoot(
    ours: dict[Cell, Outcome], ladder: dict[int, dict[Cell, Outcome]], leave_out: tuple[str, ...]
) -> dict[str, float]:
    """Premature stops of paired patience where it overshoots as much as the rule does, between two patiences."""
    premature, overshoot = premature_and_overshoot(ours, leave_out)
    points = sorted(premature_and_overshoot(found, leave_out)[::-1] for found in ladder.values())
    at_equal = float(np.interp(overshoot, [x for x, _ in points], [y for _, y in points]))
    return {"overshoot": overshoot, "premature": premature, "patience_premature": at_equal}


def _trade_off(runs: int, seed: int) -> dict[str, dict[str, float]]:
    """What a longer plateau window buys in double descent and what it costs elsewhere (240 checks, the hardest)."""
    table: dict[str, dict[str, float]] = {}
    scenarios = (*WITH_ORACLE, PLATEAU, *AMBIGUOUS, DEEP)
    cells = {
        (scenario, jitter): simulate(scenario, 240, jitter, runs, seed) for scenario in scenarios for jitter in NOISY
    }
    for share in PLATEAU_SHARES:
        settings = DivergenceSettings(plateau_share=share)
        found = {cell: measure(cell[0], drawn, divergence(drawn, settings)).values for cell, drawn in cells.items()}

        def of(metric: str, *names: str, found: dict[tuple[str, float], dict[str, Any]] = found) -> list[float]:
            return [float(values[metric].mean()) for cell, values in found.items() if cell[0] in names]

        table[f"{share:g}"] = {
            "overshoot": float(np.mean(of("overshoot", *WITH_ORACLE))),
            "late": max(of("late", *WITH_ORACLE)),
            "missed": float(np.mean(of("missed", PLATEAU))),
            "double descent": max(of("premature", *AMBIGUOUS)),
            DEEP: max(of("premature", DEEP)),
        }
    return table


def _few_videos(runs: int, seed: int) -> dict[str, dict[str, float]]:
    """The rule alone with fewer held-out source videos than the other cells' twelve."""
    table: dict[str, dict[str, float]] = {}
    for videos in (1, 2, 4, 8):
        for scenario in ("overfit", "still improving", "plateau, probe flat"):
            drawn = simulate(scenario, 24, 0.03, runs, seed, videos=videos)
            outcome = measure(scenario, drawn, divergence(drawn))
            table[f"{videos} videos, {scenario}"] = {k: float(v.mean()) for k, v in outcome.values.items()}
    return table


if __name__ == "__main__":
    main()
