"""Cross-validation: one fit a fold, then the best number of steps.

For sets where a few validation videos are too few to tell: each fold holds out other recordings and is a run of its
own. The median over folds is the number of steps for a training on all clips.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidlit import plugins
from vidlit.commands.cli.plain_parser import PlainParser
from vidlit.commands.cli.refit import finished, full_steps, is_lower_bound
from vidlit.commands.cli.run_lightning import loading, run_lightning
from vidlit.errors import Interrupted, UserError
from vidlit.runs.directory import FOLDS, RunDirectory, write_text
from vidlit.runs.rank import rank_from_environment
from vidlit.runs.redaction import redact, redact_text
from vidlit.runs.wording import say

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from rich.console import Console


def run(words: list[str]) -> None:
    """Run the command: fit once a fold, leaving out those that are over, and say what all of them say.

    Args:
        words: of the command line, from the command's name on.
    """
    with loading("torch and Lightning"):
        from vidlit.commands.cli.parse_only import ParseOnly

    options, fit_words = parser().parse_known_args(words[1:])
    config = ParseOnly(["fit", *fit_words]).config.fit
    if config.get("ckpt_path") is not None:
        raise UserError("kfold resumes by itself where it was interrupted: leave out --ckpt_path.")
    root = config.run.dir / config.run.name / f"{FOLDS}{options.folds}"
    _same_config(root / "config.json", config)
    folds = [RunDirectory(root / f"fold_{number}") for number in range(options.folds)]
    shows = rank_from_environment() == 0
    for number, directory in enumerate(folds):
        if finished(directory.read_summary(), config.trainer.max_steps):
            continue
        if shows:
            print(f"\nfold {number} of {options.folds}")
        try:
            run_lightning(fold_words(fit_words, number, options.folds, directory), directory)
        except Interrupted as interrupt:
            interrupt.advice = "Go on with the same command."
            raise
        gc.collect()
    if shows:
        told = summarise_folds([directory.read_summary() for directory in folds])
        path = root / "folds.json"
        write_text(path, json.dumps(told, indent=2) + "\n")
        print_folds(told, [*plugins.as_words(), *fit_words], path)


def parser() -> PlainParser:
    """The options beside those of ``fit``: jsonargparse does not part options it knows from those it does not."""
    made = PlainParser(
        prog="vidlit kfold",
        description="Cross-validation: one fit for each fold of recordings, then the best number of steps for all.",
        epilog="All options of `vidlit fit` work here, too: see `vidlit fit --help`.",
        allow_abbrev=False,
    )
    made.add_argument("--folds", type=int, default=5, help="number of parts that the recordings are divided into")
    return made


def _same_config(path: Path, config: Namespace) -> None:
    """Keep the config of the folds, or make sure that it is the one kept.

    Raises:
        UserError: folds of another config lie there.
    """
    text = json.dumps(redact(config.as_dict()), indent=2, default=str, sort_keys=True)
    if path.is_file() and path.read_text() != text:
        raise UserError(
            f"{path.parent} holds folds made with other options ({path.name}): choose another --run.name, or delete it."
        )
    write_text(path, text)


def fold_words(words: Sequence[str], number: int, num_folds: int, directory: RunDirectory) -> list[str]:
    """The ``fit`` of one fold; goes on where it was interrupted.

    Args:
        words: options of ``vidlit kfold`` that ``fit`` knows.
        number: of the fold, from 0.
        num_folds: of them.
        directory: of the fold.
    """
    checkpoint = directory.last_checkpoint if directory.last_checkpoint.is_file() else None
    fold = f'--data.split.fold={{"number": {number}, "of": {num_folds}}}'
    return ["fit", *words, fold, "--refit=false", "--run.watch=false", f"--ckpt_path={checkpoint or 'null'}"]


def summarise_folds(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all folds together say.

    Args:
        summaries: of each fold's run.

    Returns:
        folds (the numbers of each), gain (mean, lowest, highest and standard error over folds, as log-ratios), and, for
        a training on all clips, the median over folds of steps and exposures; steps is 0 where most folds keep the base
        model, and lower_bound says that a fold was still improving at its last check, so that more may be better.
    """
    folds = [
        {
            "fold": number,
            **{name: summary[name] for name in ("stopped_by", "stop_step", "best_step", "kept_step", "kept_gain")},
            "lower_bound": is_lower_bound(summary),
            "exposures_at_kept": summary["exposures_at_kept"]["mean"],
            "num_clips": summary["num_clips"],
            **({"parts": summary["parts"]} if "parts" in summary else {}),
        }
        for number, summary in enumerate(summaries)
    ]
    gains = [fold["kept_gain"] for fold in folds]
    return {
        "folds": folds,
        "gain": {
            "mean": statistics.mean(gains),
            "min": min(gains),
            "max": max(gains),
            "standard_error": statistics.stdev(gains) / math.sqrt(len(gains)),
        },
        "steps": round(statistics.median(full_steps(summary) for summary in summaries)),
        "lower_bound": any(fold["lower_bound"] for fold in folds),
        "exposures": statistics.median(fold["exposures_at_kept"] for fold in folds),
    }


def print_folds(told: dict[str, Any], words: Sequence[str], path: Path, console: Console | None = None) -> None:
    """Show the folds, and the command that trains on all clips.

    Args:
        told: by :func:`summarise_folds`.
        words: options of ``vidlit kfold`` that ``fit`` knows.
        path: the same as JSON.
        console: to print to.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    table = Table("fold")
    for name in ("validation clips", "stopped at", "by", "kept step", "validation loss", "exposures"):
        table.add_column(name, justify="right")
    for fold in told["folds"]:
        table.add_row(
            str(fold["fold"]),
            str(fold["num_clips"]["val"]),
            str(fold["stop_step"]),
            Text(fold["stopped_by"]),  # a plugin may have named it
            str(fold["kept_step"]),
            _change(fold["kept_gain"]),
            f"{fold['exposures_at_kept']:.0f}",
        )
    console.print(table)
    gain = told["gain"]
    lines = [
        f"validation loss against the base model: {_change(gain['mean'])} on average over folds "
        f"({_change(gain['max'])} to {_change(gain['min'])})"
    ]
    if any("parts" in fold for fold in told["folds"]):
        lines.append(
            "each part of the model has a best step of its own: fold runs of one (--model.expert high, then low)"
        )
    elif told["steps"]:
        options = " ".join(words)
        lines += [
            f"best on all clips: {told['steps']} steps, about {told['exposures']:.0f} exposures of each video:",
            f"  vidlit fit {options} --data.split.val_fraction 0 --trainer.max_steps {told['steps']}",
        ]
        if told["lower_bound"]:
            late = sum(fold["lower_bound"] for fold in told["folds"])
            lines.append(
                f"That is a lower bound: {late} of {len(told['folds'])} folds were still improving at their last "
                "check. Raise --trainer.max_steps, and start again under another --run.name."
            )
    else:
        lines.append("in most folds no step was better than the base model: try a lower learning rate, or more videos")
    for line in [*lines, f"written to {path}"]:
        say(redact_text(line), console)


def _change(gain: float) -> str:
    return f"{100 * math.expm1(-gain):+.1f} %"
