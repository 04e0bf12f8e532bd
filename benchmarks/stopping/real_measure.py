"""Every rule on the stored real runs: what it would have stopped, when, and what it would have kept.

The oracle of a run is the lowest point of its oracle clips' curve, on 256 source videos that no rule sees. That curve
is measured, not known: it jitters as the weights do. So a stop is right from the first check on that comes within 1 %
of the gain of the oracle (where that gain is under 1 % of the loss, at any time). ``fresh`` runs never see a clip twice
and must never be stopped. Runs are also judged at half their checks, which is another spacing, and with 8 and 4 of
their 16 held-out source videos.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.stopping.real_runs import BATCH_SIZE, VAL_TAKES, WARMUP_STEPS, Plan, plans, stored
from benchmarks.stopping.rules import RULES, Runs, Stops
from vidlit.metrics.paired_loss import log_ratio

Array = NDArray[np.float64]
NEAR = 0.01  # of the gain: as good as the oracle
NO_GAIN = 0.01  # in log-ratio: with less to win, regret is counted in shares of this, and a stop is right at any time
EXPOSURES = (10, 20, 50, 100)
VARIANTS = {  # every n-th check, held-out source videos
    "every check": (1, 16),
    "every second check": (2, 16),
    "8 held-out videos": (1, 8),
    "4 held-out videos": (1, 4),
}
METRICS = ("premature", "false", "regret", "overshoot", "late", "missed", "saved")


@dataclass(frozen=True)
class Curves:
    """One stored run as rules see it, and what they do not see."""

    plan: Plan
    runs: Runs  # one run
    steps: NDArray[np.int64]

    def exposures(self) -> Array:
        """Mean exposures of each training video at each check."""
        return self.steps * BATCH_SIZE / self.plan.videos


def read(every: int = 1, videos: int = 16) -> list[Curves]:
    """The stored runs, at every n-th check and with some of the held-out videos."""
    arrays, found = stored(), []
    for plan in plans():
        if plan.name in arrays:
            found.append(_curves(plan, arrays[plan.name], every, videos))
    return found


def _curves(plan: Plan, arrays: dict[str, Array], every: int, videos: int) -> Curves:
    sigmas, start = torch.from_numpy(arrays["val_sigmas"]), torch.from_numpy(arrays["val_start"])
    losses = torch.from_numpy(arrays["val"].astype(np.float32)).exp() * start
    clips = torch.stack([log_ratio(row, start, sigmas) for row in losses]).double().numpy()[::every]
    by_video = clips.reshape(len(clips), -1, VAL_TAKES).mean(axis=2)[:, :videos]
    # Takes of one video stand side by side; a fresh run's clips are all of different videos.
    probe = arrays["probe"].astype(np.float64)[::every]
    of_a_video = 1 if plan.kind == "fresh" else probe.shape[1] // plan.videos
    probe_by_video = probe.reshape(len(probe), -1, max(1, of_a_video)).mean(axis=2)
    truth = arrays["oracle"].astype(np.float64).mean(axis=1)[::every]
    steps = np.arange(0, plan.steps + 1, plan.every)[::every]
    right_from = int((truth <= (1.0 - NEAR) * truth.min()).argmax()) if -truth.min() > NO_GAIN else 0
    checks = len(truth) - 1
    runs = Runs(
        val=by_video.mean(axis=1)[None],
        probe=probe.mean(axis=1)[None],
        val_by_video=by_video[None],
        probe_by_video=probe_by_video[None],
        truth=truth[None],
        oracle=np.array([truth.argmin()]),
        right_from=np.array([checks + 1 if plan.kind == "fresh" else right_from]),
        fresh=arrays["fresh"].astype(np.float64)[None, ::every],
        warmup_checks=math.ceil(WARMUP_STEPS / (plan.every * every)),
    )
    return Curves(plan, runs, steps)


def fixed_exposures(curves: Curves, exposures: float) -> Stops:
    """So many times every video, whatever happens; the last weights are kept."""
    stop = min(int(np.searchsorted(curves.exposures(), exposures)), len(curves.steps) - 1)
    return np.array([stop]), np.array([stop])


def rules() -> dict[str, Callable[[Curves], Stops]]:
    """The rules of the simulated runs, with exposures counted instead of shares of a plan."""
    seen = dict(RULES)
    found: dict[str, Callable[[Curves], Stops]] = {
        name: (lambda curves, rule=rule: rule(curves.runs)) for name, rule in seen.items()
    }
    fixed = {f"fixed {e} exposures": partial(fixed_exposures, exposures=e) for e in EXPOSURES}
    last = found.pop("no stop")
    return {**found, **fixed, "no stop": last}


def outcome(curves: Curves, stops: Stops) -> dict[str, float]:
    """One rule on one run."""
    runs = curves.runs
    stop, restored = int(stops[0][0]), int(stops[1][0])
    checks = len(curves.steps) - 1
    truth = runs.truth[0]
    gain = -float(truth.min())
    values = {"saved": 1.0 - stop / checks, "regret": (float(truth[restored]) + gain) / max(gain, NO_GAIN)}
    if curves.plan.kind == "fresh":
        return {**values, "false": float(stop < checks)}
    if gain < NO_GAIN:
        return {**values, "missed": float(stop >= checks)}
    oracle = max(1, int(runs.oracle[0]))
    overshoot = (stop - oracle) / oracle
    return {
        **values,
        "premature": float(stop < checks and stop < runs.right_from[0]),
        "missed": float(stop >= checks),
        "overshoot": overshoot,
        "late": overshoot - 0.6 - 10.0 / oracle,
    }


def measure_all() -> dict[str, Any]:
    """All rules on all stored runs, plain numbers for JSON."""
    results: dict[str, Any] = {"variants": {}, "runs": {}}
    for variant, (every, videos) in VARIANTS.items():
        all_curves = read(every, videos)
        table = {name: [outcome(curves, rule(curves)) for curves in all_curves] for name, rule in rules().items()}
        results["variants"][variant] = {name: _summary(all_curves, found) for name, found in table.items()}
        if variant == "every check":
            ours = RULES["vidlit divergence"]
            for curves, found in zip(all_curves, table["vidlit divergence"], strict=True):
                stop, restored = ours(curves.runs)
                results["runs"][curves.plan.name] = {
                    "planned": int(curves.steps[-1]),
                    "oracle": int(curves.steps[curves.runs.oracle[0]]),
                    "stop": int(curves.steps[stop[0]]),
                    "kept": int(curves.steps[restored[0]]),
                    "gain": float(-curves.runs.truth.min()),
                    "exposures_at_oracle": float(curves.exposures()[curves.runs.oracle[0]]),
                    **found,
                }
    results["validation_share"] = _validation_share(read())
    return results


def shown() -> tuple[list[Curves], list[tuple[int, int]]]:
    """One run of each kind and size for the plot, with the rule's stop and what it keeps."""
    groups: dict[str, Curves] = {}
    for curves in read():
        if curves.plan.seed == 0 and curves.plan.lr in (1.5e-3, 3e-4):
            groups.setdefault(f"{curves.plan.kind} {curves.plan.clips}", curves)
    found = [RULES["vidlit divergence"](curves.runs) for curves in groups.values()]
    return list(groups.values()), [(int(stop[0]), int(kept[0])) for stop, kept in found]


def _summary(all_curves: list[Curves], found: list[dict[str, float]]) -> dict[str, dict[str, float | list[float]]]:
    """Mean over runs with a 95 % bootstrap interval, and the worst group (kind and size: seeds and rates together)."""
    rng = np.random.default_rng(0)
    groups = [f"{curves.plan.kind} {curves.plan.clips or ''}".strip() for curves in all_curves]
    summary: dict[str, dict[str, Any]] = {}
    for metric in METRICS:
        values = np.array([row[metric] for row in found if metric in row])
        of = np.array([group for group, row in zip(groups, found, strict=True) if metric in row])
        if not len(values):
            continue
        draws = values[rng.integers(0, len(values), (1000, len(values)))].mean(axis=1)
        means = {group: float(values[of == group].mean()) for group in dict.fromkeys(of)}
        worst = (min if metric == "saved" else max)(means, key=means.__getitem__)
        summary[metric] = {
            "mean": float(values.mean()),
            "interval": [float(bound) for bound in np.percentile(draws, [2.5, 97.5])],
            "worst": means[worst],
            "worst_group": worst,
            "runs": len(values),
        }
    return summary


def _validation_share(all_curves: list[Curves]) -> dict[str, float]:
    """Cost of the rule's checks, forward passes at a third of a training step, as a share of the training's."""
    shares: dict[str, list[float]] = {}
    for curves in all_curves:
        evaluations = 4 * (curves.runs.val_by_video.shape[2] * VAL_TAKES + min(32, curves.plan.clips or 32))
        share = evaluations / 3 / (BATCH_SIZE * curves.plan.every)
        shares.setdefault(f"{curves.plan.kind} {curves.plan.clips or ''}".strip(), []).append(share)
    return {group: float(np.mean(values)) for group, values in shares.items()}
