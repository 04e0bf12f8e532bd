"""The quickstart over several seeds and sizes: does it show the turn, and what does it cost?

    python benchmarks/quickstart.py                      # five seeds
    python benchmarks/quickstart.py --videos 16 32 64 --seeds 0   # more demo videos train longer before the stop
    python benchmarks/quickstart.py --seeds 0 --picture docs/images/quickstart.png

Prints one row a run. `train_eval falls` says whether the training subset's loss still fell over the last half of the
run, `peak GB` is the largest resident size of the process, encoding and its decoding children not added up.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from matplotlib.figure import Figure

from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_names import TRAIN_EVAL_LOG_RATIO, VAL_LOG_RATIO
from vidlit.runs.record import RunRecord

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def run(folder: Path, videos: int, seed: int, max_steps: int) -> tuple[RunDirectory, dict[str, object]]:
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
    directory = RunDirectory(folder / "runs" / name / "0")
    summary = directory.read_summary()
    train_eval = RunRecord(directory.path).curve(TRAIN_EVAL_LOG_RATIO.name).values
    half = len(train_eval) // 2
    return directory, {
        "videos": videos,
        "seed": seed,
        "best step": summary["best_step"],
        "stop step": summary["stop_step"],
        "planned": summary["planned_steps"],
        "stopped by": summary["stopped_by"],
        "validation loss at best": VAL_LOG_RATIO.text(-summary["gain"]),
        "exposures at best": f"{summary['exposures_at_best']['mean']:.0f}",
        "train_eval falls": "yes" if train_eval[half:].mean() < train_eval[:half].mean() else "NO",
        "seconds": f"{time.monotonic() - began:.0f}",
        "peak GB": f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6:.1f}",
    }


def draw(directory: RunDirectory, path: Path) -> None:
    """The run's curves with its decision marked."""
    run, summary = RunRecord(directory.path), directory.read_summary()
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for row, colour in ((VAL_LOG_RATIO, "#c2410c"), (TRAIN_EVAL_LOG_RATIO, "#1d4ed8")):
        curve = run.curve(row.name)
        axes.plot(curve.steps, row.shown(curve.values), color=colour, label=row.title)
    for step, text in ((summary["kept_step"], "kept"), (summary["stop_step"], "stopped")):
        axes.axvline(step, color="0.45", linestyle=":", linewidth=1)
        axes.annotate(
            f"{text}: step {step}", (step, 0), (4, -4), textcoords="offset points", rotation=90, ha="left", va="top"
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set(xlabel="step", ylabel="loss against the base model (%)", xlim=(0, 1.06 * summary["stop_step"]))
    axes.legend(frameon=False, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Run all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--videos", type=int, nargs="+", default=[16], help="source videos, half of them held out")
    parser.add_argument("--max-steps", type=int, default=1200)
    parser.add_argument("--picture", type=Path, help="file to draw the first run's curves to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        header = False
        for videos in arguments.videos:
            for seed in arguments.seeds:
                directory, row = run(Path(folder), videos, seed, arguments.max_steps)
                if not header:
                    if arguments.picture:
                        draw(directory, arguments.picture)
                    print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
                    header = True
                print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
