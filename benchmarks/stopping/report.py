"""The benchmark's tables (markdown) and plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.stopping import schedules
from benchmarks.stopping.schedules import SHIPS, USERS

if TYPE_CHECKING:
    from benchmarks.stopping.real_measure import Curves


def simulated_table(results: dict[str, Any]) -> str:
    """The rule at the schedule that ships and at others."""
    return "\n".join(
        [
            f"# Stopping on simulated runs ({results['runs_per_cell']} a cell, seed {results['seed']})",
            "",
            "Cost of training and checks together, in per cent of training to the minimum of the noise-free curve"
            " without a check; mean over cells / worst cell. Users: "
            + "; ".join(f"batch {user.batch}, {user.steps:,} steps, {user.groups} recordings" for user in USERS)
            + "; three levels of jitter.",
            "",
            *schedules.table(results["ways"]),
            "",
            *(
                f"- worst {metric}, as it ships: {results['ways'][SHIPS][metric]['worst_cell']}"
                for metric in ("cost", "missed overfit", "missed plateau", "premature", "regret")
            ),
            "",
            "Scenarios for which nothing was aimed at, as it ships:",
            "",
            *schedules.table(results["shown"], "scenario"),
            "",
            f"{results['seconds']} s.",
            "",
        ]
    )


def constants_table(results: dict[str, Any]) -> str:
    """What other values of the constants would do."""
    return "\n".join(
        [
            f"# Other values of the rule's constants ({results['runs_per_cell']} runs a cell, seed {results['seed']},"
            " on which they were chosen)",
            "",
            *schedules.table(results["constants"], "constant"),
            "",
            f"{results['seconds']} s.",
            "",
        ]
    )


def real_table(results: dict[str, Any]) -> str:
    """All rules on the real runs, then the rule run by run."""
    lines = [
        f"# Stopping on {len(results['runs'])} real runs of the tiny default model",
        "",
        "Mean over runs [95 % bootstrap interval] / worst group of runs (kind and number of training clips).",
        "`clips`: from the untrained base; `fresh`: no clip is seen twice, every stop is false; `tuned`: a trained base"
        " learns another look. The oracle is measured on 256 source videos that no rule sees.",
    ]
    for variant, summary in results["variants"].items():
        lines += [
            "",
            f"## {variant[0].upper()}{variant[1:]}",
            "",
            "| rule | premature | false stops | regret (of the gain) | overshoot, late | never stopped | saved |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, metrics in summary.items():
            cells = [
                _real_cell(metrics, metric) for metric in ("premature", "false", "regret", "late", "missed", "saved")
            ]
            lines.append("| " + " | ".join([name, *cells]) + " |")
    lines += [
        "",
        "## The divergence rule, run by run (steps)",
        "",
        "| run: kind, clips, rate, seed | planned | oracle | stop | kept | gain | exposures at oracle | regret |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, run in results["runs"].items():
        lines.append(
            f"| {name} | {run['planned']} | {run['oracle']} | {run['stop']} | {run['kept']} | {run['gain']:.1%} |"
            f" {run['exposures_at_oracle']:.0f} | {run['regret']:.1%} |"
        )
    shares = ", ".join(f"{group} {share:.0%}" for group, share in results["validation_share"].items())
    lines += [
        "",
        f"What a check costs as a share of training, in forward passes at a third of a step: {shares}. These runs are"
        " checked far more often than a user's.",
        "",
    ]
    return "\n".join(lines)


def _real_cell(metrics: dict[str, Any], metric: str) -> str:
    if metric not in metrics:
        return ""
    m = metrics[metric]
    low, high = m["interval"]
    if metric == "late":
        return f"{metrics['overshoot']['mean']:.0%}, {m['worst']:+.0%}"
    if metric == "saved":
        return f"{m['mean']:.0%}"
    return f"{m['mean']:.1%} [{low:.1%}, {high:.1%}] / {m['worst']:.1%}"


def real_plot(all_curves: Sequence[Curves], stops: Sequence[tuple[int, int]], path: Path) -> None:
    """One run of each kind and size with what the rule stopped and kept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for axis, curves, (stop, kept) in zip(axes.flat, all_curves, stops, strict=False):
        runs, steps = curves.runs, curves.steps
        axis.plot(steps, np.expm1(runs.probe[0]), color="tab:orange", lw=0.8, label="train probe")
        axis.plot(steps, np.expm1(runs.val[0]), color="tab:blue", lw=1.0, label="held out")
        axis.plot(steps, np.expm1(runs.truth[0]), color="black", lw=0.8, ls=":", label="oracle clips")
        if stop < len(steps) - 1:
            axis.axvline(steps[stop], color="tab:red", label="stop")
        axis.axvline(steps[kept], color="tab:green", ls="--", label="kept")
        lowest = float(min(runs.val.min(), runs.truth.min()))
        axis.set_ylim(
            np.expm1(2.0 * lowest - 0.01), max(0.02, 1.1 * float(np.expm1(max(runs.val.max(), runs.truth.max()))))
        )
        plan = curves.plan
        size = f"{plan.clips} clips of {plan.videos} videos" if plan.clips else "a new clip every time"
        base = ", trained base" if plan.kind == "tuned" else ""
        axis.set_title(f"{size}{base}, lr {plan.lr:g}", fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes[0, 0].set_ylabel("loss against the base model", fontsize=8)
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
