"""From the rows of logged names to charts, as data that the page's script draws (``templates/page.js``, uPlot).

What rows share is drawn for every metric alike, a few say more. Log-ratios become per cent of the base model's loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidlit.runs.logged_name import LoggedName
from vidlit.runs.logged_names import (
    COPIES_RATIO_MIN,
    DIVERSITY_LOG_RATIO,
    EXPOSURE_MEAN,
    OVERFITTING,
    RUN_SECONDS,
    VAL_LOG_RATIO,
    charts,
)
from vidlit.runs.record import Curve, RunRecord
from vidlit.stopping.exposure import CONSERVATIVE, MODERATE, RISKY, video_exposures

NUM_COLOURS = 8
"""Of lines that have no colour of their own, and of levels from light to dark."""
MOST_POINTS = 1000
"""Of a curve, more than which no screen shows: of longer ones each stretch's lowest and highest point is kept."""
BANDS = (("conservative", CONSERVATIVE), ("moderate", MODERATE), ("high", RISKY), ("risky", math.inf))
_DIGITS = 5  # of a number in a chart: more is not seen, and makes pages long

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One curve. Colours are names of the page's CSS variables: ``val`` is ``var(--val)``."""

    name: str
    colour: str
    x: list[float]
    y: list[float]
    dashed: bool = False
    limit: bool = False
    """Whether the others are held against it: it is never smoothed."""
    noisy: bool = False
    """Whether single values say little: it is drawn faint, with a running mean on it."""


@dataclass
class Chart:
    """What one chart shows, as JSON takes it.

    Args:
        title: heading.
        full: whether it is as wide as the page.
        unit: of the numbers, and which of them are better.
        words: a sentence below it.
        zero: the vertical axis holds 0.
        percent: its values are per cent, and are shown as sentences name them, with one digit.
        x: what its horizontal axis is: ``step``, which the reader may change to exposures or time, or ``seen``, the
            number of exposures of a histogram.
    """

    title: str
    full: bool = False
    unit: str = ""
    words: str = ""
    zero: bool = False
    percent: bool = False
    x: str = "step"
    lines: list[Line] = field(default_factory=list)
    levels: list[tuple[float, str, str]] = field(default_factory=list)
    """Horizontal lines: value, colour, name."""
    marks: list[tuple[float, str, str, str]] = field(default_factory=list)
    """Dashed upright lines: step, colour, words, and the name of the line whose step it is; empty for the first."""
    bands: list[tuple[float, float | None, str]] = field(default_factory=list)
    """Stretches of the vertical axis (of a histogram's horizontal one): from, to, colour and name in one."""
    bars: list[tuple[float, float, int]] = field(default_factory=list)
    """Of a histogram: from, to, how many."""

    def line(self, name: str, colour: str, steps: ArrayLike, values: ArrayLike, **look: bool) -> None:
        """Add a curve; values that are not finite are left out."""
        x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
        finite = np.isfinite(y)
        x, y = _thinned(x[finite], y[finite])
        if len(x):
            self.lines.append(Line(name, colour, x.tolist(), [_short(value) for value in y.tolist()], **look))

    def as_json(self) -> dict[str, Any]:
        """What the script draws from: all but the words, which stand in the page's text."""
        shown = {key: value for key, value in vars(self).items() if key not in ("unit", "words", "full")}
        return shown | {"lines": [vars(line) for line in self.lines]}


def sections(run: RunRecord) -> dict[str, list[Chart]]:
    """Every chart that a run has logged something for, by section."""
    found = {}
    for section, headings in charts(run.logged_names).items():
        drawn = [_chart(run, heading, rows) for heading, rows in headings.items()]
        found[section] = [each for each in drawn if each is not None]
    return found


def axes(run: RunRecord) -> dict[str, list[list[float]]]:
    """What a step is in exposures and in seconds of training, as far as is known: steps and values of each."""
    curves = {"exposures": run.curve(EXPOSURE_MEAN.name), "seconds": run.curve(RUN_SECONDS.name)}
    return {
        name: [[0, *curve.steps.tolist()], [0, *(_short(value) for value in curve.values.tolist())]]
        for name, curve in curves.items()
        if len(curve.steps)
    }


def _chart(run: RunRecord, heading: str, rows: Sequence[LoggedName]) -> Chart | None:
    """The curves of the rows that share a chart; ``None`` where none was logged."""
    drawn = [(row, curves) for row in rows if (curves := all_curves(run, row))]
    if not drawn:
        return None
    lowest = min(curve.values.min() for _, curves in drawn for curve in curves)
    words = " ".join(row.words for row in rows if row.words)
    # Losses move far from 0; counts, shares and distances are small or large against it.
    zero = bool(lowest >= 0 and rows[0].section != OVERFITTING)
    percent = rows[0].scale == "log_ratio"
    chart = Chart(heading, heading == VAL_LOG_RATIO.heading, _unit(rows[0]), words, zero, percent)
    if rows[0].scale == "log_ratio":
        chart.levels.append((0, "faint", ""))
    for place, (row, curves) in enumerate(drawn):
        colour = "stop" if row.limit else _OF_SETS.get(row.name.split("/")[0], f"run-{place % NUM_COLOURS}")
        if row.is_numbered or row.is_keyed:
            (_levels if row.is_numbered else _by_word)(chart, row, run.named_curves_of(row))
            continue
        parts = run.part_curves_of(row)
        for number, (part, curve) in enumerate(parts.items()):
            look = {"dashed": row.limit or number > 0, "limit": row.limit, "noisy": row.noisy}
            chart.line(f"{row.title}, {part}", colour, *_from_base(row, curve), **look)
        if not parts:  # the mean over them would be a third line
            look = {"dashed": row.limit, "limit": row.limit, "noisy": row.noisy}
            chart.line(row.title, colour, *_from_base(row, curves[0]), **look)
    if heading in _MORE:
        _MORE[heading](chart, run)
    return chart


def all_curves(run: RunRecord, row: LoggedName) -> list[Curve]:
    """What was logged under a row's name, of parts of the model where nothing was of all."""
    return run.curves_of(row) or list(run.part_curves_of(row).values())


def _levels(chart: Chart, row: LoggedName, curves: Mapping[str, Curve]) -> None:
    """One line a number, from light to dark."""
    last = len(curves) - 1
    for number, curve in enumerate(curves.values()):
        colour = f"level-{round(number * (NUM_COLOURS - 1) / max(1, last))}"
        chart.line(f"level {number}", colour, *_from_base(row, curve))


def _by_word(chart: Chart, row: LoggedName, curves: Mapping[str, Curve]) -> None:
    """One line a word, each in a colour of its own."""
    for number, (name, curve) in enumerate(curves.items()):
        look = {"dashed": number >= NUM_COLOURS, "noisy": row.noisy}
        chart.line(row.which(name), f"run-{number % NUM_COLOURS}", *_from_base(row, curve), **look)


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


def _decision(chart: Chart, run: RunRecord) -> None:
    """Upright lines at the best step, with its loss, and where the run ended."""
    summary = run.summary
    best, stopped_by = summary.get("best_step"), summary.get("stopped_by")
    if stopped_by not in (None, "running"):
        chart.marks.append(
            (summary["stop_step"], "stop", f"{_ENDINGS.get(stopped_by, 'stopped')} {summary['stop_step']}", "")
        )
    if best is not None:
        chart.marks.append((best, "best", f"best {best}: {VAL_LOG_RATIO.text(-summary['gain'])}", ""))


def _exposure_bands(chart: Chart, run: RunRecord) -> None:
    low = 0.0
    for name, high in BANDS:
        chart.bands.append((low, None if math.isinf(high) else high, name))
        low = high


def _copy_limit(chart: Chart, run: RunRecord) -> None:
    limits = [float(verdict.evidence["limit"]) for verdict in run.verdicts("copies") if "limit" in verdict.evidence]
    if limits:
        chart.levels.append((limits[-1], "stop", "below: a copy"))


def _variety_limit(chart: Chart, run: RunRecord) -> None:
    limits = [float(verdict.evidence["limit"]) for verdict in run.verdicts("diversity") if "limit" in verdict.evidence]
    if limits:
        chart.levels.append((_short(float(DIVERSITY_LOG_RATIO.shown(limits[-1]))), "stop", "below: an alarm"))


_OF_SETS = {"val": "val", "train_eval": "train_eval", "train": "train"}
"""Colours of metrics whose name begins so."""
_ENDINGS = {"max_steps": "ended", "interrupted": "interrupted", "error": "failed", "other": "ended", "request": "ended"}
_MORE: Mapping[str, Callable[[Chart, RunRecord], None]] = {
    VAL_LOG_RATIO.heading: _decision,
    EXPOSURE_MEAN.heading: _exposure_bands,
    COPIES_RATIO_MIN.heading: _copy_limit,
    DIVERSITY_LOG_RATIO.heading: _variety_limit,
}


# -- charts of other things


def exposure_histogram(run: RunRecord) -> Chart | None:
    """How many videos were seen how often, over the bands; ``None`` before the first check."""
    train = [row for row in run.exposures if row.split == "train"]
    if not train:
        return None
    seen = video_exposures([row.exposures for row in train], [row.video for row in train])
    counts = np.maximum(0.5, np.array(list(seen.values()), dtype=np.float64))  # 0 has no place on a log axis
    least, most = min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__)
    chart = Chart(
        "How often each video was trained on",
        unit="videos, by the times they were seen",
        words=f"{len(seen)} videos with {len(train)} clips. Seen least: {least} ({seen[least]}); most: {most} "
        f"({seen[most]}).",
        zero=True,
        x="seen",
    )
    end = max(400.0, 1.5 * counts.max())
    low = 0.4
    for name, high in BANDS:
        chart.bands.append((low, min(high, end), name))
        low = high
    edges = np.geomspace(0.4, end, 41)
    for left, right, count in zip(edges[:-1], edges[1:], np.histogram(counts, edges)[0], strict=True):
        if count:
            chart.bars.append((_short(float(left)), _short(float(right)), int(count)))
    return chart


def compared(runs: Sequence[RunRecord], row: LoggedName, names: Sequence[str]) -> Chart | None:
    """One metric of several runs, with a mark at each one's best step; ``None`` where none of them logged it."""
    chart = Chart(row.title, row is VAL_LOG_RATIO, _unit(row), percent=row.scale == "log_ratio")
    if row.scale == "log_ratio":
        chart.levels.append((0, "faint", ""))
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        curve, best = run.curve(row.name), run.summary.get("best_step")
        if len(curve.steps):
            colour = f"run-{number % NUM_COLOURS}"
            chart.line(name, colour, *_from_base(row, curve), noisy=row.noisy)
            if row is VAL_LOG_RATIO and best is not None:
                chart.marks.append((best, colour, f"best {best}", name))
    return chart if chart.lines else None


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _thinned(steps: Array, values: Array) -> tuple[Array, Array]:
    """Of a long curve the lowest and the highest point of each stretch, so that no peak is lost."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    stretches = np.array_split(np.arange(len(steps)), MOST_POINTS // 2)
    kept = sorted({int(part[pick(values[part])]) for part in stretches for pick in (np.argmin, np.argmax)})
    return steps[kept], values[kept]
