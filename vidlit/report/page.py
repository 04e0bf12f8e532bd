"""Gathers what a page shows and fills the template."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes

from vidlit import __version__
from vidlit.report import charts as curves
from vidlit.report.comparison import comparison
from vidlit.report.figure import HALF, LOW, NUM_LEVEL_COLOURS, WIDE, Drawing, duration, figure
from vidlit.report.videos import ShownVideo, VideoBudget, kept_samples, over_time
from vidlit.runs.closing import closing_paragraph
from vidlit.runs.directory import write_text
from vidlit.runs.logged_names import VAL_LOG_RATIO_BIN
from vidlit.runs.record import RunRecord
from vidlit.runs.redaction import redact_text
from vidlit.stopping.exposure import video_exposures

MAX_MEGABYTES = 24.0
"""Of videos inside a page; further ones are linked."""
_PERFORMANCE = {
    "perf/samples_per_s": "Samples per second",
    "perf/tokens_per_s": "Tokens per second",
    "perf/data_wait": "Time spent waiting for data",
    "perf/audit_share": "Time spent on audits",
    "perf/validation_share": "Time spent on checks",
    "perf/mfu": "Of the device's peak FLOP/s",
    "perf/peak_memory_gb": "Peak memory, GB",
}
_SHARES = {"perf/data_wait", "perf/audit_share", "perf/validation_share", "perf/mfu"}


@dataclass(frozen=True)
class Copy:
    """A sample that came near to a training clip."""

    video: ShownVideo | None
    pair: bool
    """Whether the video already shows the training clip beside it."""
    sample: str
    nearest: str
    ratio: float
    limit: float
    step: int


@dataclass(frozen=True)
class RunPage:
    """Everything shown of one run."""

    run: RunRecord
    title: str
    paragraph: str
    tiles: list[tuple[str, str, str]]
    """What, how much, and a word on it."""
    signals: list[dict[str, Any]]
    learning: list[Drawing] = field(default_factory=list)
    exposure: list[Drawing] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    copies_words: str = ""
    audits: list[Drawing] = field(default_factory=list)
    kept: list[ShownVideo] = field(default_factory=list)
    over_time: list[list[ShownVideo]] = field(default_factory=list)
    performance: list[Drawing] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""


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
    if len(runs) == 1:
        text = environment.get_template("run.html.jinja").render(page=_page(runs[0], budget), **values)
    else:
        text = environment.get_template("comparison.html.jinja").render(**comparison(runs, budget), **values)
    write_text(out, text)
    return out


# -- one run


def _page(run: RunRecord, budget: VideoBudget) -> RunPage:
    copies, words = _copies(run, budget)
    return RunPage(
        run=run,
        title=_title(run.summary),
        paragraph=_paragraph(run),
        tiles=_tiles(run.summary),
        signals=_signals(run),
        learning=_learning(run),
        exposure=_exposure(run),
        copies=copies,
        copies_words=words,
        audits=_audits(run),
        kept=kept_samples(run, budget),
        over_time=over_time(run, budget),
        performance=[
            Drawing(
                words,
                figure(
                    name.replace("/", "-"),
                    partial(curves.plain, curve=run.curve(name), share=name in _SHARES),
                    HALF,
                    words,
                ),
            )
            for name, words in _PERFORMANCE.items()
            if len(run.curve(name).steps)
        ],
        checks=_checks(run),
        config=redact_text(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)) if run.config else "",
    )


def _title(summary: Mapping[str, Any]) -> str:
    match summary.get("stopped_by"):
        case None:
            return "Not checked yet"
        case "running":
            return f"Running: step {summary['stop_step']} of {summary['planned_steps']}"
        case "interrupted":
            return f"Interrupted at step {summary['stop_step']} of {summary['planned_steps']}"
        case "error":
            return f"Failed at step {summary['stop_step']} of {summary['planned_steps']}"
        case "max_steps":
            return f"Trained all {summary['planned_steps']} steps"
        case "other":
            return f"Ended at step {summary['stop_step']} of {summary['planned_steps']}"
        case signals:
            return f"Stopped at step {summary['stop_step']} of {summary['planned_steps']} by {signals}"


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
        change, seen = 100 * math.expm1(-summary["gain"]), summary["exposures_at_best"]["mean"]
        tiles += [
            ("held-out loss", f"{change:+.1f} %", "at the best step, against the base model"),
            ("best step", f"{summary['best_step']:,}", "lowest held-out loss"),
            ("exposures, best step", f"{seen:.0f}", "times each video was seen by then"),
        ]
    seen = summary["exposures"]
    return [
        *tiles,
        ("exposures, end", f"{seen['mean']:.0f}", str(seen["band"])),
        ("trained", duration(summary["seconds"]), f"{summary['stop_step']:,} of {summary['planned_steps']:,} steps"),
    ]


def _signals(run: RunRecord) -> list[dict[str, Any]]:
    return list(run.decisions[-1]["verdicts"]) if run.decisions else []


def _learning(run: RunRecord) -> list[Drawing]:
    found = []
    if len(run.curve("train_eval/log_ratio").steps):
        found.append(
            Drawing(
                "Held-out clips and training clips",
                _draw("held-out", run, curves.held_out, WIDE),
                "change of the loss against the base model, %",
                [("val", "held-out clips"), ("train_eval", "training clips, scored alike")],
                "Both sets are scored at fixed noise, so two checks can be compared. Overfitting is where the held-out "
                "loss turns up while the loss on training clips falls on.",
            )
        )
    levels = run.curves_of(VAL_LOG_RATIO_BIN)
    if levels:
        legend = [
            (f"level-{round(number * (NUM_LEVEL_COLOURS - 1) / max(1, len(levels) - 1))}", name)
            for number, name in ((0, "lowest noise (detail)"), (len(levels) - 1, "highest noise (layout)"))
        ]
        found.append(
            Drawing(
                "By level of noise",
                _draw("levels", run, curves.noise_levels, HALF),
                "change of the held-out loss, %",
                legend[: len(levels)],
                "Little noise asks for detail, much noise for layout and motion: they need not turn at once.",
            )
        )
    if len(run.curve("divergence/statistic").steps):
        found.append(
            Drawing(
                "The test behind the stop",
                _draw("statistic", run, curves.statistic, HALF),
                "standard errors",
                [("val", "rise since the lowest stretch"), ("stop", "threshold")],
                "Above the threshold the rise is larger than chance explains. It must also last, and hold across "
                "source videos.",
            )
        )
    if len(run.curve("train/loss").steps):
        found.append(
            Drawing(
                "Loss of the training batches",
                _draw("train", run, curves.training_loss, LOW),
                "loss at random noise",
                [("train", "each logged step, and running mean")],
                "Noise and clips differ from step to step, so this curve says little about overfitting.",
            )
        )
    return found


def _draw(name: str, run: RunRecord, draw: Callable[[Axes, RunRecord], None], size: tuple[int, int]) -> Markup:
    return figure(name, lambda axes: draw(axes, run), size, name)


def _exposure(run: RunRecord) -> list[Drawing]:
    train = [row for row in run.exposures if row.split == "train"]
    if not train:
        return []
    seen = video_exposures([row.exposures for row in train], [row.video for row in train])
    least, most = min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__)
    return [
        Drawing(
            "How often each source video was trained on",
            figure("exposure", partial(curves.exposure_histogram, exposures=seen), HALF, "exposures"),
            "source videos",
            [],
            f"{len(seen)} source videos with {len(train)} clips. Seen least: {least} ({seen[least]}); most: {most} "
            f"({seen[most]}).",
        ),
        Drawing(
            "Over the run",
            _draw("exposure-steps", run, curves.exposure_over_time, HALF),
            "times a source video was seen",
            [("train_eval", "on average"), ("train", "at most")],
            "Up to 10 conservative, up to 50 moderate, under 100 high, from 100 on risky.",
        ),
    ]


def _copies(run: RunRecord, budget: VideoBudget) -> tuple[list[Copy], str]:
    verdicts = run.verdicts("copies")
    if not verdicts:
        return [], "No audits were made: --samples.num_audit 16 looks for copies and lost diversity while training."
    shown: dict[str, Copy] = {}
    for verdict in verdicts:
        evidence = verdict.evidence
        # Where nothing is a copy, what comes nearest at the end still shows how far away that is.
        if "sample" not in evidence or not (evidence["copies"] or verdict is verdicts[-1]):
            continue
        sample, pair = str(evidence["sample"]), evidence.get("pair")
        path = run.path / str(pair or sample)
        video = budget.show(path, run.caption(run.path / sample), int(evidence["step"])) if path.is_file() else None
        shown[sample] = Copy(
            video,
            pair is not None,
            run.caption(run.path / sample),
            str(evidence["nearest_clip"]),
            float(evidence["ratio"]),
            float(evidence["limit"]),
            int(evidence["step"]),
        )
    return list(shown.values()), verdicts[-1].reason


def _audits(run: RunRecord) -> list[Drawing]:
    found = []
    if len(run.curve("copies/ratio_min").steps):
        found.append(
            Drawing(
                "Nearest sample to any training clip",
                _draw("copies", run, curves.copies, HALF),
                "of the distance of a new take",
                [("val", "nearest sample"), ("stop", "below: a copy")],
            )
        )
    if len(run.curve("diversity/rke").steps):
        found.append(
            Drawing(
                "How different the samples are",
                _draw("diversity", run, curves.diversity, HALF),
                "effective number of different samples",
                [("val", "samples"), ("best", "real clips have at least")],
            )
        )
    return found


def _checks(run: RunRecord) -> list[dict[str, Any]]:
    """One row for each check, in numbers."""
    actions = {decision["step"]: decision for decision in run.decisions}
    named = {
        name: dict(zip(*run.curve(name), strict=True)) for name in ("val/loss", "val/log_ratio", "train_eval/log_ratio")
    }
    seen = dict(zip(*run.curve("exposure/mean"), strict=True))
    rows = []
    for step in run.curve("train_eval/log_ratio").steps.tolist():
        decision = actions.get(step, {"action": "", "reason": ""})
        rows.append(
            {
                "step": step,
                "val_loss": named["val/loss"].get(step),
                "val": float(curves.percent(named["val/log_ratio"].get(step, math.nan))),
                "train_eval": float(curves.percent(named["train_eval/log_ratio"].get(step, math.nan))),
                "exposures": seen.get(step),
                "action": decision["action"],
                "reason": decision["reason"],
            }
        )
    return rows
