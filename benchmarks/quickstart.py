"""The quickstart over several seeds and sizes: does it show the turn, and what does it cost?

    python benchmarks/quickstart.py                      # five seeds
    python benchmarks/quickstart.py --videos 16 32 64 --seeds 0   # more demo videos train longer before the stop

Prints one row a run. `probe falls` says whether the train probe's log-ratio still fell over the last half of the run,
`peak GB` is the largest resident size of the process, encoding and its decoding children not added up.
"""

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def run(folder: Path, videos: int, seed: int, max_steps: int) -> dict[str, object]:
    """Fit once in a process of its own and say how it went."""
    name = f"videos{videos}_seed{seed}"
    options = [f"--demo.num_videos={videos}", f"--seed_everything={seed}", f"--run.name={name}"]
    options.append(f"--trainer.max_steps={max_steps}")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "vidlit", "fit", "--config", str(CONFIG), *options],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    directory = folder / "runs" / name / "0"
    summary = json.loads((directory / "summary.json").read_text())
    with (directory / "metrics.csv").open() as file:
        probe = [float(row["probe/log_ratio"]) for row in csv.DictReader(file) if row.get("probe/log_ratio")]
    half = len(probe) // 2
    return {
        "videos": videos,
        "seed": seed,
        "best step": summary["best_step"],
        "stop step": summary["stop_step"],
        "planned": summary["planned_steps"],
        "stopped by": summary["stopped_by"],
        "held-out loss at best": f"{100 * (pow(2.718281828, -summary['gain']) - 1):+.1f} %",
        "exposures at best": f"{summary['exposures_at_best']['mean']:.0f}",
        "probe falls": "yes" if statistics.mean(probe[half:]) < statistics.mean(probe[:half]) else "NO",
        "seconds": f"{time.monotonic() - began:.0f}",
        "peak GB": f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6:.1f}",
    }


def main() -> None:
    """Run all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--videos", type=int, nargs="+", default=[16], help="source videos, half of them held out")
    parser.add_argument("--max-steps", type=int, default=1200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        header = False
        for videos in arguments.videos:
            for seed in arguments.seeds:
                row = run(Path(folder), videos, seed, arguments.max_steps)
                if not header:
                    print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
                    header = True
                print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
