"""How a run ended, in plain words."""

from __future__ import annotations

from typing import Any

from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_names import VAL_LOG_RATIO
from vidlit.runs.signal_words import REQUEST, read_signals, titles, words_for
from vidlit.runs.wording import duration

NO_SIGNAL = ("max_steps", "other", REQUEST)
"""Endings that no signal brought about."""


def closing_paragraph(summary: dict[str, Any], directory: RunDirectory) -> str:
    """The run in plain words: why it stopped, which step is kept, how often videos were seen, where things lie."""
    if summary["stopped_by"] in ("interrupted", "error"):
        return (
            f"{summary['reason']} Step {summary['stop_step']} of {summary['planned_steps']} is saved. Go on with "
            f"--ckpt_path {directory.last_checkpoint}"
        )
    seen = summary["exposures"]
    stopped_by = titles(summary["stopped_by"].split("+"), read_signals(directory))
    return (
        f"Stopped at step {summary['stop_step']} of {summary['planned_steps']} after {duration(summary['seconds'])} by "
        f"{stopped_by}. {summary['reason']}{_pair(summary, directory)} {_kept(summary)} At the end each "
        f"video had been seen {seen['mean']:,.0f} times on average ({seen['min']:,} to {seen['max']:,}): "
        f"{seen['band']}. "
        f"Weights: {directory.weights}. Samples, curves and decisions: {directory.path}{_go_on(summary, directory)}"
    )


def _pair(summary: dict[str, Any], directory: RunDirectory) -> str:
    """Where a copy can be seen beside the clip it was copied from."""
    pairs = [evidence["pair"] for evidence in summary.get("evidence", {}).values() if "pair" in evidence]
    return f" Side by side: {directory.path / pairs[0]}." if pairs else ""


def _go_on(summary: dict[str, Any], directory: RunDirectory) -> str:
    """How to train on where a signal ended the run, for those who know better."""
    if summary["stopped_by"] == REQUEST:
        return f". To go on all the same: --ckpt_path {directory.last_checkpoint}"
    if summary["stopped_by"] in NO_SIGNAL:
        return ""
    signals = read_signals(directory)
    plugins = [f"--plugin {named}" for named in directory.read_plugins()]
    options = [*plugins, *(words_for(name, signals).go_on for name in summary["stopped_by"].split("+"))]
    return f". To go on all the same: --ckpt_path {directory.last_checkpoint} {' '.join(options)}"


def _kept(summary: dict[str, Any]) -> str:
    """Which weights the run ends with, and how good they are."""
    if "parts" in summary:
        told = " ".join(f"{name}: {_kept_of(part)}" for name, part in summary["parts"].items())
        return f"{told} (Exposures count the steps of all parts.)"
    return _kept_of(summary)


def _kept_of(summary: dict[str, Any]) -> str:
    """The same of one part of the model, or of all."""
    step = summary["kept_step"]
    if summary["kept"] == "base model":
        return "The base model itself is kept (step 0): no check was better."
    if summary["kept_gain"] is None:
        return f"The last step's weights are kept ({step}): there were no validation clips to choose by."
    which = {
        "best": "is kept",
        "last": "is kept, the last one",
        "conservative": f"is kept, the earliest within a tenth of the best gain (step {summary['best_step']}'s)",
    }[summary["kept"]]
    return (
        f"Step {step} {which}: its validation loss is {VAL_LOG_RATIO.text(-summary['kept_gain'])} against the base "
        f"model's, and each video had been seen {summary['exposures_at_kept']['mean']:,.0f} times by then."
    )
