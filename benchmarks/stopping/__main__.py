"""``python -m benchmarks.stopping --quick|--full``: every rule on the simulated runs; writes a table and a plot.

Quick: 60 runs a cell, under a minute. Full: 500 runs a cell and the runs with few source videos, under eight minutes.
``--tune`` draws the runs on which the rule's numbers were chosen; without it, runs that it has never seen.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.stopping import report
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
CONFIRMS = (0.25, 0.55, 1.0, 2.0, 4.0)  # for the trade-off


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping", description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="60 runs a cell (the default)")
    mode.add_argument("--full", action="store_true", help="500 runs a cell")
    parser.add_argument("--tune", action="store_true", help="the seeds on which the rule was tuned")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    results = run(runs=500 if args.full else 60, seed=TUNE_SEED if args.tune else TEST_SEED, few_videos=args.full)
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"simulated_{'full' if args.full else 'quick'}{'_tune' if args.tune else ''}"
    (args.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = report.table(results)
    (args.out / f"{name}.md").write_text(table, encoding="utf-8")
    report.plot(results, args.out / f"{name}.png")
    print(table)
    print(f"written to {args.out}/{name}.md, .json and .png")


def run(runs: int, seed: int, few_videos: bool) -> dict[str, object]:
    """Every rule in every cell; plain numbers, ready for JSON."""
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
        "few_videos": _few_videos(runs, seed) if few_videos else {},
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
    """What longer confirmation buys in double descent, and what it costs where the rise lasts (jitter 0.03)."""
    table: dict[str, dict[str, float]] = {}
    cells = [(scenario, checks) for scenario in (*WITH_ORACLE, "double descent", DEEP) for checks in (80, 240)]
    drawn = {cell: simulate(cell[0], cell[1], 0.03, runs, seed) for cell in cells}
    for confirm in CONFIRMS:
        settings = DivergenceSettings(confirm=confirm)
        found = {cell: measure(cell[0], drawn[cell], divergence(drawn[cell], settings)).values for cell in cells}
        table[f"{confirm:g}"] = {
            "overshoot": float(np.mean([found[cell]["overshoot"].mean() for cell in cells if cell[0] in WITH_ORACLE])),
            "late": float(max(found[cell]["late"].mean() for cell in cells if cell[0] in WITH_ORACLE)),
            **{
                name: float(max(found[name, checks]["premature"].mean() for checks in (80, 240)))
                for name in ("double descent", DEEP)
            },
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
