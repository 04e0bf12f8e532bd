"""The page of running and finished runs, live in a browser."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path

from vidlit.commands.cli.plain_parser import PlainParser
from vidlit.runs.directory import RunDirectory


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    options = parser().parse_args(words[1:])
    from vidlit.report.server import Watch

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what was made for it is removed
    watch = Watch(options.runs, options.host, options.port, options.with_process, options.token)
    print(f"{options.runs} is shown at {watch.address}", flush=True)
    if not watch.token:
        print(f"From another machine: ssh -L {watch.port}:127.0.0.1:{watch.port} USER@THIS_MACHINE, then the same.")
    if options.with_process is None:
        print("Ctrl-C ends it; runs go on.", flush=True)
    if options.open and _has_browser():
        webbrowser.open(watch.address)
    with suppress(KeyboardInterrupt):  # its usual end
        watch.serve()


def open_page(directory: RunDirectory) -> None:
    """Show a run that begins in a browser, by a process of its own, which ends after this one.

    Whatever goes wrong with that, the run goes on. The page's process holds none of this one's outputs: who reads them
    to their end would wait for it.
    """
    words = [sys.executable, "-m", "vidlit", "watch", str(directory.path), "--open", "--with_process", str(os.getpid())]
    nothing = subprocess.DEVNULL
    try:
        # A session of its own: Ctrl-C is for the run.
        process = subprocess.Popen(
            words, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, text=True, start_new_session=True
        )
    except OSError as error:
        print(f"vidlit: warning: the run is not shown ({error}); try `vidlit watch {directory.path}`.")
        return
    threading.Thread(target=_tell_address, args=(process, directory), daemon=True).start()


def _tell_address(process: subprocess.Popen[str], directory: RunDirectory) -> None:
    """Print what the page's process says first, when it is there."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    print(line or f"vidlit: warning: the run is not shown; try `vidlit watch {directory.path}`.", flush=True)


def _has_browser() -> bool:
    """Whether one opens in a window: in a terminal it would take the terminal."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def parser() -> PlainParser:
    """The command's options."""
    made = PlainParser(prog="vidlit watch", description="Show running and finished runs in a browser, live.")
    made.add_argument(
        "runs",
        type=Path,
        nargs="?",
        default=Path("runs"),
        help="a run, or a folder of runs; runs if left out",
    )
    made.add_argument("--port", type=int, help="port to listen at; 7878, or any that is free, if left out")
    made.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at: others than this machine's own ask for a token, which the printed address holds",
    )
    made.add_argument("--token", action="store_true", help="ask for a token on this machine, too: others may use it")
    made.add_argument("--open", action="store_true", help="open it in this machine's browser")
    made.add_argument("--with_process", type=int, help="end when this process has ended and nobody looks any more")
    return made
