"""``python -m benchmarks.audits``: train runs that copy, collapse or do neither; print what was true and what was said.

    python -m benchmarks.audits --stored                           # the table of the stored runs: seconds, no training
    python -m benchmarks.audits --kinds copying honest --seeds 1   # trains procedural runs: about a minute each
    python -m benchmarks.audits --source FOLDER --kinds "copying, still"   # real clips: videos and a metadata.csv

The table is always what the signals as they ship say of what the runs' audits saw. Thresholds are chosen on runs of
even seeds and reported on those of odd ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.audits.table import run_line, summary_table

STORED = Path(__file__).parent / "results" / "runs.json"
TABLE = STORED.with_name("table.md")


def main(words: list[str] | None = None) -> None:
    """Train, or read what is stored; print a line for each run and the table."""
    options = _parse(words)
    rows = json.loads(STORED.read_text()) if options.stored else _train(options)
    print(summary_table(rows))


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", action="store_true", help="print the table of the stored runs, train none")
    parser.add_argument("--kinds", nargs="+", help="see benchmarks/audits/runs.py; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--source", type=Path, help="folder of real clips; procedural ones by default")
    parser.add_argument("--folder", type=Path, help="where to keep bases, clips and runs, with their samples")
    parser.add_argument("--out", type=Path, help="JSON file that the runs are added to")
    return parser.parse_args(words)


def _train(options: argparse.Namespace) -> list[dict[str, Any]]:
    from benchmarks.audits.runs import KINDS, run

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            for kind in options.kinds or KINDS:
                rows.append(run(kind, seed, options.source, options.folder or Path(temporary)))
                print(run_line(rows[-1]), flush=True)
                if options.out is not None:
                    before = json.loads(options.out.read_text()) if options.out.is_file() else []
                    options.out.write_text(_dump([*before, rows[-1]]))
    return rows


def _dump(rows: list[dict[str, Any]]) -> str:
    """JSON with a line for each run."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


if __name__ == "__main__":
    main()
