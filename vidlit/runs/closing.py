"""How a run ended, in plain words."""

from __future__ import annotations

from typing import Any

from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_names import VAL_LOG_RATIO
from vidlit.runs.signal_words import REQUEST, read_signals, titles, words_for
from vidlit.runs.wording import duration

NO_SIGNAL = ("max_steps", "other", REQUEST)
"""Endings that no signal brought about."""


_CUT_SHORT = ("interrupted", "error")


def closing_paragraph(summary: dict[str, Any], directory: RunDirectory) -> str:
    """The run in plain words, and how to go on with it."""
    told, options = how_it_ended(summary, directory), go_on(summary, directory)
    if not options:
        return told
    return f"{told} {'To go on all the same:' if _stopped(summary) else 'Go on with'} {options}"


def how_it_ended(summary: dict[str, Any], directory: RunDirectory) -> str:
    """Why a run ended, which step is kept, how often videos were seen."""
    step, planned, reason = summary["stop_step"], summary["planned_steps"], summary["reason"]
    if summary["stopped_by"] in _CUT_SHORT:
        return f"{reason} It had come to step {step} of {planned}."
    seen, time = summary["exposures"], duration(summary["seconds"])
    match summary["stopped_by"]:
        case "max_steps":
            how = f"Trained all {planned} steps in {time}."
        case "request":
            how = f"Ended by `vidlit stop` at step {step} of {planned} after {time}."
        case "other":
            how = f"Ended at step {step} of {planned} after {time}."
        case signals:
            by = titles(signals.split("+"), read_signals(directory))
            how = f"Stopped at step {step} of {planned} after {time} by {by}."
    return (
        f"{how} {reason}{_pair(summary, directory)} {_kept(summary)} At the end each video had been seen "
        f"{seen['mean']:,.0f} times on average ({seen['min']:,} to {seen['max']:,}): {seen['band']}."
    )


def go_on(summary: dict[str, Any], directory: RunDirectory) -> str:
    """The options with which a run goes on that was cut short, has more to learn, or was stopped by a signal."""
    options = []
    if summary["stopped_by"] == "max_steps" and summary.get("still_improving"):
        options = [f"--trainer.max_steps {2 * summary['planned_steps']}"]
    elif _stopped(summary):
        signals = read_signals(directory)
        plugins = [f"--plugin {named}" for named in directory.read_plugins()]
        options = [*plugins, *(words_for(name, signals).go_on for name in summary["stopped_by"].split("+"))]
    elif summary["stopped_by"] not in (*_CUT_SHORT, REQUEST) or not directory.last_checkpoint.exists():
        return ""
    return " ".join([f"--ckpt_path {directory.last_checkpoint}", *options])


def _stopped(summary: dict[str, Any]) -> bool:
    return summary["stopped_by"] not in (*NO_SIGNAL, *_CUT_SHORT)


def _pair(summary: dict[str, Any], directory: RunDirectory) -> str:
    """Where a copy can be seen beside the clip it was copied from."""
    pairs = [evidence["pair"] for evidence in summary.get("evidence", {}).values() if "pair" in evidence]
    return f" Side by side: {directory.path / pairs[0]}." if pairs else ""


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
