"""Curves over the steps as SVG that follows the page: its width, its font, light or dark.

A page holds two dozen drawings and must be there in a second. That is why they are written as text: matplotlib takes
five times as long as everything else together, and its SVG knows nothing of the page's colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_CHARACTER, _LINE = 6.6, 15
"""Width of a digit and height of a line of text, in pixels at the size that style.css sets."""
_DOTS, _MOST_POINTS = 40, 1000
"""Points up to which each one gets a dot, and above which a curve is thinned."""


@dataclass(frozen=True)
class _Line:
    steps: Array
    values: Array
    colour: str
    dashed: bool
    faint: bool
    dots: bool
    label: str


@dataclass(frozen=True)
class _Band:
    low: float
    high: float
    colour: str
    label: str


@dataclass
class Plot:
    """A drawing; what is added first lies below.

    Colours are the names of the page's CSS variables: ``val`` is ``var(--val)``.

    Args:
        caption: what it shows, for those who do not see it.
        x_label: below the horizontal axis.
        x_ticks: what a logarithmic horizontal axis says where; the axis is linear where it says nothing.
        zero: the vertical axis begins at 0.
    """

    caption: str
    x_label: str = "step"
    x_ticks: Mapping[float, str] = field(default_factory=dict)
    zero: bool = False
    _lines: list[_Line] = field(default_factory=list)
    _levels: list[tuple[float, str, bool]] = field(default_factory=list)
    _marks: list[tuple[float, str, str]] = field(default_factory=list)
    _bands: list[_Band] = field(default_factory=list)
    _bars: list[tuple[float, float, float, str]] = field(default_factory=list)

    def line(
        self,
        steps: ArrayLike,
        values: ArrayLike,
        colour: str,
        *,
        dashed: bool = False,
        faint: bool = False,
        label: str = "",
    ) -> None:
        """A curve; with a dot at each point where there are few, and a word at its end."""
        x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
        finite = np.isfinite(y)
        x, y = _thinned(x[finite], y[finite])
        if len(x):
            dots = len(x) <= _DOTS and not (dashed or faint)
            self._lines.append(_Line(x, y, colour, dashed, faint, dots, label))

    def dot(self, step: float, value: float, colour: str) -> None:
        """One point."""
        self.line([step], [value], colour)

    def level(self, value: float, colour: str, *, dashed: bool = False) -> None:
        """A horizontal line across the drawing."""
        self._levels.append((value, colour, dashed))

    def mark(self, step: float, colour: str, label: str) -> None:
        """A dashed upright line, named above the drawing."""
        self._marks.append((step, colour, label))

    def band(self, low: float, high: float, colour: str, label: str = "") -> None:
        """A stretch of the vertical axis; of the horizontal one where it is logarithmic, named above it."""
        self._bands.append(_Band(low, high, colour, label))

    def bar(self, left: float, right: float, height: float, colour: str) -> None:
        """A bar from 0 up."""
        self._bars.append((left, right, height, colour))

    def svg(self, width: float, height: float) -> Markup:
        """The drawing in a size in pixels, which only its proportions are kept of."""
        low, high = self._value_range()
        y_ticks = [tick for tick in nice_ticks(low, high, whole=bool(self._bars)) if low <= tick <= high]
        labels = _tick_labels(y_ticks)
        left = 10 + _CHARACTER * max((len(label) for label in labels), default=0)
        ends = max((len(line.label) for line in self._lines), default=0)
        right = width - (8 + _CHARACTER * ends + 4 if ends else 14)
        top = 8 + _LINE * (len(self._marks) or any(band.label for band in self._bands))
        bottom = height - 2 * _LINE - 8
        x = _Axis(*self._step_range(), left, right, logarithmic=bool(self.x_ticks))
        y = _Axis(low, high, bottom, top)
        parts = [self._shade(band, x, y) for band in self._bands]
        for tick, label in zip(y_ticks, labels, strict=True):
            parts += [_stroke(left, y(tick), right, y(tick), "grid"), _text(left - 6, y(tick) + 4, label, "end")]
        x_ticks = [tick for tick in nice_ticks(x.low, x.high, whole=True) if x.low <= tick <= x.high]
        x_labels = self.x_ticks or dict(zip(x_ticks, _tick_labels(x_ticks), strict=True))
        for tick, label in x_labels.items():
            parts.append(_text(x(tick), bottom + _LINE + 2, label, "middle"))
        parts.append(_stroke(left, bottom, right, bottom, "faint"))
        parts.append(_text((left + right) / 2, height - 4, self.x_label, "middle"))
        for start, end, value, colour in self._bars:
            parts.append(
                f'<rect x="{x(start):.1f}" y="{y(value):.1f}" width="{max(1.0, x(end) - x(start) - 1):.1f}" '
                f'height="{y(0) - y(value):.1f}" style="fill:var(--{colour})"/>'
            )
        parts += [_stroke(left, y(at), right, y(at), colour, dashed) for at, colour, dashed in self._levels]
        parts += [_curve(line, x, y) for line in self._lines]
        parts += self._end_labels(right, y)
        for row, (step, colour, label) in enumerate(self._marks):
            parts.append(_stroke(x(step), top, x(step), bottom, colour, dashed=True))
            place = (x(step) - left) / (right - left)
            anchor = "start" if place < 0.25 else "end" if place > 0.75 else "middle"
            parts.append(_text(x(step), top - 4 - _LINE * row, label, anchor, colour))
        head = f'<svg role="img" aria-label="{escape(self.caption)}" viewBox="0 0 {width:g} {height:g}">'
        return Markup("").join([Markup(head), *(Markup(part) for part in parts), Markup("</svg>")])

    def _value_range(self) -> tuple[float, float]:
        values = [value for line in self._lines for value in (line.values.min(), line.values.max())]
        values += [value for value, _, _ in self._levels] + [height for _, _, height, _ in self._bars]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if self.zero or self._bars:
            low = min(low, 0.0)
        if high <= low:
            around = 0.5 * (abs(high) or 1.0)
            low, high = low if low == 0 else low - around, high + around
        spread = high - low
        return low if low == 0 else low - 0.06 * spread, high + 0.06 * spread

    def _step_range(self) -> tuple[float, float]:
        if self.x_ticks:
            return min(band.low for band in self._bands), max(band.high for band in self._bands)
        steps = [step for line in self._lines for step in (line.steps[0], line.steps[-1])]
        low, high = (min(steps), max(steps)) if steps else (0.0, 1.0)
        spread = (high - low) or 1.0
        return low - 0.02 * spread, high + 0.02 * spread

    def _shade(self, band: _Band, x: _Axis, y: _Axis) -> str:
        upright = bool(self.x_ticks)
        across = x if upright else y
        low, high = max(band.low, across.low), min(band.high, across.high)
        if high <= low:
            return ""
        start, end = sorted((across(low), across(high)))
        size = end - start
        box = (start, y.end, size, y.begin - y.end) if upright else (x.begin, start, x.end - x.begin, size)
        drawn = '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" '.format(*box)
        drawn += f'style="fill:var(--{band.colour});opacity:.5"/>'
        return drawn + (_text((start + end) / 2, y.end - 4, band.label, "middle") if upright else "")

    def _end_labels(self, right: float, y: _Axis) -> list[str]:
        """What each curve ends with, beside its end, pushed apart where two would overlap."""
        labelled = sorted(((y(line.values[-1]), line) for line in self._lines if line.label), key=lambda each: each[0])
        parts, free = [], -math.inf
        for place, line in labelled:
            place = max(place, free)
            free = place + _LINE
            parts.append(_text(right + 4, place + 4, line.label, "start", line.colour))
        return parts


@dataclass(frozen=True)
class _Axis:
    """From numbers to pixels."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)


def nice_ticks(low: float, high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """Round numbers from just below a range to just above it.

    Args:
        low: end of the range.
        high: the other, above it.
        most: how many may lie within.
        whole: whole numbers only.

    Example:
        >>> nice_ticks(0, 1200)
        [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0, 1200.0]
        >>> nice_ticks(0.2, 3.1, whole=True)
        [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, 5.0 * power if step != round(step) else step)
    return [step * number for number in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """With as many digits as tell them apart."""
    digits = next((d for d in range(7) if all(abs(round(tick, d) - tick) < 1e-9 for tick in ticks)), 6)
    return [f"{tick + 0.0:,.{digits}f}" if round(tick, digits) else "0" for tick in ticks]


def _thinned(steps: Array, values: Array) -> tuple[Array, Array]:
    """Of a long curve the lowest and the highest point of each stretch, so that no peak is lost."""
    if len(steps) <= _MOST_POINTS:
        return steps, values
    stretches = np.array_split(np.arange(len(steps)), _MOST_POINTS // 2)
    kept = sorted({int(part[pick(values[part])]) for part in stretches for pick in (np.argmin, np.argmax)})
    return steps[kept], values[kept]


def _curve(line: _Line, x: _Axis, y: _Axis) -> str:
    points = [(x(step), y(value)) for step, value in zip(line.steps.tolist(), line.values.tolist(), strict=True)]
    way = "M" + "L".join(f"{across:.1f} {up:.1f}" for across, up in points)
    look = f"stroke:var(--{line.colour});stroke-width:{1 if line.faint else 1.5 if line.dashed else 2}"
    look += ";opacity:.45" if line.faint else ";stroke-dasharray:4 3" if line.dashed else ""
    dots = "".join(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="2.5"/>' for across, up in points if line.dots)
    dots = f'<g style="fill:var(--{line.colour})">{dots}</g>' if dots else ""
    return f'<path d="{way}" style="fill:none;{look}"/>{dots}'


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str, dashed: bool = False) -> str:
    look = f"stroke:var(--{colour})" + (";stroke-width:1.5;stroke-dasharray:4 3" if dashed else "")
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="{look}"/>'


def _text(x: float, y: float, words: str, anchor: str, colour: str = "") -> str:
    look = f' style="fill:var(--{colour});font-weight:bold"' if colour else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{look}>{escape(words)}</text>'
