"""Every command by its name, what it prints when it goes wrong, and its exit code."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vidlit.callbacks.interrupt import Interrupted
from vidlit.cli import RUN_DIRECTORY_VARIABLE, VidlitCLI
from vidlit.data.progress import quiet_lightning
from vidlit.demo import Demo
from vidlit.errors import UserError
from vidlit.run_directory import RunDirectory

FLAGS = ("--json", "--verify")


def run(words: list[str]) -> int:
    """Run one command; errors a user can mend are one line.

    Args:
        words: of the command line, without the program's name.

    Returns:
        Exit code: 0 for success, 2 for an error of the user's, 128 + the signal's number after an interrupt.
    """
    debug = "--debug" in words
    # jsonargparse wants a value for a bool; people type flags.
    words = [f"{word}=true" if word in FLAGS else word for word in words if word != "--debug"]
    try:
        COMMANDS.get(words[0], _lightning)(words)
    except (UserError, ArgumentError) as error:
        if debug:
            raise
        message = str(error) if isinstance(error, UserError) else " ".join(str(error).split())
        print(f"vidlit: error: {message}", file=sys.stderr)
        return 2
    except Interrupted as interrupt:
        print(f"\nvidlit: {interrupt}; saved. Go on with --ckpt_path {interrupt.checkpoint}", file=sys.stderr)
        return 128 + interrupt.signal_number
    except (KeyboardInterrupt, SystemExit) as end:
        # Before training begins; Lightning turns Ctrl-C into sys.exit(1) on its way.
        terminated = isinstance(end, SIGTERMException)
        if isinstance(end, SystemExit) and not terminated and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        number = signal.SIGTERM if terminated else signal.SIGINT
        print(f"\nvidlit: interrupted by {number.name}; what was encoded is kept.", file=sys.stderr)
        return 128 + number
    return 0


def _lightning(words: list[str]) -> None:
    launched = RUN_DIRECTORY_VARIABLE in os.environ
    try:
        with quiet_lightning():
            warnings.showwarning = _show_warning  # until quiet_lightning puts the old one back
            VidlitCLI(words)
    finally:
        if not launched and (claimed := os.environ.pop(RUN_DIRECTORY_VARIABLE, None)):
            RunDirectory(Path(claimed)).discard_if_empty()  # a run that never began leaves no folder


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"vidlit: warning: {message}", file=sys.stderr)


def _demo(words: list[str]) -> None:
    parser = ArgumentParser(prog="vidlit demo", description="Write the procedural clips and the tiny base model.")
    parser.add_class_arguments(Demo, skip={"dir"})
    parser.add_argument("dir", type=Path, help="folder to write clips/ and base/ to")
    demo = Demo(**vars(parser.parse_args(words[1:])))
    demo.write()
    print(f"{demo.num_videos * demo.clips_per_video} clips in {demo.dir / 'clips'}, base model in {demo.dir / 'base'}")


def _report(words: list[str]) -> None:
    from vidlit.report import write_report  # loads matplotlib

    parser = ArgumentParser(prog="vidlit report", description="Make one HTML page of a run, or of several.")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories: finished, running or crashed")
    parser.add_argument("--out", type=Path | None, default=None, help="file to write; report.html of the run if null")
    parser.add_argument("--megabytes", type=float, default=24.0, help="videos put into the page; others are linked")
    options = parser.parse_args(words[1:])
    print(write_report(options.runs, options.out, options.megabytes))


COMMANDS: dict[str, Callable[[list[str]], object]] = {"demo": _demo, "report": _report}
"""The commands that LightningCLI does not know."""
