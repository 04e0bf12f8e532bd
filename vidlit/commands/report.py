"""One HTML page of a run: why it stopped, curves, exposures, samples; several runs compared (report RUN_DIR ...)."""

from __future__ import annotations

from pathlib import Path


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    from jsonargparse import ArgumentParser

    from vidlit.report import write_report

    parser = ArgumentParser(prog="vidlit report", description="Make one HTML page of a run, or of several.")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories: finished, running or crashed")
    parser.add_argument("--out", type=Path | None, default=None, help="file to write; report.html of the run if null")
    parser.add_argument("--megabytes", type=float, default=24.0, help="videos put into the page; others are linked")
    options = parser.parse_args(words[1:])
    print(write_report(options.runs, options.out, options.megabytes))
