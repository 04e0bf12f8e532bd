"""The benchmark's table (markdown) and plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.stopping import schedules
from benchmarks.stopping.curves import SCENARIOS, simulate
from benchmarks.stopping.rules import RULES, divergence
from benchmarks.stopping.schedules import SHIPS, USERS

if TYPE_CHECKING:
    from benchmarks.stopping.real_measure import Curves


def schedule_table(results: dict[str, Any]) -> str:
    """The rule at the schedule that ships and at others."""
    return "\n".join(
        [
            f"# The schedule of checks, on simulated runs ({results['runs_per_cell']} a cell, seed {results['seed']})",
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
            f"{results['seconds']} s.",
            "",
        ]
    )


def table(results: dict[str, Any]) -> str:
    """All rules, then the rule cell by cell."""
    lines = [
        f"# Stopping on simulated runs ({results['runs_per_cell']} runs a cell, seed {results['seed']})",
        "",
        "Mean over cells / worst cell [95 % bootstrap interval of the worst cell]. Late: mean overshoot past the oracle"
        " less what is allowed (60 % plus ten checks); above zero is a miss.",
        "",
        *_rules(results["summary"]),
        "",
        "Without double descent (a rise that passes cannot be told from the start of a lasting one):",
        "",
        *_rules({name: results["summary_without_double_descent"][name] for name in list(RULES)[:5]}),
        "",
    ]
    for key, words in (("equal_overshoot", "all"), ("equal_overshoot_without_double_descent", "no double descent")):
        e = results[key]
        lines.append(
            f"At equal mean overshoot ({e['overshoot']:.0%}; {words}): premature stops {e['premature']:.2%}, paired"
            f" patience {e['patience_premature']:.2%}."
        )
    lines += ["", "## The divergence rule, cell by cell (checks/jitter in gains)", "", *_cells(results["cells"])]
    lines += [
        "",
        "## What waiting longer costs (240 checks, jitter 0.03 and 0.08; a stop takes twice the window)",
        "",
        *_trade_off(results["trade_off"]),
    ]
    if results["few_videos"]:
        lines += ["", "## Few held-out source videos (24 checks, jitter 0.03)", ""]
        lines += [
            f"- {name}: " + ", ".join(f"{metric} {value:.1%}" for metric, value in values.items())
            for name, values in results["few_videos"].items()
        ]
    return "\n".join([*lines, "", f"{results['seconds']} s.", ""])


def _rules(summary: dict[str, Any]) -> list[str]:
    columns = ("premature", "false", "regret", "late", "missed", "saved")
    lines = [
        "| rule | premature | false stops | regret (of the gain) | overshoot, late | never stopped | saved |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, metrics in summary.items():
        row = [name]
        for metric in columns:
            m = metrics[metric]
            low, high = m["worst_interval"]
            if metric == "late":
                row.append(f"{metrics['overshoot']['mean']:.0%}, {m['worst']:+.0%} [{low:+.0%}, {high:+.0%}]")
            elif metric == "saved":
                row.append(f"{m['mean']:.0%}")
            else:
                row.append(f"{m['mean']:.1%} / {m['worst']:.1%} [{low:.1%}, {high:.1%}]")
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _trade_off(trade_off: dict[str, Any]) -> list[str]:
    """The window over which a plateau must last, as a share of the run so far, against double descent."""
    lines = [
        "| `plateau_share` | mean overshoot | worst late | plateaus missed | premature, double descent | ... deep |",
        "|---|---|---|---|---|---|",
    ]
    for share, found in trade_off.items():
        lines.append(
            f"| {share} | {found['overshoot']:.0%} | {found['late']:+.0%} | {found['missed']:.0%} |"
            f" {found['double descent']:.0%} | {found['deep double descent']:.0%} |"
        )
    return lines


def _cells(cells: dict[str, Any]) -> list[str]:
    columns = list(next(iter(cells.values())))
    lines = ["| scenario | what | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for scenario, found in cells.items():
        for metric in ("premature", "false", "late", "missed", "regret"):
            if metric in found[columns[0]]:
                values = (f"{found[column][metric]:{'+' if metric == 'late' else ''}.1%}" for column in columns)
                lines.append(f"| {scenario} | {metric} | " + " | ".join(values) + " |")
    return lines


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


def plot(results: dict[str, Any], path: Path) -> None:
    """Example curves with the rule's stop; premature stops against overshoot of every rule."""
    import matplotlib  # only this benchmark needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = SCENARIOS[:10]
    figure, axes = plt.subplots(3, 4, figsize=(15, 9), layout="constrained")
    for axis, scenario in zip(axes.flat, shown, strict=False):
        drawn = simulate(scenario, 80, 0.03, 8, seed=3)
        stop, restored = divergence(drawn)
        gain = -drawn.truth[0].min()
        axis.plot(drawn.probe[0] / gain, color="tab:orange", lw=0.8, label="train probe")
        axis.plot(drawn.val[0] / gain, color="tab:blue", lw=1.0, label="held out")
        axis.plot(drawn.truth[0] / gain, color="black", lw=0.8, ls=":", label="noise-free")
        if stop[0] < 80:
            axis.axvline(stop[0], color="tab:red", label="stop")
        axis.axvline(restored[0], color="tab:green", ls="--", label="restored")
        axis.set_ylim(-2.2, 0.6)
        axis.set_title(scenario, fontsize=9)
        axis.set_xlabel("check", fontsize=8)
    axes[0, 0].set_ylabel("log-ratio to step 0, in gains")
    axes[0, 0].legend(fontsize=7)
    for axis, metric in zip(axes.flat[len(shown) :], ("premature", "false"), strict=True):
        for name, found in results["summary"].items():
            x, y = found["overshoot"]["mean"], found[metric]["mean"]
            ours = name.startswith("vidlit")
            axis.scatter(
                x, y, color="tab:red" if ours else "tab:gray", marker="*" if ours else "o", s=90 if ours else 15
            )
            if ours or name == "no stop" or name.endswith("paired"):
                axis.annotate(name, (x, y), fontsize=7, xytext=(-4, 5), textcoords="offset points", ha="right")
        axis.set_xlabel("mean overshoot past the oracle", fontsize=8)
        axis.set_ylabel(f"mean {metric} stops", fontsize=8)
        axis.set_xscale("symlog", linthresh=1.0)
        axis.set_ylim(-0.05, 1.05)
        axis.set_xticks([-1.0, 0.0, 1.0, 3.0], ["-100 %", "0", "100 %", "300 %"])
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
