"""What the page of one run says, section by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from vidlit.report.charts import Chart, all_curves, axes, exposure_histogram, sections
from vidlit.report.page import View, section
from vidlit.report.videos import Addresses, near_copies, samples
from vidlit.runs.closing import closing_paragraph
from vidlit.runs.logged_names import (
    DEVICE_MEMORY,
    EXPOSURE,
    EXPOSURE_MEAN,
    MAIN_MEMORY,
    OVERFITTING,
    SAMPLES,
    SECTIONS,
    THROUGHPUT,
    TRAIN_EVAL_LOG_RATIO,
    VAL_LOG_RATIO,
    VAL_LOSS,
)
from vidlit.runs.record import RunRecord
from vidlit.runs.redaction import redact_text
from vidlit.runs.signal_words import titles, words_for
from vidlit.runs.wording import duration

MOST_CLIPS = 1_000
"""Of the data that a page lists: of more, a table is no way to look at them, and pages become long."""
LOG_LINES = 200
_TITLES = {
    None: "Not checked yet",
    "running": "Running: step {stop_step} of {planned_steps}",
    "interrupted": "Interrupted at step {stop_step} of {planned_steps}",
    "error": "Failed at step {stop_step} of {planned_steps}",
    "max_steps": "Trained all {planned_steps} steps",
    "request": "Ended by `vidlit stop` at step {stop_step} of {planned_steps}",
    "other": "Ended at step {stop_step} of {planned_steps}",
}
_STOPPED = "Stopped at step {stop_step} of {planned_steps} by {signals}"


def run_view(run: RunRecord, addresses: Addresses) -> View:
    """The page of a run, finished or not.

    Args:
        run: what was read of it.
        addresses: where a browser finds its videos.
    """
    drawn = _charts(run)
    keys = {id(chart): str(number) for number, chart in enumerate(chart for each in drawn.values() for chart in each)}
    title = title_of(run)
    copies = run.verdicts("copies")
    shown = samples(run, addresses)

    def charts(name: str) -> dict[str, Any]:
        return {
            "charts": [(keys[id(chart)], chart) for chart in drawn.get(name, ())],
            "missing": _missing(run).get(name, ""),
        }

    more = [name for name in drawn if drawn[name] and name not in SECTIONS]
    return View(
        title=f"{run.name}: {title}",
        sections={
            "status": section(
                "status", name=run.name, title=title, paragraph=_paragraph(run), tiles=_tiles(run), going=run.is_running
            ),
            "why": section("why", signals=_signals(run)),
            "curves": section("curves", **charts(OVERFITTING), checks=_checks(run)),
            "exposure": section("plain", heading="Exposure", **charts(EXPOSURE)),
            "copies": section(
                "copies",
                **charts(SAMPLES),
                words=copies[-1].reason if copies else "",
                copies=near_copies(run, addresses),
            ),
            "samples": section("samples", rows=shown),
            "data": section("data", **_data(run, addresses)),
            "throughput": section("plain", heading="Throughput", **charts(THROUGHPUT)),
            **{f"more_{place}": section("plain", heading=name, **charts(name)) for place, name in enumerate(more)},
            "log": section("log", lines=[redact_text(line) for line in run.last_lines(LOG_LINES)]),
            "config": section(
                "config",
                text=redact_text(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)) if run.config else "",
                path=str(run.directory.config),
            ),
        },
        charts={keys[id(chart)]: chart.as_json() for each in drawn.values() for chart in each},
        data={"kind": "run", "axes": axes(run), **_each_once(shown)},
    )


def _each_once(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of samples with numbers of videos in the place of addresses: a clip that many are near to is held once."""
    videos: dict[str, int] = {}
    numbered = [
        {
            **row,
            "shots": [
                shot | {what: videos.setdefault(shot[what], len(videos)) for what in ("video", "near") if what in shot}
                for shot in row["shots"]
            ],
        }
        for row in rows
    ]
    return {"samples": numbered, "videos": list(videos)}


def title_of(run: RunRecord) -> str:
    """How it stands, in a few words."""
    stopped_by = run.summary.get("stopped_by")
    signals = titles((stopped_by or "").split("+"), run.signals)
    return _TITLES.get(stopped_by, _STOPPED).format(signals=signals, **run.summary)


def _charts(run: RunRecord) -> dict[str, list[Chart]]:
    drawn = sections(run)
    histogram = exposure_histogram(run)
    drawn[EXPOSURE] = [*([] if histogram is None else [histogram]), *drawn.get(EXPOSURE, [])]
    return drawn


def _signals(run: RunRecord) -> list[dict[str, Any]]:
    """What each said at the latest check, under its title."""
    verdicts = run.decisions[-1]["verdicts"] if run.decisions else ()
    return [{**verdict, "title": words_for(verdict["signal"], run.signals).title} for verdict in verdicts]


def _paragraph(run: RunRecord) -> str:
    summary = run.summary
    written = f"{run.last_written:%Y-%m-%d %H:%M:%S}"
    if not summary:
        return f"No check has been made yet, or the run ended before the first one. Last written {written}."
    if summary["stopped_by"] == "running":
        match run.has_process:
            case True:
                return f"{summary['reason']} Last written {written}."
            case False:
                return (
                    f"{summary['reason']} No process trains here any more: it was killed after {written}. Go on with "
                    f"--ckpt_path {run.directory.last_checkpoint}"
                )
        return f"{summary['reason']} Last written {written}: if that is long ago, the run was killed."
    return redact_text(closing_paragraph(summary, run.directory))


def _tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """What, how much, and a word on it."""
    summary = run.summary
    if "exposures" not in summary:
        return []
    tiles = []
    if summary["best_step"] is not None:
        loss, seen = VAL_LOG_RATIO.text(-summary["gain"]), summary["exposures_at_best"]["mean"]
        tiles += [
            ("validation loss", loss, "at the best step, against the base model"),
            ("best step", f"{summary['best_step']:,}", "lowest validation loss"),
            ("exposures, best step", f"{seen:,.0f}", "times each video was seen by then"),
        ]
    seen, step, planned = summary["exposures"], summary["stop_step"], summary["planned_steps"]
    going = summary["stopped_by"] == "running"
    tiles += [
        ("exposures, now" if going else "exposures, end", f"{seen['mean']:,.0f}", str(seen["band"])),
        ("trained", duration(summary["seconds"]), f"{step:,} of {planned:,} steps"),
    ]
    if going and step:
        left = summary["seconds"] / step * (planned - step)
        tiles.append(("left, at most", duration(left), f"to step {planned:,}; it stops earlier if it overfits"))
    memory = {"main memory": MAIN_MEMORY, "GPU memory": DEVICE_MEMORY}
    words = {"main memory": "of the process", "GPU memory": "in use"}
    for name, row in memory.items():
        if len(values := run.curve(row.name).values):
            tiles.append((name, f"{values[-1]:.1f} GB", words[name]))
    return tiles


def _missing(run: RunRecord) -> dict[str, str]:
    """The options that would have had more logged, by section."""
    found: dict[str, list[str]] = {}
    for row in run.logged_names:
        if row.section and row.needs and row.kind == "curve" and not all_curves(run, row):
            found.setdefault(row.section, []).append(f"--{row.needs}")
    return {name: ", ".join(dict.fromkeys(options)) for name, options in found.items()}


def _checks(run: RunRecord) -> list[dict[str, Any]]:
    """One row for each check, in numbers; a reason where it is another than that of the row before."""
    decisions = {decision["step"]: decision for decision in run.decisions}
    columns = {
        row.name: dict(zip(*run.curve(row.name), strict=True))
        for row in (VAL_LOSS, VAL_LOG_RATIO, TRAIN_EVAL_LOG_RATIO, EXPOSURE_MEAN)
    }
    rows: list[dict[str, Any]] = []
    said: tuple[Any, ...] = ()
    for step in columns[TRAIN_EVAL_LOG_RATIO.name]:
        decision: Mapping[str, Any] = decisions.get(int(step), {"action": "", "reason": "", "signals": ()})
        says = (decision["action"], *decision.get("signals", ()))
        rows.append(
            {
                "step": int(step),
                "numbers": [
                    f"{columns[VAL_LOSS.name][step]:.4f}" if step in columns[VAL_LOSS.name] else "",
                    *(
                        row.text(columns[row.name][step]) if step in columns[row.name] else ""
                        for row in (VAL_LOG_RATIO, TRAIN_EVAL_LOG_RATIO, EXPOSURE_MEAN)
                    ),
                ],
                "action": decision["action"],
                "reason": decision["reason"] if says != said else "",
            }
        )
        said = says
    return rows


def _data(run: RunRecord, addresses: Addresses) -> dict[str, Any]:
    """The clips, how often each was seen, and what is left out."""
    seen = {row.clip_id: row.exposures for row in run.exposures}
    shown = run.dataset[:MOST_CLIPS]
    return {
        "clips": [
            {"clip": clip, "seen": seen.get(clip.clip_id, 0), "source": addresses.of_clip(run, number, clip)}
            for number, clip in enumerate(shown)
        ],
        "left_out": run.left_out[:MOST_CLIPS],
        "num_left_out": len(run.left_out),
        "total": max(len(run.exposures), len(run.dataset)),
    }
