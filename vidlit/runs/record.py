"""A run read back from its directory: curves as arrays, decisions, exposures, samples, and its decisions replayed.

Works on a finished, a running and a crashed run alike: what is not there yet is empty.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidlit.bounded_yaml import read_yaml
from vidlit.data.exposure_table import Exposure, read_exposures
from vidlit.data.usage import LeftOut, ShownClip, read_left_out, read_shown_clips
from vidlit.errors import UserError
from vidlit.held_lock import HeldLock
from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_name import LoggedName
from vidlit.runs.logged_names import all_rows
from vidlit.runs.loggers.plugged_rows import read_rows
from vidlit.runs.redaction import redact
from vidlit.runs.signal_words import SignalWords, read_signals
from vidlit.stopping.divergence import DivergenceHistory, DivergenceSettings, judge_divergence
from vidlit.stopping.verdict import Verdict

_RENAMED = (("memorization/copies", "copies/count"), ("memorization/", "copies/"), ("probe", "train_eval"))
"""What runs of earlier versions logged and wrote, and what it is called now; the first that fits."""


SILENT_SECONDS = 600.0
"""A run on another machine that has written nothing for so long is taken for dead: no step that trains takes longer."""


class Curve(NamedTuple):
    """One logged name over the run."""

    steps: NDArray[np.int64]
    """Optimizer steps (J,), increasing."""
    values: NDArray[np.float64]
    """(J,)."""


@dataclass(frozen=True)
class RunRecord:
    """What a run directory holds.

    Args:
        path: the run's folder, e.g. ``runs/quickstart/0``.

    Raises:
        UserError: the folder is not there, or no run was ever in it.

    Example::

        run = RunRecord(Path("runs/quickstart/0"))
        steps, values = run.curve("val/log_ratio")
        for row in run.logged_names:
            print(row.title, [row.text(curve.values[-1]) for curve in run.curves_of(row)])
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder. Give a run directory, such as runs/quickstart/0.")
        held = (self.directory.config, self.directory.metrics, self.directory.summary)
        if not any(file.is_file() for file in held):
            versions = sorted(child.name for child in self.path.iterdir() if (child / "config.yaml").is_file())
            hint = f" Did you mean {self.path / versions[-1]}?" if versions else ""
            raise UserError(f"{self.path} holds neither config.yaml, metrics.csv nor summary.json: no run.{hint}")

    @property
    def directory(self) -> RunDirectory:
        """Where each file is."""
        return RunDirectory(self.path)

    @property
    def name(self) -> str:
        """Name and version, ``quickstart/0``."""
        resolved = self.path.resolve()
        return f"{resolved.parent.name}/{resolved.name}"

    # -- files

    @cached_property
    def config(self) -> dict[str, Any]:
        """What ``fit`` was run with, without keys and passwords; empty where it was not saved."""
        if not self.holds(self.directory.config):
            return {}
        loaded: dict[str, Any] = redact(read_yaml(self.directory.config) or {})
        if not isinstance(loaded, dict):
            raise UserError(f"{self.directory.config} is no config: it holds no options.")
        return loaded

    @cached_property
    def summary(self) -> dict[str, Any]:
        """How it ended, or stands."""
        if not self.holds(self.directory.summary):
            return {}
        try:
            return {_renamed(name): value for name, value in self.directory.read_summary().items()}
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self.directory.summary} is damaged ({error}): restore it, or delete it to read the run without it."
            ) from error

    @cached_property
    def decisions(self) -> list[dict[str, Any]]:
        """One for each check: step, action, reason and every signal's verdict."""
        decisions = self.directory.read_decisions() if self.holds(self.directory.decisions) else []
        for verdict in (verdict for decision in decisions for verdict in decision["verdicts"]):
            verdict["evidence"] = {_renamed(name): value for name, value in verdict["evidence"].items()}
        return decisions

    @cached_property
    def signals(self) -> dict[str, SignalWords]:
        """What each stop signal says of itself, by name; empty for a run that says nothing of them."""
        return read_signals(self.directory) if self.holds(self.directory.signals) else {}

    @cached_property
    def exposures(self) -> list[Exposure]:
        """How often each clip was trained on, as of the latest check."""
        path = self.directory.exposure
        return read_exposures(path) if self.holds(path) or self.holds(path.with_suffix(".parquet")) else []

    @cached_property
    def samples(self) -> dict[int, list[Path]]:
        """The mp4 files of each step that was sampled, by step."""
        folders = (self.path / "samples").glob("step_*")
        found = {int(folder.name[5:]): sorted(folder.glob("*.mp4")) for folder in folders if folder.name[5:].isdigit()}
        return {step: own for step in sorted(found) if (own := [path for path in found[step] if self.holds(path)])}

    @cached_property
    def dataset(self) -> list[ShownClip]:
        """Its clips as people know them; the first thousands of very many. Runs of earlier versions say nothing."""
        return read_shown_clips(self.directory.dataset) if self.holds(self.directory.dataset) else []

    @cached_property
    def left_out(self) -> list[LeftOut]:
        """What of the data was not used, and why."""
        return read_left_out(self.directory.left_out) if self.holds(self.directory.left_out) else []

    @cached_property
    def near_clips(self) -> dict[str, Path]:
        """Videos of training clips that samples came near to, by clip id."""
        found = {}
        for path in sorted(self.directory.shown_clips.glob("*.mp4")):
            if self.holds(path) and (clip_id := self.note(path).get("clip")):
                found[str(clip_id)] = path
        return found

    def note(self, video: Path) -> dict[str, Any]:
        """How a video came about, as was written beside it; empty where it was not."""
        path = video.with_suffix(".json")
        with suppress(OSError, ValueError, RecursionError):
            if self.holds(path) and isinstance(note := json.loads(path.read_text()), dict):
                return note
        return {}

    def last_lines(self, count: int) -> list[str]:
        """The end of what the run has said."""
        if not self.holds(self.directory.log):
            return []
        with self.directory.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 400 * count))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]

    @property
    def is_running(self) -> bool:
        """Whether a process trains here, as far as is known: on another machine, whether it wrote a moment ago."""
        if self.summary.get("stopped_by", "running") != "running":
            return False
        alive = self.has_process
        silent = (datetime.now() - self.last_written).total_seconds()
        return silent < SILENT_SECONDS if alive is None else alive

    @property
    def has_process(self) -> bool | None:
        """Whether the process that trained here last is alive; ``None`` where that cannot be known here."""
        return HeldLock(self.directory.lock, self.directory.lock_holder).is_held_here()

    def holds(self, path: Path) -> bool:
        """Whether a file lies in the run's folder: what a run from elsewhere names may be any other."""
        return path.is_file() and path.resolve().is_relative_to(self.path.resolve())

    def caption(self, sample: Path) -> str:
        """The prompt that a sample was made from; the words of its file name where that was not written down."""
        return str(self.note(sample).get("prompt") or _words_of_name(sample))

    @property
    def last_written(self) -> datetime:
        """When the run last said something."""
        files = (self.directory.metrics, self.directory.summary, self.directory.decisions, self.directory.config)
        return datetime.fromtimestamp(max(file.stat().st_mtime for file in files if file.is_file()))

    # -- curves

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Everything in ``metrics.csv``, by name."""
        if not self.holds(self.directory.metrics):
            return {}
        points: dict[str, dict[int, float]] = {}
        with self.directory.metrics.open(newline="") as file:
            for row in csv.DictReader(file):
                step = _number(row.pop("step", None))
                for name, text in row.items():
                    value = _number(text)
                    if step is not None and value is not None and name not in (None, "epoch"):
                        points.setdefault(name, {})[int(step)] = value
        return {_renamed(name): _curve(sorted(values.items())) for name, values in points.items()}

    @cached_property
    def logged_names(self) -> list[LoggedName]:
        """What its metrics are called and how they are shown, by section; those of its plugins, too."""
        return all_rows(read_rows(self.directory) if self.holds(self.directory.logged_names) else ())

    def curve(self, name: str) -> Curve:
        """One logged name; empty where it was never logged."""
        return self.curves.get(name, _curve([]))

    def curves_of(self, row: LoggedName) -> list[Curve]:
        """What was logged under a row's name: no curve, one, or where it stands for several one for each."""
        return list(self.named_curves_of(row).values())

    def named_curves_of(self, row: LoggedName) -> dict[str, Curve]:
        """The same by their names, in the order of the number that stands in them, or of the word."""
        found = {name: curve for name, curve in self.curves.items() if row.matches(name) and not row.part_of(name)}
        return {name: found[name] for name in sorted(found, key=lambda name: (len(name), name))}

    def part_curves_of(self, row: LoggedName) -> dict[str, Curve]:
        """What each part of a model of several logged under a row's name, by the name of the part."""
        return {part: curve for name, curve in self.curves.items() if row.matches(name) and (part := row.part_of(name))}

    def verdicts(self, signal: str) -> list[Verdict]:
        """What one signal said at each check, with ``step`` among its evidence."""
        return [
            Verdict(signal, verdict["action"], verdict["reason"], {"step": decision["step"], **verdict["evidence"]})
            for decision in self.decisions
            for verdict in decision["verdicts"]
            if verdict["signal"] == signal
        ]

    # -- the decision, again

    @property
    def history(self) -> DivergenceHistory:
        """Log-ratios of every validation clip and scored training clip at every check, from ``last.ckpt``.

        Of a model of several parts, of the first one; see :attr:`histories`.

        Raises:
            UserError: there is no checkpoint, it was made before the first check, or nothing was held out.
        """
        return next(iter(self.histories.values()))

    @cached_property
    def histories(self) -> dict[str, DivergenceHistory]:
        """As :attr:`history`, of every part of the model, by name; ``all`` where it is one."""
        import torch

        from vidlit.diffusion.batch import clip_key

        if not self.directory.last_checkpoint.is_file():
            raise UserError(f"{self.directory.last_checkpoint} is not there: it holds each clip's curve.")
        checkpoint = torch.load(self.directory.last_checkpoint, map_location="cpu", weights_only=True, mmap=True)
        state = {_renamed(name): part for name, part in checkpoint["callbacks"].get("DivergenceMonitor", {}).items()}
        if not state or not self.exposures:
            raise UserError(f"{self.path} has no check yet: there is nothing to judge.")
        groups = {clip_key(row.clip_id): row.video for row in self.exposures}
        parts = {name: part for name, part in state.get("parts", {"all": state}).items() if "val_curves" in part}
        if not parts:
            raise UserError(f"{self.path} has no validation clips: there is no validation loss to judge.")
        return {name: self._history(part, groups) for name, part in parts.items()}

    def _history(self, state: Mapping[str, Any], groups: Mapping[int, str]) -> DivergenceHistory:
        curves, named = {}, {}
        for name in ("val", "train_eval"):
            curve = state.get(f"{name}_curves")
            curves[name] = curve.numpy() if curve is not None else np.zeros((len(state["steps"]), 0))
            keys = state.get(f"{name}_keys", ()) if curve is not None else ()
            examples = state.get(f"{name}_rows")  # of a part for which some clips are none
            named[name] = tuple(groups[int(key)] for key in (keys if examples is None else keys[examples]))
        return DivergenceHistory(
            steps=np.array(state["steps"]),
            val=curves["val"],
            train_eval=curves["train_eval"],
            val_videos=named["val"],
            train_eval_videos=named["train_eval"],
        )

    def replay(self, settings: DivergenceSettings | None = None, part: str | None = None) -> list[Verdict]:
        """Judge every check again as the run did, or with other settings: what would they have done?

        Args:
            settings: of the divergence rule; ``None`` takes its defaults.
            part: of a model of several, whose curve is judged; ``None`` for the first.

        Returns:
            A verdict for each check after step 0. A run that stopped has no later checks to judge.
        """
        history = self.history if part is None else self.histories[part]
        warmup_steps = int(self.config.get("model", {}).get("warmup_steps", 0))
        known = (history.first(checks) for checks in range(2, len(history.steps) + 1))
        return [judge_divergence(each, settings, warmup_steps=warmup_steps) for each in known]


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Whatever files of a run lead to that were cut, or changed by hand, as one error.

    Args:
        path: of the run.

    Raises:
        UserError: one of them is not what a run writes.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, csv.Error) as error:
        raise UserError(
            f"{path}: one of its files is damaged, or not as a run writes it ({type(error).__name__}: "
            f"{str(error)[:200]}). Look at summary.json, decisions.jsonl, exposure.csv and metrics.csv."
        ) from error


def _renamed(name: str) -> str:
    """A name as it is now; runs outlive names."""
    return next((new + name.removeprefix(old) for old, new in _RENAMED if name.startswith(old)), name)


def _number(text: Any) -> float | None:
    """A cell of ``metrics.csv``; ``None`` for an empty one, or one that a kill cut short."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def _curve(points: Sequence[tuple[int, float]]) -> Curve:
    return Curve(
        np.array([step for step, _ in points], dtype=np.int64), np.array([value for _, value in points], dtype=float)
    )


def _words_of_name(sample: Path) -> str:
    return re.sub(r"^(audit_|prompt_)?\d+_", "", sample.stem).replace("_", " ")
