"""The second phase of ``fit --refit``: again from the base model, on all clips, for as long as was found best.

Validation clips tell when to stop and are lost to training, a good part of a small set. When the stop is known,
all clips can be trained on, each as often as it had been seen at the step that was kept.
"""

from __future__ import annotations

from typing import Any

from vidlit.runs.directory import RunDirectory

UNFINISHED = ("running", "interrupted", "error")
"""What a summary says a run was stopped by while it is not over."""


def finished(summary: dict[str, Any], planned_steps: int) -> bool:
    """Whether a run is over: as planned now, or because a signal stopped it.

    Args:
        summary: of its directory; empty where there is none.
        planned_steps: of the command at hand, which may ask for more.
    """
    if not summary or summary["stopped_by"] in UNFINISHED:
        return False
    return bool(summary["stopped_by"] != "max_steps" or summary["planned_steps"] >= planned_steps)


def full_steps(summary: dict[str, Any]) -> int:
    """Steps in which all clips are seen as often as the training clips had been at the kept step.

    Args:
        summary: of a run that is over and had clips held out for validation.
    """
    clips = summary["num_clips"]
    scale = (clips["train"] + clips["val"]) / clips["train"]
    return round(int(summary["kept_step"]) * float(scale))


def is_lower_bound(summary: dict[str, Any]) -> bool:
    """Whether more steps than a run had might have been better still: nothing but ``max_steps`` ended it."""
    return summary["stopped_by"] == "max_steps" and bool(summary.get("still_improving"))


def no_refit_because(summary: dict[str, Any]) -> str | None:
    """Why a run gives nothing to train again for; ``None`` where it does."""
    if not summary.get("num_clips", {}).get("val"):
        return "there were no validation clips: all clips have been trained on"
    if summary.get("parts"):
        return "each part of the model has a best step of its own: refit runs of one (--model.expert high, then low)"
    if full_steps(summary) == 0:
        return "the base model was better than every check"
    return None


def refit_words(summary: dict[str, Any], directory: RunDirectory) -> list[str]:
    """The command line of the second phase; goes on where it was interrupted.

    Args:
        summary: of the first phase.
        directory: of the first phase, whose config is used again.
    """
    again = directory.refit
    checkpoint = again.last_checkpoint if again.last_checkpoint.is_file() else None
    return [
        "fit",
        f"--config={directory.config}",
        f"--trainer.max_steps={full_steps(summary)}",
        "--data.split.train_on_val=true",
        "--refit=false",
        "--run.watch=false",  # the first phase's page is open
        f"--ckpt_path={checkpoint or 'null'}",
    ]


def announcement(summary: dict[str, Any]) -> str:
    """What the second phase is about to do, for the user."""
    clips = summary["num_clips"]
    late = (
        " That is a lower bound: the validation loss was still improving at the last check."
        if is_lower_bound(summary)
        else ""
    )
    return (
        f"Refit: again from the base model, on all {clips['train'] + clips['val']} clips, for {full_steps(summary)} "
        f"steps: each clip is seen as often as at step {summary['kept_step']}, which was kept.{late}"
    )


def note_refit(directory: RunDirectory) -> None:
    """Write into the first phase's summary what became of the second."""
    again = directory.refit.read_summary()
    told = {name: again[name] for name in ("stopped_by", "stop_step", "kept_step", "planned_steps", "exposures")}
    weights = str(directory.refit.weights.relative_to(directory.path))
    first = directory.read_summary()
    directory.write_summary({**first, "refit": {**told, "weights": weights, "lower_bound": is_lower_bound(first)}})
