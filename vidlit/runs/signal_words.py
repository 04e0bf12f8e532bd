"""What the stop signals of a run say of themselves, written beside it: a finished run is read without its plugins."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from vidlit.runs.directory import RunDirectory, write_text

MODE_OPTION = "--overfit_stopping.policy.{name} warn"
"""Lets a run go on that any signal has stopped."""
REQUEST = "request"
"""What a run is stopped by that the user has ended, in files."""
_TITLES = {REQUEST: "`vidlit stop`"}


@dataclass(frozen=True)
class SignalWords:
    """A signal in words for users.

    Args:
        name: in files and options.
        title: what it finds, as in "stopped by ...".
        judges: what it looks at, a clause.
        because: what was the case when it stopped a run, a clause that names no clip: it goes onto the model card.
        go_on: the options that let a run go on which it has stopped.
    """

    name: str
    title: str
    judges: str
    because: str
    go_on: str


def save_signals(directory: RunDirectory, signals: Iterable[SignalWords]) -> None:
    """Write them into a run directory."""
    write_text(directory.signals, json.dumps([asdict(signal) for signal in signals], indent=2) + "\n")


def read_signals(directory: RunDirectory) -> dict[str, SignalWords]:
    """The signals of a run by name; empty where it says nothing of them."""
    if not directory.signals.is_file():
        return {}
    known = [field.name for field in fields(SignalWords)]
    rows = json.loads(directory.signals.read_text())
    return {row["name"]: SignalWords(**{key: row.get(key, "") for key in known}) for row in rows}


def words_for(name: str, signals: Mapping[str, SignalWords]) -> SignalWords:
    """A signal's words; of one that the run says nothing of, its name."""
    return signals.get(name) or SignalWords(name, _TITLES.get(name, name), "", name, MODE_OPTION.format(name=name))


def titles(names: Iterable[str], signals: Mapping[str, SignalWords]) -> str:
    """Signals as users read them: ``overfitting and copies``."""
    return " and ".join(words_for(name, signals).title for name in names)
