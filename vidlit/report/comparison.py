"""Several runs on one page: a table, their curves in one drawing, and the options in which they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from vidlit.report import charts as curves
from vidlit.report.figure import HALF, NUM_RUN_COLOURS, WIDE, Drawing, duration, figure
from vidlit.report.videos import VideoBudget, kept_samples
from vidlit.runs.record import RunRecord

LOSS = "change of the loss against the base model, %"


def comparison(runs: Sequence[RunRecord], budget: VideoBudget) -> dict[str, Any]:
    """What the template is filled with."""
    drawn = [
        ("val/log_ratio", "Held-out clips", LOSS, True, WIDE),
        (
            "train_eval/log_ratio",
            "Training clips, scored alike",
            "change of the loss against the base model, %",
            True,
            HALF,
        ),
        ("exposure/mean", "Exposures", "times each source video was seen", False, HALF),
        ("diversity/rke", "How different the samples are", "effective number of different samples", False, HALF),
        ("perf/samples_per_s", "Throughput", "samples per second", False, HALF),
    ]
    names = _names(runs)
    figures = [
        Drawing(
            title,
            figure(
                name.replace("/", "-"),
                partial(curves.compare, runs=runs, name=name, in_percent=in_percent),
                size,
                title,
            ),
            unit,
            [(f"run-{number % NUM_RUN_COLOURS}", each) for number, each in enumerate(names)] if size == WIDE else [],
            "A dot marks each run's best step." if size == WIDE else "",
        )
        for name, title, unit, in_percent, size in drawn
        if any(len(run.curve(name).steps) for run in runs)
    ]
    return {
        "names": names,
        "runs": [{"name": name, "summary": run.summary} for name, run in zip(names, runs, strict=True)],
        "figures": figures,
        "differences": _differences(runs),
        "samples": [kept_samples(run, budget) for run in runs],
        "change": _change,
        "duration": duration,
    }


def _change(summary: Mapping[str, Any]) -> str:
    """Of the held-out loss at the best step."""
    return "" if summary.get("gain") is None else f"{100 * math.expm1(-summary['gain']):+.1f} %"


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
