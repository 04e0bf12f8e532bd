"""``python -m benchmarks.stopping.real --train``: trains the real runs that lack in ``results/real_curves.npz``.

About an hour on one core for all of them; interrupted, it goes on with the run it was at. The curves stay in the
repository, so that ``python -m benchmarks.stopping`` compares rules on them in seconds.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.stopping.training import Plan, World, train

CURVES = Path(__file__).parent / "results" / "real_curves.npz"
# Steps and spacing by number of clips, and how much longer by learning rate: slower rates turn later in small sets.
LENGTHS = {8: (160, 4), 32: (480, 12), 128: (1280, 32)}
RATES = {3e-3: 1.0, 1.5e-3: 1.0, 7e-4: 1.5}


def plans() -> list[Plan]:
    """Every run, in the order in which they are trained."""

    def clips(seed: int, *sizes: int) -> list[Plan]:
        longer = {(n, lr): 1.0 if n == 128 else RATES[lr] for n in sizes for lr in RATES}
        return [
            Plan("clips", n, lr, seed, round(LENGTHS[n][0] * by), round(LENGTHS[n][1] * by))
            for (n, lr), by in longer.items()
        ]

    def fresh(seed: int) -> list[Plan]:
        return [Plan("fresh", 0, lr, seed, 480, 16) for lr in RATES]

    tuned = [Plan("tuned", n, lr, 0, 300, 10) for n in (8, 32) for lr in (1e-3, 3e-4, 1e-4)]
    return [
        *clips(0, 8, 32, 128),
        *fresh(0),
        *tuned,
        *clips(1, 8, 32),
        *clips(2, 8, 32),
        *fresh(1),
        *clips(1, 128),
        *clips(2, 128),
    ]


def stored(path: Path = CURVES) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of each run by its name."""
    runs: dict[str, dict[str, np.ndarray]] = {}
    if path.is_file():
        with np.load(path) as file:
            for key in file.files:
                run, name = key.split("/")
                runs.setdefault(run, {})[name] = file[key]
    return runs


def store(runs: dict[str, dict[str, np.ndarray]], path: Path = CURVES) -> None:
    """Writes all runs to one file, at once or not at all."""
    unfinished = path.with_name(f"unfinished_{path.name}")
    np.savez_compressed(
        unfinished, **{f"{run}/{name}": a for run, arrays in runs.items() for name, a in arrays.items()}
    )
    unfinished.replace(path)


def main() -> None:
    """Trains what lacks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping.real", description=__doc__)
    parser.add_argument("--train", action="store_true", required=True)
    parser.add_argument("--only", help="runs whose name begins like this")
    parser.add_argument(
        "--work", type=Path, default=Path("build/stopping"), help="encoded clips and bases are kept here"
    )
    parser.add_argument("--out", type=Path, default=CURVES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    runs = stored(args.out)
    missing = [plan for plan in plans() if plan.name not in runs and plan.name.startswith(args.only or "")]
    for count, plan in enumerate(missing):
        begun, used = time.perf_counter(), time.process_time()
        runs[plan.name] = train(World(args.work), plan) | {
            "plan": np.array([plan.steps, plan.every, plan.videos]),
        }
        store(runs, args.out)
        curve = runs[plan.name]["oracle"].mean(1)
        print(
            f"{count + 1}/{len(missing)} {plan.name}: oracle lowest {curve.min():+.4f} at check {curve.argmin()} of "
            f"{len(curve) - 1}, last {curve[-1]:+.4f}; {time.perf_counter() - begun:.0f} s, "
            f"{time.process_time() - used:.0f} s of CPU",
            flush=True,
        )


if __name__ == "__main__":
    main()
