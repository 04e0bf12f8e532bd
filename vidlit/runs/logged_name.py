"""One row of the table of logged metrics: what a metric is called, in files and to users, and how it is shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

_PLACE = re.compile(r"<([a-z]+)>")
"""Of a number where its letters are ``k``, else of a word."""
_PART = r"(/\w+)?"
"""What a name ends in that is of one part of a model."""


def of_part(name: str, part: str, of: int = 2) -> str:
    """The name under which a part of a model logs a metric: ``val/log_ratio/high``.

    Args:
        name: of the metric.
        part: name of the part.
        of: parts that the model has; one part's metrics have their bare names.
    """
    return f"{name}/{part}" if of > 1 else name


@dataclass(frozen=True)
class LoggedName:
    """One logged metric.

    Args:
        name: as logged, ``signal/what``. ``<k>`` stands for any number from 0, ``<kk>`` for one of two digits, another
            word, as ``<bucket>``, for any of its kind.
        title: what it is, in words for users: its entry in a legend, and its chart's heading where it has its own.
        section: of the report and the workspace; empty for what stays in the files.
        chart: heading of a chart that several rows share; empty for one of its own.
        unit: of the numbers as they are shown.
        scale: how they are shown: as they are, a log-ratio as a change in per cent, a share in per cent.
        summary: what a run's row in a W&B table shows of the curve; ``None`` for the latest value.
        lower_is_better: ``None`` where neither is.
        limit: it is what the others in its chart are held against.
        compared: shown when several runs are put side by side.
        short: its word on the progress line; empty for what is not on it.
        words: a sentence below the chart.
        noisy: single values say little: charts draw a running mean on them.
        needs: the option without which it is not logged; empty for what every fit logs.
        kind: numbers over the steps, which ``metrics.csv`` holds; or what only W&B shows, a histogram or videos.
    """

    name: str
    title: str
    section: str = ""
    chart: str = ""
    unit: str = ""
    scale: Literal["number", "log_ratio", "share"] = "number"
    summary: Literal["min", "max", "mean", "last"] | None = None
    lower_is_better: bool | None = None
    limit: bool = False
    compared: bool = False
    short: str = ""
    words: str = ""
    noisy: bool = False
    needs: str = ""
    kind: Literal["curve", "histogram", "videos"] = "curve"

    @property
    def heading(self) -> str:
        """Of the chart it is drawn in."""
        return self.chart or self.title

    @property
    def is_numbered(self) -> bool:
        """Whether the name stands for several, told apart by a number."""
        return self._place is not None and set(self._place) == {"k"}

    @property
    def is_keyed(self) -> bool:
        """Whether it stands for several, told apart by a word: by a bucket."""
        return self._place is not None and not self.is_numbered

    @property
    def _place(self) -> str | None:
        found = _PLACE.search(self.name)
        return found[1] if found is not None else None

    @property
    def pattern(self) -> str:
        """The regular expression of its names."""
        before, *after = _PLACE.split(self.name)[::2]
        which = r"(\d+)" if self.is_numbered else r"(\w+)"
        return re.escape(before) + "".join(which + re.escape(part) for part in after)

    @property
    def glob(self) -> str:
        """The name with ``*`` from its number or word on, as W&B takes it."""
        return _PLACE.split(self.name)[0] + ("" if self._place is None else "*")

    def at(self, which: int | str) -> str:
        """The name with a number, or a word, in it."""
        return _PLACE.sub(lambda found: which if isinstance(which, str) else f"{which:0{len(found[1])}d}", self.name)

    def which(self, name: str) -> str:
        """The number or word in a logged name of this row; empty where there is none."""
        found = re.fullmatch(self.pattern + _PART, name)
        return found[1] if found is not None and self._place is not None else ""

    def matches(self, name: str) -> bool:
        """Whether a logged name is this row's, or one part's under it."""
        return re.fullmatch(self.pattern + _PART, name) is not None

    def part_of(self, name: str) -> str:
        """The part of a model that a logged name of this row is of; empty for one that is of all."""
        return "/".join(name.split("/")[self.name.count("/") + 1 :])

    def shown(self, values: ArrayLike) -> NDArray[np.float64]:
        """Logged values as users see them, in :attr:`unit`."""
        numbers = np.asarray(values, dtype=np.float64)
        match self.scale:
            case "log_ratio":
                return 100 * np.expm1(numbers)
            case "share":
                return 100 * numbers
            case _:
                return numbers

    def text(self, value: float) -> str:
        """One logged value in words: ``-12.3 %``, ``0.123``, ``1,234``."""
        number = float(self.shown(value))
        if self.scale == "log_ratio":
            return f"{number:+.1f} %"
        digits = f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
        return f"{digits} %" if self.scale == "share" else digits
