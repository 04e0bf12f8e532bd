"""From the rows of logged names to charts: what they share is drawn for every metric alike, a few say more.

Log-ratios become per cent of the base model's loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vidlit.report.plot import Plot
from vidlit.runs.logged_name import LoggedName
from vidlit.runs.logged_names import (
    COPIES_RATIO_MIN,
    DIVERSITY_LOG_RATIO,
    EXPOSURE_MEAN,
    OVERFITTING,
    TRAIN_LOSS,
    VAL_LOG_RATIO,
    charts,
)
from vidlit.runs.record import Curve, RunRecord
from vidlit.stopping.exposure import CONSERVATIVE, MODERATE, RISKY, video_exposures

WIDE, HALF, _NARROW = (1040, 340), (510, 270), (360, 250)
"""Sizes in pixels: across the page, half as wide, and on a phone."""
NUM_COLOURS = 8
"""Of lines that have no colour of their own, and of levels from light to dark."""
BANDS = (("conservative", CONSERVATIVE), ("moderate", MODERATE), ("high", RISKY), ("risky", math.inf))

Array = NDArray[np.float64]
Legend = list[tuple[str, str]]
"""Names of CSS variables, what they stand for."""


@dataclass(frozen=True)
class Drawing:
    """A chart with its words."""

    title: str
    drawing: Markup
    unit: str = ""
    legend: Sequence[tuple[str, str]] = ()
    words: str = ""


def drawing(plot: Plot, size: tuple[int, int], unit: str, legend: Legend, words: str) -> Drawing:
    """A plot twice, for a large screen and for a phone: the page shows the one that fits."""
    sizes = {"wide": size, "narrow": _NARROW}
    drawn = (Markup('<div class="{}">{}</div>').format(name, plot.svg(*each)) for name, each in sizes.items())
    return Drawing(plot.caption, Markup("").join(drawn), unit, legend, words)


def sections(run: RunRecord) -> dict[str, list[Drawing]]:
    """Every chart that a run has logged something for, by section."""
    found = {}
    for section, headings in charts(run.logged_names).items():
        drawn = [_chart(run, heading, rows) for heading, rows in headings.items()]
        found[section] = [each for each in drawn if each is not None]
    return found


def _chart(run: RunRecord, heading: str, rows: Sequence[LoggedName]) -> Drawing | None:
    """The curves of the rows that share a chart; ``None`` where none was logged."""
    drawn = [(row, curves) for row in rows if (curves := run.curves_of(row))]
    if not drawn:
        return None
    lowest = min(curve.values.min() for _, curves in drawn for curve in curves)
    # Losses move far from 0; counts, shares and distances are small or large against it.
    plot, legend = Plot(heading, zero=lowest >= 0 and rows[0].section != OVERFITTING), Legend()
    if rows[0].scale == "log_ratio":
        plot.level(0, "faint")
    for place, (row, curves) in enumerate(drawn):
        colour = "stop" if row.limit else _OF_SETS.get(row.name.split("/")[0], f"run-{place % NUM_COLOURS}")
        if row.is_numbered or row.is_keyed:
            draw = _levels if row.is_numbered else _by_word
            legend += draw(plot, row, run.named_curves_of(row))
            continue
        parts = run.part_curves_of(row)
        for number, (part, curve) in enumerate(parts.items()):
            words = row.text(float(curve.values[-1]))
            plot.line(*_from_base(row, curve), colour, dashed=number > 0, label=words)
            legend.append((colour, f"{row.title}, {part}{' (dashed)' if number else ''}"))
        if parts:  # the mean over them would be a third line
            continue
        (curve,) = curves
        words = "" if row.limit or row is TRAIN_LOSS else row.text(float(curve.values[-1]))
        plot.line(*_from_base(row, curve), colour, dashed=row.limit, faint=row is TRAIN_LOSS, label=words)
        if len(drawn) > 1:
            legend.append((colour, row.title))
    if heading in _MORE:
        legend += _MORE[heading](plot, run)
    words = " ".join(row.words for row in rows if row.words)
    return drawing(plot, WIDE if heading == VAL_LOG_RATIO.heading else HALF, _unit(rows[0]), legend, words)


def _levels(plot: Plot, row: LoggedName, curves: Mapping[str, Curve]) -> Legend:
    """One line a number, from light to dark."""
    last = len(curves) - 1
    colours = [f"level-{round(number * (NUM_COLOURS - 1) / max(1, last))}" for number in range(len(curves))]
    for colour, curve in zip(colours, curves.values(), strict=True):
        plot.line(*_from_base(row, curve), colour)
    return [(colours[number], f"level {number}") for number in dict.fromkeys((0, last))]


def _by_word(plot: Plot, row: LoggedName, curves: Mapping[str, Curve]) -> Legend:
    """One line a word, each in a colour of its own."""
    legend = []
    for number, (name, curve) in enumerate(curves.items()):
        colour = f"run-{number % NUM_COLOURS}"
        plot.line(*_from_base(row, curve), colour, dashed=number >= NUM_COLOURS)
        legend.append((colour, row.which(name)))
    return legend


def _from_base(row: LoggedName, curve: Curve) -> tuple[Array, Array]:
    """A curve as it is shown. The base model's own log-ratio is 0: it is not logged everywhere."""
    steps, values = curve
    if row.scale == "log_ratio" and steps[0] > 0:
        steps, values = np.append(0, steps), np.append(0.0, values)
    return steps.astype(np.float64), row.shown(values)


def _unit(row: LoggedName) -> str:
    better = {True: "lower is better", False: "higher is better", None: ""}[row.lower_is_better]
    return "; ".join(part for part in (row.unit, better) if part)


# -- what some charts show beside their rows


def _decision(plot: Plot, run: RunRecord) -> Legend:
    """Upright lines at the best step, with its loss, and where the run ended."""
    summary = run.summary
    best, stopped_by = summary.get("best_step"), summary.get("stopped_by")
    if stopped_by not in (None, "running"):
        plot.mark(summary["stop_step"], "stop", f"{_ENDINGS.get(stopped_by, 'stopped')} {summary['stop_step']}")
    if best is not None:
        plot.mark(best, "best", f"best {best}: {VAL_LOG_RATIO.text(-summary['gain'])}")
    return []


def _running_mean(plot: Plot, run: RunRecord) -> Legend:
    steps, values = run.curve(TRAIN_LOSS.name)
    width = max(1, len(values) // 20)
    mean = np.convolve(values, np.ones(width) / width, "valid")
    plot.line(steps[width - 1 :], mean, "train", label=TRAIN_LOSS.text(float(mean[-1])))
    return [("train", "each logged step, and running mean")]


def _exposure_bands(plot: Plot, run: RunRecord) -> Legend:
    low = 0.0
    for name, high in BANDS:
        plot.band(low, high, name)
        low = high
    return [(name, name) for name, _ in BANDS]


def _copy_limit(plot: Plot, run: RunRecord) -> Legend:
    limits = [float(verdict.evidence["limit"]) for verdict in run.verdicts("copies") if "limit" in verdict.evidence]
    if limits:
        plot.level(limits[-1], "stop", dashed=True)
    return [("stop", "below: a copy")] if limits else []


def _variety_limit(plot: Plot, run: RunRecord) -> Legend:
    limits = [float(verdict.evidence["limit"]) for verdict in run.verdicts("diversity") if "limit" in verdict.evidence]
    if limits:
        plot.level(float(DIVERSITY_LOG_RATIO.shown(limits[-1])), "stop", dashed=True)
    return [("stop", "below: an alarm")] if limits else []


_OF_SETS = {"val": "val", "train_eval": "train_eval", "train": "train"}
"""Colours of metrics whose name begins so."""
_ENDINGS = {"max_steps": "ended", "interrupted": "interrupted", "error": "failed", "other": "ended", "request": "ended"}
_MORE: Mapping[str, Callable[[Plot, RunRecord], Legend]] = {
    VAL_LOG_RATIO.heading: _decision,
    TRAIN_LOSS.heading: _running_mean,
    EXPOSURE_MEAN.heading: _exposure_bands,
    COPIES_RATIO_MIN.heading: _copy_limit,
    DIVERSITY_LOG_RATIO.heading: _variety_limit,
}


# -- charts of other things


def exposure_histogram(run: RunRecord) -> Drawing | None:
    """How many videos were seen how often, over the bands; ``None`` before the first check."""
    train = [row for row in run.exposures if row.split == "train"]
    if not train:
        return None
    seen = video_exposures([row.exposures for row in train], [row.video for row in train])
    counts = np.maximum(0.5, np.array(list(seen.values()), dtype=np.float64))  # 0 has no place on a log axis
    end = max(400.0, 1.5 * counts.max())
    ticks = {0.5: "0"} | {float(tick): f"{tick:,}" for tick in (1, 5, 10, 50, 100, 1000, 10000) if tick < end}
    plot = Plot("How often each video was trained on", x_label="times seen", x_ticks=ticks)
    low = 0.4
    for name, high in BANDS:
        plot.band(low, min(high, end), name, name)
        low = high
    edges = np.geomspace(0.4, end, 41)
    for left, right, count in zip(edges[:-1], edges[1:], np.histogram(counts, edges)[0], strict=True):
        if count:
            plot.bar(float(left), float(right), float(count), "train_eval")
    least, most = min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__)
    words = (
        f"{len(seen)} videos with {len(train)} clips. Seen least: {least} ({seen[least]}); most: {most} ({seen[most]})."
    )
    return drawing(plot, HALF, "videos", [], words)


def compared(runs: Sequence[RunRecord], row: LoggedName, names: Sequence[str], size: tuple[int, int]) -> Drawing | None:
    """One metric of several runs, with a dot at each one's best step; ``None`` where none of them logged it."""
    plot, legend = Plot(row.title), Legend()
    if row.scale == "log_ratio":
        plot.level(0, "faint")
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        curve, best = run.curve(row.name), run.summary.get("best_step")
        if not len(curve.steps):
            continue
        colour = f"run-{number % NUM_COLOURS}"
        legend.append((colour, name))
        plot.line(*_from_base(row, curve), colour)
        if row.scale == "log_ratio" and best is not None and best in curve.steps:
            plot.dot(best, float(row.shown(curve.values[curve.steps == best])[0]), colour)
    return drawing(plot, size, _unit(row), legend, "A dot marks each run's best step.") if legend else None
