"""``python -m benchmarks.stopping [--simulated | --real]``: the stop on simulated and real runs; tables and a plot.

``--runs`` simulated runs a cell, 20 unless said: three minutes; the stored table has 300, an hour. Real ones are read
from curves that are kept, in seconds, and made by ``python -m benchmarks.stopping.real --train``.
``--tune`` draws the runs on which the rule's numbers were chosen; without it, runs that it has never seen.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.stopping import real_measure, report, schedules

TUNE_SEED, TEST_SEED = 1, 2


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping", description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--simulated", action="store_true", help="the simulated runs alone")
    mode.add_argument("--real", action="store_true", help="the real runs alone")
    parser.add_argument("--runs", type=int, default=20, help="simulated runs a cell")
    parser.add_argument("--tune", action="store_true", help="the seeds on which the rule was tuned")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.real:
        simulated = run_simulated(args.runs, TUNE_SEED if args.tune else TEST_SEED)
        _write(args.out / f"simulated{'_tune' if args.tune else ''}", simulated, report.simulated_table(simulated))
    if not args.simulated:
        real = real_measure.measure_all()
        _write(args.out / "real", real, report.real_table(real))
        report.real_plot(*real_measure.shown(), args.out / "real.png")


def _write(path: Path, results: dict[str, object], table: str) -> None:
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)
    print(f"written to {path}.md and .json")


def run_simulated(runs: int, seed: int) -> dict[str, object]:
    """The rule at every way to check, and other rules; plain numbers, ready for JSON."""
    begun = time.perf_counter()
    found = schedules.measure_all(runs, seed)
    return {"runs_per_cell": runs, "seed": seed, "ways": found, "seconds": round(time.perf_counter() - begun, 1)}


if __name__ == "__main__":
    main()
