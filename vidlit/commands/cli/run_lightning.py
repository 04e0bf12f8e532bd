"""One command that LightningCLI knows, from its words to its end."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vidlit.latents.quiet_lightning import quiet_lightning
from vidlit.runs.directory import RunDirectory

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from vidlit.commands.cli.lightning_cli import VidlitCLI


def run_lightning(
    words: list[str], directory: RunDirectory | None = None, callbacks: Sequence[Callback] = ()
) -> VidlitCLI:
    """Run a command that LightningCLI knows.

    Args:
        words: of the command line.
        directory: of the run, where it is decided already.
        callbacks: beside those that the config names.
    """
    with loading("torch and Lightning"):
        from vidlit.commands.cli.lightning_cli import RUN_DIRECTORY_VARIABLE, VidlitCLI

    before = os.environ.get(RUN_DIRECTORY_VARIABLE)
    if directory is not None:
        os.environ[RUN_DIRECTORY_VARIABLE] = str(directory.path)
    try:
        with quiet_lightning():
            warnings.showwarning = _show_warning  # until quiet_lightning puts the old one back
            return VidlitCLI(words, callbacks)
    finally:
        claimed = os.environ.pop(RUN_DIRECTORY_VARIABLE, None)
        if before is not None:
            os.environ[RUN_DIRECTORY_VARIABLE] = before
        elif claimed is not None:
            RunDirectory(Path(claimed)).discard_if_empty()  # a run that never began leaves no folder


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Show a line on stderr while something loads; nothing where stderr is no terminal.

    Args:
        what: is loaded.
    """
    shows = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if shows:
        print(f"loading {what} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shows:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"vidlit: warning: {message}", file=sys.stderr)
