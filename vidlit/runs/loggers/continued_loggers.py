"""What W&B, TensorBoard and MLflow call a run: a name and a group, and the place where one that goes on does so."""

from __future__ import annotations

import json
import os
import secrets
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch.loggers import Logger

from vidlit.runs.directory import RunDirectory, write_text
from vidlit.runs.loggers.background_logger import BackgroundLogger
from vidlit.runs.rank import rank_from_environment
from vidlit.runs.redaction import redact_text

_OPTIONS = {"WandbLogger": "id", "TensorBoardLogger": "version", "MLFlowLogger": "run_id"}
"""The argument by which each takes the name of a run, by the end of its class's name."""
_ATTRIBUTES = {"TensorBoardLogger": "version", "MLFlowLogger": "run_id"}
"""Where those that choose a name themselves say it."""
_NAMES = {"WandbLogger": "name", "MLFlowLogger": "run_name"}
"""The argument by which each takes a name for people; TensorBoard's is the folder of a run."""
_LETTERS = string.ascii_lowercase + string.digits


def name_of(directory: RunDirectory) -> str:
    """What a run is called: ``quickstart/0``, ``quickstart/0/refit``, ``quickstart/kfold_5/fold_2``."""
    depth = 2 if directory.whole is None else 3
    return "/".join(directory.path.resolve().parts[-depth:])


def group_of(directory: RunDirectory) -> str | None:
    """What a fold, or the second phase of a refit, belongs to; ``None`` for a run of its own."""
    return None if directory.whole is None else name_of(directory).rpartition("/")[0]


@contextmanager
def continued(loggers: Any, directory: RunDirectory) -> Iterator[None]:
    """Have loggers made inside name the run, and go on in what they had begun for it.

    The config is as it was afterwards: a run that is begun with its copy is another run.

    Args:
        loggers: of the Trainer, as the config names them: one, a list or none.
        directory: of the run.
    """
    known = _read(directory)
    before: list[tuple[Any, str, Any]] = []

    def put(place: Any, option: str, value: Any) -> None:
        before.append((place, option, place.get(option)))
        place[option] = value

    for number, logger in enumerate(loggers if isinstance(loggers, list) else [loggers]):
        arguments, kind = getattr(logger, "init_args", None), _kind(getattr(logger, "class_path", ""))
        option = _OPTIONS.get(kind)
        if arguments is None or option is None:
            continue
        if kind in _NAMES and arguments.get(_NAMES[kind]) is None:
            put(arguments, _NAMES[kind], redact_text(name_of(directory)))
        if kind == "WandbLogger" and (group := group_of(directory)) and "WANDB_RUN_GROUP" not in os.environ:
            put(logger, "dict_kwargs", {"group": redact_text(group), **(logger.get("dict_kwargs") or {})})
        if arguments.get(option) is not None:
            continue
        name = known.get(f"{number}.{kind}")
        if name is None and kind == "WandbLogger" and "WANDB_RUN_ID" not in os.environ:
            name = "".join(secrets.choice(_LETTERS) for _ in range(8))  # as W&B's own
            _remember(directory, f"{number}.{kind}", name)
        if name is not None:
            put(arguments, option, name)
    try:
        yield
    finally:
        for place, option, value in before:
            place[option] = value


def remember(loggers: Sequence[Logger], directory: RunDirectory) -> None:
    """Keep the names that loggers choose for themselves, as soon as they have: MLflow asks its server.

    Args:
        loggers: of the Trainer, in the order of the config.
        directory: of the run.
    """
    for number, logger in enumerate(loggers):
        if isinstance(logger, BackgroundLogger) and (kind := type(logger.logger).__name__) in _ATTRIBUTES:
            logger.submit(partial(_keep, directory, f"{number}.{kind}"))


def _keep(directory: RunDirectory, key: str, logger: Any) -> None:
    name = getattr(logger, _ATTRIBUTES[_kind(key)])
    if _read(directory).get(key) != name:
        _remember(directory, key, name)


def _kind(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def _remember(directory: RunDirectory, key: str, name: str | int) -> None:
    if rank_from_environment() == 0:
        write_text(directory.loggers, json.dumps({**_read(directory), key: name}, indent=2) + "\n")


def _read(directory: RunDirectory) -> dict[str, str | int]:
    try:
        found = json.loads(directory.loggers.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
