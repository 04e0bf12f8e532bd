"""Several runs on one page: a table, their curves in one drawing, and the options in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vidlit.report.charts import HALF, WIDE, compared
from vidlit.report.videos import VideoBudget, kept_samples
from vidlit.runs.logged_names import VAL_LOG_RATIO
from vidlit.runs.record import RunRecord
from vidlit.runs.signal_words import titles
from vidlit.runs.wording import duration


def comparison(runs: Sequence[RunRecord], budget: VideoBudget) -> dict[str, Any]:
    """What the template is filled with."""
    names = _names(runs)
    rows = {row.name: row for run in runs for row in run.logged_names if row.compared}
    figures = [compared(runs, row, names, WIDE if row is VAL_LOG_RATIO else HALF) for row in rows.values()]
    return {
        "names": names,
        "runs": [
            {"name": name, "summary": run.summary, "stopped_by": _stopped_by(run)}
            for name, run in zip(names, runs, strict=True)
        ],
        "figures": [each for each in figures if each is not None],
        "differences": _differences(runs),
        "samples": [kept_samples(run, budget) for run in runs],
        "change": _change,
        "duration": duration,
    }


def _stopped_by(run: RunRecord) -> str:
    return titles(str(run.summary.get("stopped_by", "")).split("+"), run.signals)


def _change(summary: Mapping[str, Any]) -> str:
    """Of the validation loss at the best step."""
    return "" if summary.get("gain") is None else VAL_LOG_RATIO.text(-summary["gain"])


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Short names, or whole paths where two runs share one."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [run.path.as_posix() for run in runs]


def _differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Options in which the runs differ, with the value of each."""
    flat = [dict(_flatten(run.config)) for run in runs]
    names = dict.fromkeys(name for options in flat for name in options)
    rows = [(name, [options.get(name, "") for options in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _flatten(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [row for key, each in value.items() for row in _flatten(each, f"{name}.{key}" if name else str(key))]
    return [(name, "null" if value is None else str(value))]
