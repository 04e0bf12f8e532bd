"""Videos for prompts as mp4 files, from a checkpoint, a LoRA file or the base (--prompts FILE)."""

from __future__ import annotations


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    from vidlit.commands.cli.run_lightning import run_lightning

    run_lightning(words)
