"""Ask a running fit for samples now."""

from __future__ import annotations

from pathlib import Path

from vidlit.commands.cli.plain_parser import PlainParser
from vidlit.commands.on_runs.asking import ask


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    options = parser().parse_args(words[1:])
    ask(options.run, "sample", "the samples come into samples/ of the run directory, and training goes on")


def parser() -> PlainParser:
    """The command's options."""
    made = PlainParser(
        prog="vidlit sample",
        description="Ask a running fit for samples now: of the prompts of its audits and of samples.prompts, with the "
        "weights of the present step. The run's numbers and decisions stay as they are. SIGUSR2 does the same.",
    )
    made.add_argument("run", type=Path, help="run directory, or a folder with one running fit below it")
    return made
