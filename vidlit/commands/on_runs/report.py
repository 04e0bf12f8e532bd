"""One HTML page of a run, or of several: why it stopped, curves."""

from __future__ import annotations

from pathlib import Path

from vidlit.commands.cli.plain_parser import PlainParser
from vidlit.runs.directory import RunDirectory
from vidlit.runs.wording import say


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    from vidlit.report import write_report

    options = parser().parse_args(words[1:])
    print(write_report(options.runs, options.out, options.megabytes))


def write_report_of(directory: RunDirectory) -> None:
    """Make the report; whatever goes wrong with it, the run itself is what it is."""
    try:
        from vidlit.report import write_report

        write_report([directory.path])
    except Exception as error:
        say(
            f"vidlit: warning: no report was made ({type(error).__name__}: {error}). The run is whole: try again "
            f"with `vidlit report {directory.path}`."
        )


def parser() -> PlainParser:
    """The command's options."""
    made = PlainParser(prog="vidlit report", description="Make one HTML page of a run, or of several.")
    made.add_argument("runs", type=Path, nargs="+", help="run directories: finished, running or crashed")
    made.add_argument("--out", type=Path, help="file to write; report.html of the run if left out")
    made.add_argument("--megabytes", type=float, default=3.0, help="videos put into the page; others are linked")
    return made
