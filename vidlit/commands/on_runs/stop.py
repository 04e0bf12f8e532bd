"""End a running fit: keep its best weights and export them."""

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
    if options.save_only:
        ask(options.run, "save", "it saves and ends, to go on with --ckpt_path last")
    else:
        ask(options.run, "stop", "it checks once more, keeps the best weights, exports and samples them, and ends")


def parser() -> PlainParser:
    """The command's options."""
    made = PlainParser(
        prog="vidlit stop",
        description="End a running fit as at its last step: a last check, then the best weights are put back, exported "
        "and sampled, and the report is written. --ckpt_path last goes on all the same. With --refit or kfold the "
        "phase or fold that is running ends, and the next one begins.",
    )
    made.add_argument("run", type=Path, help="run directory, or a folder with one running fit below it")
    made.add_argument(
        "--save_only", "--save-only", action="store_true", help="save and end at once, as Ctrl-C does; export nothing"
    )
    return made
