"""Gathers what a page shows and fills the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from vidlit import __version__
from vidlit.report.charts import Drawing, exposure_histogram, sections
from vidlit.report.comparison import comparison
from vidlit.report.videos import Copy, ShownVideo, VideoBudget, kept_samples, near_copies, over_time
from vidlit.runs.closing import closing_paragraph
from vidlit.runs.directory import write_text
from vidlit.runs.logged_names import (
    EXPOSURE,
    EXPOSURE_MEAN,
    SECTIONS,
    TRAIN_EVAL_LOG_RATIO,
    VAL_LOG_RATIO,
    VAL_LOSS,
)
from vidlit.runs.record import RunRecord, damage_told
from vidlit.runs.redaction import redact_text
from vidlit.runs.signal_words import titles, words_for
from vidlit.runs.wording import duration

MAX_MEGABYTES = 24.0
"""Of videos inside a page; further ones are linked."""
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


@dataclass(frozen=True)
class RunPage:
    """Everything shown of one run."""

    run: RunRecord
    title: str
    paragraph: str
    tiles: list[tuple[str, str, str]]
    """What, how much, and a word on it."""
    signals: list[dict[str, Any]]
    charts: dict[str, list[Drawing]]
    """By section; those of plugins have sections of their own."""
    missing: dict[str, str]
    """By section, the options that fill it."""
    checks: list[dict[str, Any]]
    copies: list[Copy]
    copies_words: str
    kept: list[ShownVideo]
    over_time: list[list[ShownVideo]]
    config: str

    @property
    def more_sections(self) -> list[str]:
        """Sections that only plugins fill."""
        return [section for section, drawn in self.charts.items() if drawn and section not in SECTIONS]


def write_report(paths: Sequence[Path], out: Path | None = None, megabytes: float = MAX_MEGABYTES) -> Path:
    """Write the page of one run, or of several side by side.

    Args:
        paths: run directories, finished or not.
        out: file to write; ``None`` takes ``report.html`` of the first run, or ``comparison.html`` beside several.
        megabytes: of videos to put into the page; further ones are linked.

    Returns:
        Where it is.

    Raises:
        UserError: a folder holds no run.
    """
    runs = [RunRecord(Path(path)) for path in paths]
    if out is None:
        out = runs[0].directory.report if len(runs) == 1 else runs[0].path.resolve().parent / "comparison.html"
    budget = VideoBudget(out, megabytes)
    environment = Environment(
        loader=PackageLoader("vidlit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values: dict[str, Any] = {"version": __version__}
    with damage_told(runs[0].path if len(runs) == 1 else runs[0].path.parent):
        if len(runs) == 1:
            text = environment.get_template("run.html.jinja").render(page=_page(runs[0], budget), **values)
        else:
            text = environment.get_template("comparison.html.jinja").render(**comparison(runs, budget), **values)
    write_text(out, text)
    return out


# -- one run


def _page(run: RunRecord, budget: VideoBudget) -> RunPage:
    copies = run.verdicts("copies")
    charts = sections(run)
    histogram = exposure_histogram(run)
    charts[EXPOSURE] = [*([] if histogram is None else [histogram]), *charts[EXPOSURE]]
    return RunPage(
        run=run,
        title=_title(run),
        paragraph=_paragraph(run),
        tiles=_tiles(run.summary),
        signals=_signals(run),
        charts=charts,
        missing=_missing(run),
        checks=_checks(run),
        copies=near_copies(run, budget),
        copies_words=copies[-1].reason if copies else "",
        kept=kept_samples(run, budget),
        over_time=over_time(run, budget),
        config=redact_text(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)) if run.config else "",
    )


def _title(run: RunRecord) -> str:
    stopped_by = run.summary.get("stopped_by")
    signals = titles((stopped_by or "").split("+"), run.signals)
    return _TITLES.get(stopped_by, _STOPPED).format(signals=signals, **run.summary)


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
        return f"{summary['reason']} Last written {written}: if that is long ago, the run was killed."
    return redact_text(closing_paragraph(summary, run.directory))


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
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
    seen = summary["exposures"]
    return [
        *tiles,
        ("exposures, end", f"{seen['mean']:,.0f}", str(seen["band"])),
        ("trained", duration(summary["seconds"]), f"{summary['stop_step']:,} of {summary['planned_steps']:,} steps"),
    ]


def _missing(run: RunRecord) -> dict[str, str]:
    """The options that would have had more logged, by section."""
    found: dict[str, list[str]] = {}
    for row in run.logged_names:
        if row.section and row.needs and row.kind == "curve" and not run.curves_of(row):
            found.setdefault(row.section, []).append(f"--{row.needs}")
    return {section: ", ".join(dict.fromkeys(options)) for section, options in found.items()}


def _checks(run: RunRecord) -> list[dict[str, Any]]:
    """One row for each check, in numbers."""
    decisions = {decision["step"]: decision for decision in run.decisions}
    columns = {
        row.name: dict(zip(*run.curve(row.name), strict=True))
        for row in (VAL_LOSS, VAL_LOG_RATIO, TRAIN_EVAL_LOG_RATIO, EXPOSURE_MEAN)
    }
    rows = []
    for step in columns[TRAIN_EVAL_LOG_RATIO.name]:
        decision = decisions.get(int(step), {"action": "", "reason": ""})
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
                "reason": decision["reason"],
            }
        )
    return rows
