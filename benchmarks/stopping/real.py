"""``python -m benchmarks.stopping.real --train``: trains the real runs that lack in ``results/real_curves.npz``.

About an hour on one core for all of them; interrupted, it goes on with the run it was at. The curves stay in the
repository, so that ``python -m benchmarks.stopping`` compares rules on them in seconds.

``--source FOLDER`` trains the runs on real clips instead, into ``results/real_clip_curves.npz``: from a folder of 75
recordings or more with captions and, where files share a recording, groups. Nothing of the folder but the curves is
kept.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.stopping.folder_clips import FolderClips
from benchmarks.stopping.real_runs import CURVES, FOLDER_CURVES, folder_plans, plans, store, stored
from benchmarks.stopping.training import World, train


def main() -> None:
    """Trains what lacks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping.real", description=__doc__)
    parser.add_argument("--train", action="store_true", required=True)
    parser.add_argument("--source", type=Path, help="folder of real clips to train on")
    parser.add_argument("--only", help="runs whose name begins like this")
    parser.add_argument(
        "--work", type=Path, default=Path("build/stopping"), help="encoded clips and bases are kept here"
    )
    parser.add_argument("--out", type=Path, help="file of the curves, by default the repository's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.source:
        work, out = args.work / "folder", args.out or FOLDER_CURVES
        source, wanted = FolderClips(args.source, work), folder_plans()
    else:
        work, out = args.work, args.out or CURVES
        source, wanted = World(work), plans()
    work.mkdir(parents=True, exist_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    runs = stored(out)
    missing = [plan for plan in wanted if plan.name not in runs and plan.name.startswith(args.only or "")]
    for count, plan in enumerate(missing):
        begun, used = time.perf_counter(), time.process_time()
        runs[plan.name] = train(source, plan)
        store(runs, out)
        curve = runs[plan.name]["oracle"].astype(np.float64).mean(1)
        print(
            f"{count + 1}/{len(missing)} {plan.name}: oracle lowest {curve.min():+.4f} at check {curve.argmin()} of "
            f"{len(curve) - 1}, last {curve[-1]:+.4f}; {time.perf_counter() - begun:.0f} s, "
            f"{time.process_time() - used:.0f} s of CPU",
            flush=True,
        )


if __name__ == "__main__":
    main()
