"""Paired losses of a checkpoint on the held-out clips (--ckpt_path FILE)."""

from __future__ import annotations


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    from vidlit.commands.cli.run_lightning import run_lightning

    run_lightning(words)
