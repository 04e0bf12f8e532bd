"""Train until overfitting begins; export best weights and samples."""

from __future__ import annotations

import gc

from vidlit.commands.cli.refit import announcement, finished, full_steps, no_refit_because, note_refit, refit_words
from vidlit.commands.cli.run_lightning import run_lightning
from vidlit.errors import Interrupted


def run(words: list[str]) -> None:
    """Run the command; where ``--refit`` asks for it, train again on all clips when the best step is known.

    Both phases run in this process, and with several devices in each: all of them come here and go the same way.

    Args:
        words: of the command line, from the command's name on.
    """
    cli = run_lightning(words)
    directory, shows = cli.run_directory, cli.trainer.is_global_zero
    if not cli.config.fit.refit:
        return
    del cli
    gc.collect()  # the first phase's model
    summary = directory.read_summary()
    if reason := no_refit_because(summary):
        if shows:
            print(f"No refit: {reason}.")
        return
    if shows:
        print(f"\n{announcement(summary)}")
    if not finished(directory.refit.read_summary(), full_steps(summary)):
        try:
            run_lightning(refit_words(summary, directory), directory.refit)
        except Interrupted as interrupt:
            interrupt.advice = f"Go on with the same command and --ckpt_path {directory.last_checkpoint}"
            raise
    if shows:
        note_refit(directory)
