"""Validation loss of a checkpoint (--ckpt_path FILE)."""

from __future__ import annotations

from vidlit.commands.cli.run_lightning import run_lightning


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    run_lightning(words)
