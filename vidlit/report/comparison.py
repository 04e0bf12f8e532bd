"""Several runs on one page: curves in one chart, samples of the same prompts, and the options in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vidlit.data.identity import DataIdentity
from vidlit.report.charts import NUM_COLOURS, axes, compared
from vidlit.report.page import View, section
from vidlit.report.run_view import title_of
from vidlit.report.videos import Addresses, samples
from vidlit.runs.logged_names import VAL_LOG_RATIO
from vidlit.runs.record import RunRecord
from vidlit.runs.wording import duration

MOST_PROMPTS = 12
"""Shown side by side."""


def comparison_view(runs: Sequence[RunRecord], addresses: Addresses) -> View:
    """The page of several runs.

    Args:
        runs: what was read of them.
        addresses: where a browser finds their videos.
    """
    names = short_names(runs)
    rows = {row.name: row for run in runs for row in run.logged_names if row.compared}
    drawn = [chart for row in rows.values() if (chart := compared(runs, row, names)) is not None]
    return View(
        title=f"Comparison of {', '.join(names)}",
        sections={
            "table": section(
                "table",
                heading=f"{len(runs)} runs side by side",
                runs=[
                    row_of(run, name) | {"colour": f"run-{number % NUM_COLOURS}"}
                    for number, (run, name) in enumerate(zip(runs, names, strict=True))
                ],
                warnings=_warnings(runs, names),
                compare=False,
            ),
            "curves": section(
                "plain",
                heading="Curves",
                charts=[(str(number), chart) for number, chart in enumerate(drawn)],
                missing="",
            ),
            "samples": section("side_by_side", prompts=_side_by_side(runs, addresses), names=names),
            "differences": section("differences", names=names, rows=_differences(runs)),
        },
        charts={str(number): chart.as_json() for number, chart in enumerate(drawn)},
        data={"kind": "comparison", "axes_of": {name: axes(run) for name, run in zip(names, runs, strict=True)}},
    )


def row_of(run: RunRecord, name: str, **more: str) -> dict[str, Any]:
    """A run as a row of a table of runs."""
    summary = run.summary
    seen, at_best = summary.get("exposures") or {}, summary.get("exposures_at_best") or {}
    best = summary.get("best_step")
    return {
        "name": name,
        "stands": title_of(run),
        "going": run.is_running,
        "numbers": [
            summary.get("stop_step", ""),
            "" if best is None else best,
            "" if summary.get("gain") is None else VAL_LOG_RATIO.text(-summary["gain"]),
            f"{at_best['mean']:,.0f}" if at_best else "",
            f"{seen['mean']:,.0f}" if seen else "",
        ],
        "band": seen.get("band", ""),
        "trained": duration(summary["seconds"]) if "seconds" in summary else "",
        "colour": "",
        "address": "",
        "id": "",
        **more,
    }


def short_names(runs: Sequence[RunRecord]) -> list[str]:
    """Names of runs, or whole paths where two share one."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [run.path.as_posix() for run in runs]


def _warnings(runs: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """What makes curves of different runs say different things."""
    said = []
    first, *others = runs
    clips = [DataIdentity.read(run.directory.clips) for run in runs]
    for number, run in enumerate(others, 1):
        pair = f"{names[number]} and {names[0]}"
        here, there = clips[number], clips[0]
        if here is not None and there is not None and here.digests["val"] != there.digests["val"]:
            said.append(f"{pair} have other validation clips: their validation losses cannot be compared.")
        elif here is not None and there is not None and here.digests["train"] != there.digests["train"]:
            said.append(f"{pair} were trained on other clips.")
        bases = [str((each.config.get("model") or {}).get("base")) for each in (run, first)]
        if bases[0] != bases[1]:
            said.append(
                f"{pair} have other base models ({bases[0]}, {bases[1]}): each loss is against its own base model's."
            )
    return said


def _side_by_side(runs: Sequence[RunRecord], addresses: Addresses) -> list[tuple[str, list[Mapping[str, Any] | None]]]:
    """The latest sample of each run for prompts that most of them share."""
    latest: dict[tuple[str, str], list[Mapping[str, Any] | None]] = {}
    for number, run in enumerate(runs):
        for row in samples(run, addresses, latest=True):
            shots = latest.setdefault((row["kind"], row["prompt"]), [None] * len(runs))
            shots[number] = shots[number] or row["shots"][-1]
    by_number = sorted(latest.items(), key=lambda each: sum(shot is None for shot in each[1]))
    return [(prompt, shots) for (_, prompt), shots in by_number[:MOST_PROMPTS]]


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
