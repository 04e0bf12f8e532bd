"""Train until overfitting begins; export best weights and samples."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vidlit import __version__
from vidlit.commands.cli.refit import announcement, finished, full_steps, no_refit_because, note_refit, refit_words
from vidlit.commands.cli.run_lightning import run_lightning
from vidlit.commands.options.checking import values_of
from vidlit.errors import Interrupted
from vidlit.runs.rank import rank_from_environment
from vidlit.runs.wording import say

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from vidlit.commands.cli.lightning_cli import VidlitCLI
    from vidlit.runs.directory import RunDirectory


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    train(words)


def train(words: list[str], callbacks: Sequence[Callback] = ()) -> tuple[RunDirectory, VidlitCLI]:
    """Fit, and where ``--refit`` asks for it, train again on all clips when the best step is known.

    Both phases run in this process, and with several devices in each: all of them come here and go the same way.

    Args:
        words: of the command line, from the command's name on.
        callbacks: beside those that the config names, in both phases.

    Returns:
        Where the run is, and the last phase.
    """
    if rank_from_environment() == 0:
        say(_first_line(words))
    cli = run_lightning(words, callbacks=callbacks)
    directory, shows = cli.run_directory, cli.trainer.is_global_zero
    if not cli.config.fit.refit:
        return directory, cli
    summary = directory.read_summary()
    if reason := no_refit_because(summary):
        if shows:
            say(f"No refit: {reason}.")
        return directory, cli
    if shows:
        print()
        say(announcement(summary))
    if not finished(directory.refit.read_summary(), full_steps(summary)):
        del cli
        gc.collect()  # the first phase's model
        try:
            cli = run_lightning(refit_words(summary, directory), directory.refit, callbacks)
        except Interrupted as interrupt:
            interrupt.advice = f"Go on with the same command and --ckpt_path {directory.last_checkpoint}"
            raise
    if shows:
        note_refit(directory)
    return directory, cli


def _first_line(words: list[str]) -> str:
    """What is about to begin, said before anything slow is imported."""
    said = values_of(words, "model.base", "data.source", "run.dir", "run.name", "ckpt_path")
    base, source = said.get("model.base", "a base"), said.get("data.source", "clips")
    runs = Path(said.get("run.dir", "runs"), said.get("run.name", "vidlit"))
    goes_on = said.get("ckpt_path", "null") != "null"
    return f"vidlit {__version__}: {'goes on fine-tuning' if goes_on else 'fine-tunes'} {base} on {source}, into {runs}"
