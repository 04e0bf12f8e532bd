"""``python -m benchmarks.stopping [--simulated | --real | --constants]``: the stop, measured; tables and a plot.

``--simulated``: ``--runs`` a cell, 20 unless said; the stored table has 300, a quarter of an hour. ``--real``: from
curves that are kept, on procedural and on real clips, in half a minute; they are made by ``python -m
benchmarks.stopping.real --train``. Both by default. ``--constants``: what other values of the rule's constants would
do, on the runs on which they were chosen; all else is told of runs that the rule has never seen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.stopping import jitter, real_clips, real_measure, report, schedules

TUNE_SEED, TEST_SEED = 1, 2
PLOT = Path(__file__).parents[2] / "docs" / "images" / "real_runs.png"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping", description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--simulated", action="store_true", help="the simulated runs alone")
    mode.add_argument("--real", action="store_true", help="the real runs alone")
    mode.add_argument("--constants", action="store_true", help="other values of the rule's constants")
    parser.add_argument("--runs", type=int, default=20, help="simulated runs a cell")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.constants:
        found = simulated(args.runs, TUNE_SEED, constants=schedules.measure_constants)
        _write(args.out / "constants.md", report.constants_table(found))
        return
    if not args.real:
        found = simulated(args.runs, TEST_SEED, ways=schedules.measure_all, shown=schedules.measure_shown)
        _write(args.out / "simulated.md", report.simulated_table(found))
    if not args.simulated:
        _write(args.out / "real.md", report.real_table(real_measure.measure_all()))
        report.real_plot(*real_measure.shown(), PLOT)
        runs = real_clips.read()
        _write(args.out / "real_clips.md", real_clips.report(runs))
        _write(args.out / "jitter.md", jitter.report(runs))


def simulated(runs: int, seed: int, **measures: Callable[[int, int], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, by name."""
    begun = time.perf_counter()
    found = {name: measure(runs, seed) for name, measure in measures.items()}
    return {"runs_per_cell": runs, "seed": seed, **found, "seconds": round(time.perf_counter() - begun, 1)}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
