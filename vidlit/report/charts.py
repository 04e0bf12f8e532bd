"""What is drawn of a run: each function draws one figure on an axes. Log-ratios become per cent of the base's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from vidlit.report.figure import COLOURS, NUM_LEVEL_COLOURS, NUM_RUN_COLOURS
from vidlit.runs.logged_names import VAL_LOG_RATIO_BIN
from vidlit.runs.record import Curve, RunRecord
from vidlit.stopping.exposure import CONSERVATIVE, MODERATE, RISKY

BANDS = ("conservative", "moderate", "high", "risky")
_DOTS = 40
"""Checks up to which each one gets a dot."""


def percent(log_ratio: ArrayLike) -> NDArray[np.float64]:
    """Change of the loss against step 0 in per cent."""
    return 100 * np.expm1(np.asarray(log_ratio, dtype=np.float64))


def held_out(axes: Axes, run: RunRecord) -> None:
    """Held-out and training-subset loss against the base model's, with the best step and the decision."""
    for name in ("train_eval", "val"):
        steps, values = run.curve(f"{name}/log_ratio")
        _line(axes, steps, percent(values), COLOURS[name])
    axes.axhline(0, color=COLOURS["faint"], linewidth=1)
    mark_decision(axes, run)
    _scale(axes)


def mark_decision(axes: Axes, run: RunRecord) -> None:
    """Upright lines at the best step and where the run ended, named above the drawing."""
    summary = run.summary
    best, stopped = summary.get("best_step"), summary.get("stop_step")
    ended = summary.get("stopped_by") not in (None, "running")
    low, high = axes.get_xlim()
    for row, (step, colour, text) in enumerate(
        (
            (stopped if ended else None, COLOURS["stop"], f"{_ending(summary)} {stopped}"),
            (best, COLOURS["best"], f"best {best}"),
        )
    ):
        if step is None:
            continue
        axes.axvline(step, color=colour, linewidth=1.5, linestyle=(0, (4, 3)))
        place = (step - low) / max(1e-9, high - low)
        align = "left" if place < 0.25 else "right" if place > 0.75 else "center"
        axes.annotate(
            text,
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 15 * row),
            textcoords="offset points",
            ha=align,
            color=colour,
            fontweight="bold",
        )


def training_loss(axes: Axes, run: RunRecord) -> None:
    """The loss of the batches, and its running mean."""
    steps, values = run.curve("train/loss")
    axes.plot(steps, values, color=COLOURS["train"], linewidth=1, alpha=0.45)
    width = max(1, len(values) // 20)
    if len(values) > width:
        axes.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"), color=COLOURS["train"])
    _scale(axes)


def noise_levels(axes: Axes, run: RunRecord) -> None:
    """The held-out loss at each level of noise."""
    curves = run.curves_of(VAL_LOG_RATIO_BIN)
    for number, (steps, values) in enumerate(curves):
        _line(axes, np.append(0, steps), percent(np.append(0.0, values)), level_colour(number, len(curves)))
    axes.axhline(0, color=COLOURS["faint"], linewidth=1)
    _scale(axes)


def level_colour(number: int, count: int) -> str:
    """From light to dark over the levels there are."""
    return COLOURS[f"level-{round(number * (NUM_LEVEL_COLOURS - 1) / max(1, count - 1))}"]


def run_colour(number: int) -> str:
    """Of one run among several."""
    return COLOURS[f"run-{number % NUM_RUN_COLOURS}"]


def statistic(axes: Axes, run: RunRecord) -> None:
    """The divergence test: above its threshold the rise is no chance."""
    steps, values = run.curve("divergence/statistic")
    _line(axes, steps, values, COLOURS["val"])
    limit = run.curve("divergence/threshold")
    axes.plot(limit.steps, limit.values, color=COLOURS["stop"], linewidth=1.5, linestyle=(0, (4, 3)))
    _scale(axes)


def exposure_histogram(axes: Axes, exposures: Mapping[str, int]) -> None:
    """How many source videos were seen how often, over the bands."""
    counts = np.maximum(0.5, np.array(list(exposures.values()), dtype=np.float64))  # 0 has no place on a log axis
    right = max(400.0, 1.5 * counts.max())
    edges = (0.4, CONSERVATIVE, MODERATE, RISKY, right)
    for name, left, end in zip(BANDS, edges[:-1], edges[1:], strict=True):
        axes.axvspan(left, end, color=COLOURS[name], linewidth=0, alpha=0.5)
        axes.annotate(
            name,
            (np.sqrt(left * end), 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=10 if name == "high" else 11,
        )
    bins = np.geomspace(0.4, right, 41).tolist()
    axes.hist(counts, bins=bins, color=COLOURS["train_eval"], edgecolor=COLOURS["ink"], linewidth=0.6)
    axes.set_xscale("log")
    axes.set_xlim(0.4, right)
    axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 5, 10, 50, 100, *([1000] if right > 1000 else [])]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else "0"))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(False, axis="x")
    axes.set_xlabel("times seen")


def exposure_over_time(axes: Axes, run: RunRecord) -> None:
    """Mean and highest exposures of a source video, over the bands."""
    steps, highest = run.curve("exposure/max")
    top = 1.1 * max([CONSERVATIVE, *highest])
    edges = (0.0, CONSERVATIVE, MODERATE, RISKY, max(top, RISKY))
    for name, low, high in zip(BANDS, edges[:-1], edges[1:], strict=True):
        axes.axhspan(low, high, color=COLOURS[name], linewidth=0, alpha=0.5)
    axes.plot(steps, highest, color=COLOURS["train"], linewidth=1.5)
    mean = run.curve("exposure/mean")
    _line(axes, mean.steps, mean.values, COLOURS["train_eval"])
    axes.set_ylim(0, top)
    _scale(axes)


def copies(axes: Axes, run: RunRecord) -> None:
    """How near the nearest sample is to a training clip, and how near is too near."""
    found = [verdict.evidence for verdict in run.verdicts("copies") if "ratio_min" in verdict.evidence]
    steps, values = run.curve("copies/ratio_min")
    _line(axes, steps, values, COLOURS["val"])
    if found:
        axes.axhline(float(found[-1]["limit"]), color=COLOURS["stop"], linewidth=1.5, linestyle=(0, (4, 3)))
    axes.set_ylim(0, max(1.05, 1.1 * values.max(initial=0)))
    _scale(axes)


def diversity(axes: Axes, run: RunRecord) -> None:
    """Effective number of different samples, and what real clips have."""
    steps, values = run.curve("diversity/rke")
    _line(axes, steps, values, COLOURS["val"])
    verdicts = run.verdicts("diversity")
    bound = [float(verdict.evidence["real_bound"]) for verdict in verdicts if "real_bound" in verdict.evidence]
    if bound:
        axes.axhline(bound[-1], color=COLOURS["best"], linewidth=1.5, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1.15 * max([*values, *bound], default=1))
    _scale(axes)


def plain(axes: Axes, curve: Curve, share: bool = False) -> None:
    """Any logged number over the steps; a share in per cent."""
    marker = "o" if len(curve.steps) < 4 else ""
    axes.plot(curve.steps, curve.values, color=COLOURS["train_eval"], linewidth=1.5, marker=marker, markersize=4)
    axes.set_ylim(bottom=0)
    if share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    _scale(axes)


def compare(axes: Axes, runs: Sequence[RunRecord], name: str, in_percent: bool = True) -> None:
    """One logged name of several runs; a dot at each one's best step."""
    for number, run in enumerate(runs):
        steps, values = run.curve(name)
        shown = percent(values) if in_percent else values
        axes.plot(steps, shown, color=run_colour(number))
        best = run.summary.get("best_step")
        if in_percent and best is not None and best in steps:
            axes.plot(best, shown[steps == best], "o", color=run_colour(number), markersize=9)
    if in_percent:
        axes.axhline(0, color=COLOURS["faint"], linewidth=1)
    _scale(axes)


def _ending(summary: Mapping[str, Any]) -> str:
    return {"max_steps": "ended", "interrupted": "interrupted", "error": "failed", "other": "ended"}.get(
        summary.get("stopped_by", ""), "stopped"
    )


def _line(axes: Axes, steps: ArrayLike, values: ArrayLike, colour: str) -> None:
    marker = "o" if np.size(steps) <= _DOTS else ""
    axes.plot(steps, values, color=colour, marker=marker, markersize=4)


def _scale(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.margins(x=0.02)
