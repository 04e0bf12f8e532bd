"""What the stop would have done on other trainers' loss curves (CSV)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vidlit.commands.cli.plain_parser import PlainParser, true_or_false
from vidlit.runs.logged_names import VAL_LOG_RATIO


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    from vidlit.runs.wording import say
    from vidlit.stopping.logged_curves import read_history

    options = parser().parse_args(words[1:])
    history, first = read_history(options.file, options.step, options.val, options.train)
    told = judge(history, options.warmup_steps)
    if options.json:
        print(json.dumps({"first_step": first, **told}, indent=2))
        return
    if first:
        say(f"The first row with a validation loss, step {first}, stands for step 0.")
    if not history.train_eval_videos:
        say("There is no training loss: plateaus cannot be detected.")
    for change in told["changes"]:
        say(f"step {change['step']}: {change['reason']}")
    say(_ending(told))


def judge(history: Any, warmup_steps: int = 0) -> dict[str, Any]:
    """Hands the checks of a run to the rule, one after the other, up to its stop.

    Args:
        history: The whole run (:class:`vidlit.stopping.DivergenceHistory`).
        warmup_steps: Optimizer steps until the learning rate's warm-up was over.

    Returns:
        stop_step (``None``: never), best_step, kept (log-ratio there), last_step, lowest (step and log-ratio of the
        lowest check of the whole run), and changes: step, case, action and reason wherever the case changed.
    """
    from vidlit.stopping import Stopper, best_check

    stopper = Stopper(history.val_videos, history.train_eval_videos, warmup_steps=warmup_steps)
    changes: list[dict[str, Any]] = []
    stop_step = None
    for step, val, train_eval in list(zip(history.steps, history.val, history.train_eval, strict=True))[1:]:
        verdict = stopper.update(int(step), val, train_eval)
        kind = (verdict.evidence["case"], verdict.action)
        if not changes or kind != (changes[-1]["case"], changes[-1]["action"]):
            changes.append({"step": int(step), "case": kind[0], "action": kind[1], "reason": verdict.reason})
        if verdict.action == "stop":
            stop_step = int(step)
            break
    curve = history.val.mean(axis=1)
    kept = int(history.steps.searchsorted(stopper.best_step))
    lowest = best_check(history)
    return {
        "stop_step": stop_step,
        "best_step": stopper.best_step,
        "kept": float(curve[kept]),
        "last_step": int(history.steps[-1]),
        "lowest": {"step": int(history.steps[lowest]), "log_ratio": float(curve[lowest])},
        "changes": changes,
    }


def _ending(told: dict[str, Any]) -> str:
    kept, lowest = VAL_LOG_RATIO.text(told["kept"]), told["lowest"]
    if told["stop_step"] is None:
        return f"Not stopped by step {told['last_step']}; the best is step {told['best_step']} ({kept} against step 0)."
    text = (
        f"Stopped at step {told['stop_step']} of {told['last_step']}; step {told['best_step']} kept ({kept} against "
        "step 0)"
    )
    if lowest["step"] == told["best_step"]:
        return f"{text}, which is the lowest of the whole file."
    return f"{text}; the lowest of the whole file is step {lowest['step']} ({VAL_LOG_RATIO.text(lowest['log_ratio'])})."


def parser() -> PlainParser:
    """The command's options."""
    made = PlainParser(prog="vidlit judge", description="What the stop would have done on logged loss curves.")
    made.add_argument("file", type=Path, help="CSV file with steps, validation losses and, if any, training losses")
    made.add_argument("--step", default="", help="column of optimizer steps; found by its name if left out")
    made.add_argument(
        "--val", nargs="+", default=[], help="columns of validation losses, one a recording or their mean"
    )
    made.add_argument("--train", nargs="+", default=[], help="columns of training losses, best scored as validation is")
    made.add_argument("--warmup_steps", type=int, default=0, help="steps until the learning rate's warm-up was over")
    made.add_argument("--json", type=true_or_false, default=False, help="print numbers, not sentences")
    return made
