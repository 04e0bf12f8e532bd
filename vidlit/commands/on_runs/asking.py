"""Asking something of a fit that is going on, and waiting until it has heard."""

from __future__ import annotations

import time
from pathlib import Path

from vidlit.errors import UserError
from vidlit.runs.directory import RunDirectory
from vidlit.runs.live.requests import Request, Requests, holder, is_running

PATIENCE_SECONDS = 15.0
_POLL_SECONDS = 0.2
_BELOW = ("refit", "*", "*/*")
"""Where a run may lie, seen from the folder that is named: its second phase, a version, a fold, a name of runs."""


def ask(path: Path, kind: Request, then: str) -> None:
    """Ask a run for something; say at once who is asked, and wait a while until it is heard.

    Args:
        path: run directory, or a folder above the only run that is going on there.
        kind: of the request.
        then: what the run does about it, a clause.

    Raises:
        UserError: no fit is running there, or several are.
    """
    directory = running(path)
    who = f"the fit in {directory.path} ({holder(directory)})"
    requests = Requests(directory)
    requests.ask(kind)
    print(f"Asked {who}.", flush=True)
    until = time.monotonic() + PATIENCE_SECONDS
    while requests.is_waiting(kind):
        if not is_running(directory):
            requests.clear()
            raise UserError(f"the fit in {directory.path} ended before it had heard.")
        if time.monotonic() > until:
            print(f"It is busy with something longer: when its step, check or audit is over, {then}.")
            return
        time.sleep(_POLL_SECONDS)
    print(f"It has heard: {then}.")


def running(path: Path) -> RunDirectory:
    """The run that is going on in a folder, or below it.

    Raises:
        UserError: there is none, or there are several; names them.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder. Give a run directory, such as runs/quickstart/0.")
    if is_running(RunDirectory(path)):
        return RunDirectory(path)
    below = sorted({each for pattern in _BELOW for each in path.glob(pattern) if each.is_dir()})
    found = [each for each in map(RunDirectory, below) if is_running(each)]
    if not found:
        raise UserError(f"no fit is running in {path}.")
    if len(found) > 1:
        raise UserError(
            f"several fits are running in {path}: name one of {', '.join(str(each.path) for each in found)}."
        )
    return found[0]
