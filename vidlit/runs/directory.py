"""The folder a run leaves behind: one place that knows which file is called what."""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlit.errors import UserError
from vidlit.whole_files import write_whole

_RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # set by torchrun: how often it has started these processes again


FOLDS = "kfold_"
"""How the name of a folder of folds begins."""


@dataclass(frozen=True)
class RunDirectory:
    """Files of one run, by what they hold.

    Args:
        path: the folder, e.g. ``runs/quickstart/0``.
    """

    path: Path

    @property
    def config(self) -> Path:
        """What ``fit`` was really run with."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``best.ckpt`` and ``last.ckpt``."""
        return self.path / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """Lowest validation log-ratio so far; step 0 until one is lower."""
        return self.checkpoints / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        """Where ``--ckpt_path last`` goes on from."""
        return self.checkpoints / "last.ckpt"

    def candidate(self, step: int) -> Path:
        """Weights of a check that ``restore: conservative`` may come to keep."""
        return self.checkpoints / f"candidate_{step:06d}.ckpt"

    def candidates(self) -> dict[int, Path]:
        """All of these that are there, by step."""
        found = self.checkpoints.glob("candidate_*.ckpt")
        return {int(path.stem.removeprefix("candidate_")): path for path in sorted(found)}

    @property
    def weights(self) -> Path:
        """What users take away, loadable by diffusers."""
        return self.path / "weights"

    @property
    def metrics(self) -> Path:
        """Every logged number, with its step."""
        return self.path / "metrics.csv"

    @property
    def log(self) -> Path:
        """What the run printed, line by line, with the time."""
        return self.path / "log.txt"

    @property
    def logged_names(self) -> Path:
        """What the metrics of plugins are called, and how they are shown."""
        return self.path / "logged_names.json"

    @property
    def decisions(self) -> Path:
        """One JSON line a check: what each signal said, with its numbers, and what was done."""
        return self.path / "decisions.jsonl"

    @property
    def signals(self) -> Path:
        """What each stop signal of the run says of itself, in words."""
        return self.path / "signals.json"

    @property
    def plugins(self) -> Path:
        """The plugins that the run was begun with, one a line; none where it needs none."""
        return self.path / "plugins.txt"

    @property
    def skipped(self) -> Path:
        """One JSON line for each step that was left out because its loss or gradient was NaN or infinite."""
        return self.path / "skipped.jsonl"

    @property
    def exposure(self) -> Path:
        """How often each clip was in a training batch; of more than 100,000 clips it ends in ``.parquet``."""
        return self.path / "exposure.csv"

    @property
    def summary(self) -> Path:
        """The run in one JSON object."""
        return self.path / "summary.json"

    @property
    def clips(self) -> Path:
        """Which clips the run was begun with; see :mod:`vidlit.data.identity`."""
        return self.path / "clips.csv"

    @property
    def dataset(self) -> Path:
        """The clips as people know them: file, group, side, bucket, caption; see :mod:`vidlit.data.usage`."""
        return self.path / "dataset.csv"

    @property
    def left_out(self) -> Path:
        """What of the data is not used, and why."""
        return self.path / "left_out.csv"

    @property
    def shown_clips(self) -> Path:
        """Folder of training clips that samples came near to, as mp4 files with a JSON each."""
        return self.path / "samples" / "clips"

    @property
    def resumes(self) -> Path:
        """One JSON line for each time that the run went on: its step, and the options that were changed."""
        return self.path / "resumes.jsonl"

    @property
    def loggers(self) -> Path:
        """What W&B, TensorBoard and MLflow call the run."""
        return self.path / "loggers.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains here."""
        return self.path / ".lock"

    @property
    def lock_holder(self) -> Path:
        """Which process that is."""
        return self.path / ".lock_holder"

    def request(self, kind: str) -> Path:
        """Lies there while something is asked of the run; see :mod:`vidlit.runs.live.requests`."""
        return self.path / f".request_{kind}"

    @property
    def whole(self) -> RunDirectory | None:
        """What this run is a part of: the first phase of a refit, or the folder of all folds."""
        here, above = self.path.name, self.path.parent.name
        is_fold = here.startswith("fold_") and above.startswith(FOLDS)
        return RunDirectory(self.path.parent) if here == self.refit.path.name or is_fold else None

    @property
    def launcher(self) -> Path:
        """Which torchrun began the run: when it restarts its processes, they go on here."""
        return self.path / ".launcher"

    @property
    def report(self) -> Path:
        """The run as one page for a browser."""
        return self.path / "report.html"

    @property
    def refit(self) -> RunDirectory:
        """The run of ``--refit``'s second phase."""
        return RunDirectory(self.path / "refit")

    def samples(self, step: int) -> Path:
        """Folder of the videos generated at a step."""
        return self.path / "samples" / f"step_{step:06d}"

    def test(self, step: int) -> Path:
        """Folder of what ``vidlit test`` found for a step's weights: ``results.json`` and sampled videos."""
        return self.path / "test" / f"step_{step:06d}"

    def append_decision(self, decision: dict[str, Any]) -> None:
        """Add one line to :attr:`decisions`."""
        append_text(self.decisions, json.dumps(decision) + "\n")

    def read_decisions(self) -> list[dict[str, Any]]:
        """All lines of :attr:`decisions`; a last line cut short by a kill is left out."""
        if not self.decisions.is_file():
            return []
        decisions = []
        for line in self.decisions.read_text().splitlines():
            with suppress(ValueError):
                decisions.append(json.loads(line))
        return decisions

    def rewind_decisions(self, step: int) -> None:
        """Forget what was decided after a step: a resumed run decides it again."""
        kept = [decision for decision in self.read_decisions() if decision["step"] <= step]
        if kept:
            write_text(self.decisions, "".join(json.dumps(decision) + "\n" for decision in kept))
        else:
            self.decisions.unlink(missing_ok=True)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace :attr:`summary`."""
        write_text(self.summary, json.dumps(summary, indent=2) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """What :attr:`summary` holds; empty where there is none yet."""
        return dict(json.loads(self.summary.read_text())) if self.summary.is_file() else {}

    def read_plugins(self) -> list[str]:
        """What :attr:`plugins` holds, as it was named on the command line."""
        return self.plugins.read_text().splitlines() if self.plugins.is_file() else []

    def discard_if_empty(self) -> None:
        """Remove the folder of a run that never began."""
        with suppress(OSError):
            ours = {self.launcher, self.lock, self.lock_holder, self.log}
            if not set(self.path.iterdir()) - ours:
                for path in ours:
                    path.unlink(missing_ok=True)
                self.path.rmdir()


def new_run_directory(root: Path, name: str) -> RunDirectory:
    """Claim the next free version below ``root/name``; two runs started at once get two.

    Raises:
        UserError: the folder cannot be made.
    """
    parent = root / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        taken = [int(path.name) for path in parent.iterdir() if path.name.isdigit()]
        version = max(taken, default=-1) + 1
        while True:
            try:
                (parent / str(version)).mkdir()
                directory = RunDirectory(parent / str(version))
                if _RESTARTS in os.environ:
                    directory.launcher.write_text(_launcher())
                return directory
            except FileExistsError:
                version += 1
    except OSError as error:
        raise UserError(
            f"cannot make a run directory below {parent}: {error.strerror}. Set --run.dir elsewhere."
        ) from error


def latest_run_directory(root: Path, name: str) -> RunDirectory:
    """The run below ``root/name`` that was saved last.

    Raises:
        UserError: no run there has a ``last.ckpt``.
    """
    found = sorted((root / name).glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise UserError(
            f"--ckpt_path last: no run below {root / name} has a checkpoints/last.ckpt. Start one without --ckpt_path, "
            "or name the checkpoint file."
        )
    return RunDirectory(found[-1].parents[1])


def restarted_run_directory(root: Path, name: str) -> RunDirectory | None:
    """The run below ``root/name`` that torchrun began before it restarted this process, if it was saved since."""
    if int(os.environ.get(_RESTARTS, 0)) > 0:
        for path in (root / name).glob("*/.launcher"):
            directory = RunDirectory(path.parent)
            if path.read_text() == _launcher() and directory.last_checkpoint.is_file():
                return directory
    return None


def _launcher() -> str:
    """What started this process, the same for one it started before."""
    return f"{socket.gethostname()} {os.getppid()}"


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a reader, or a kill, never meets half of it.

    Raises:
        OSError: the disk is full or refuses; nothing of the new file stays.
    """
    write_whole(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """Add whole lines to a file in one act: no kill leaves half of them.

    Raises:
        OSError: the disk is full or refuses; the file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        before, data = file.tell(), text.encode()
        if file.write(data) != len(data):  # only a disk that is full takes a part
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
