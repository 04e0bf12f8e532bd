"""``python -m benchmarks.stopping.strata``: would other weights of the noise levels make a better held-out curve?

On the stored real runs (``benchmarks.stopping.real``): the weights in use, even ones, and the inverse of each stratum's
own variance, over checks (how it jitters) or over clips. Reported by kind of run are

- regret: what the oracle loses at the check that the curve calls best, in per cent of the oracle's best gain;
- jitter / gain: noise between checks as a share of the gain;
- rise / jitter: the rise from the lowest check to the last, which the rule has to see.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.stopping.real import CURVES, stored
from vidlit.metrics.paired_loss import HIGH_SIGMA, HIGH_SIGMA_WEIGHT
from vidlit.stopping import curves


def weightings(val: np.ndarray, sigmas: np.ndarray) -> dict[str, np.ndarray]:
    """Weights (N, K) of each scheme for log-ratios (J, N, K) at sigmas (N, K)."""
    second = val[2:] - 2 * val[1:-1] + val[:-2]
    over_checks = second.var(axis=(0, 1)) / 6
    over_clips = val[len(val) // 2 :].mean(axis=0).var(axis=0)
    return {
        "in use": np.where(sigmas > HIGH_SIGMA, HIGH_SIGMA_WEIGHT, 1.0),
        "even": np.ones_like(sigmas),
        "1 / variance over checks": np.broadcast_to(1 / np.maximum(over_checks, 1e-9), sigmas.shape),
        "1 / variance over clips": np.broadcast_to(1 / np.maximum(over_clips, 1e-9), sigmas.shape),
    }


def measure(run: dict[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
    """Regret, jitter / gain and rise / jitter of one run under each scheme."""
    val = run["val"].astype(np.float64)
    oracle = run["oracle"].mean(axis=1).astype(np.float64)
    found = {}
    for name, weight in weightings(val, run["val_sigmas"]).items():
        curve = ((val * weight).sum(axis=2) / weight.sum(axis=1)).mean(axis=1)
        best, noise = int(curve.argmin()), float(curves.jitter(curve))
        regret = (oracle[best] - oracle.min()) / max(-oracle.min(), 1e-9)
        found[name] = (regret, noise / max(-curve.min(), 1e-9), (curve[-1] - curve.min()) / noise)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, default=CURVES, help="file of the stored runs")
    runs = stored(parser.parse_args().curves)
    print("| weights | runs | regret, mean / worst | jitter / gain, median | rise / jitter, median |")
    print("|---|---|---|---|---|")
    measured = {name: measure(run) for name, run in runs.items()}
    for scheme in next(iter(measured.values())):
        for kind in sorted({name.split("-")[0] for name in measured}):
            rows = np.array([found[scheme] for name, found in measured.items() if name.startswith(kind)])
            regret, noise, rise = 100 * rows[:, 0], 100 * np.median(rows[:, 1]), np.median(rows[:, 2])
            print(
                f"| {scheme} | {len(rows)} {kind} | {regret.mean():.2f} % / {regret.max():.1f} % | {noise:.1f} % "
                f"| {rise:.0f} |"
            )


if __name__ == "__main__":
    main()
