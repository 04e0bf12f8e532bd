"""How large the page of a long run is, and what it costs to make it, once and again when something has changed.

    python -m benchmarks.page runs/quickstart/0

The run is copied and made long: each of its logged names at 2,000 checks, 500 clips.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import tempfile
import time
from pathlib import Path

from vidlit.report import write_report
from vidlit.report.live import WatchedRuns
from vidlit.runs.directory import RunDirectory

CHECKS, CLIPS = 2_000, 500


def lengthen(run: RunDirectory, checks: int = CHECKS, clips: int = CLIPS) -> None:
    """Write so many checks and clips into a run directory, like those that it has."""
    with run.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    filled = {name: next((row[name] for row in reversed(rows) if row[name]), "") for name in columns}
    numbers = [float(filled[name] or "nan") for name in columns]
    with run.metrics.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for check in range(checks):
            # As many digits as a real number has, and no two alike.
            wave = [repr(number * (1 + 0.3 * ((check * 7919) % 1009) / 1009)) for number in numbers]
            writer.writerow([str(4 * check) if name == "step" else wave[k] for k, name in enumerate(columns)])
    decision = run.read_decisions()[-1]
    run.decisions.write_text("".join(json.dumps({**decision, "step": 4 * check}) + "\n" for check in range(checks)))
    head, *lines = run.dataset.read_text().splitlines()
    run.dataset.write_text("\n".join([head, *(lines[number % len(lines)] for number in range(clips))]) + "\n")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "runs" / "long" / "0")
        shutil.copytree(options.run, run.path, ignore=shutil.ignore_patterns("*.ckpt", "weights"))
        lengthen(run)
        began = time.process_time()
        size = write_report([run.path]).stat().st_size
        made = time.process_time() - began
        page = WatchedRuns(run.path).page("0")
        version, _ = page.now()
        began, sent, asked = time.process_time(), 0, 5
        with run.metrics.open(newline="") as file:
            *_, last = csv.DictReader(file)
        for number in range(asked):
            with run.metrics.open("a", newline="") as file:
                new = {name: repr(float(value) * (1 + 0.01 * number)) for name, value in last.items()}
                csv.DictWriter(file, list(last)).writerow(new | {"step": str(4 * (CHECKS + number))})
            update = page.since(version)
            version, sent = update["version"], sent + len(json.dumps(update))
        again = (time.process_time() - began) / asked
        began = time.process_time()
        for _ in range(100):
            page.since(version)
        idle = (time.process_time() - began) / 100
    print(f"{CHECKS:,} checks and {CLIPS} clips")
    print(f"  report.html: {size / 1e6:.2f} MB, made in {made:.2f} CPU s")
    changed = f"{again:.2f} CPU s and {sent / asked / 1e6:.2f} MB (before it is packed) a change"
    print(f"  live: {changed}, {1e3 * idle:.1f} CPU ms to say that nothing did")


if __name__ == "__main__":
    main()
