"""Options and classes under the names of version 0: they go on working, and one line names what they are called now."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vidlit.bounded_yaml import check_size, load_yaml, read_text
from vidlit.errors import UserError
from vidlit.runs.rank import rank_from_environment

NEW_KEYS = {
    "data.batch_size": "data.batches.size",
    "data.val_batch_size": "data.batches.val_size",
    "data.small_bucket": "data.batches.small_bucket",
    "data.num_workers": "data.batches.num_workers",
    "data.clip_mode": "data.cutting.mode",
    "data.max_clips_per_video": "data.cutting.max_clips_per_video",
    "data.upscale": "data.cutting.upscale",
    "data.val_fraction": "data.split.val_fraction",
    "data.test_fraction": "data.split.test_fraction",
    "data.fold": "data.split.fold",
    "data.train_on_val": "data.split.train_on_val",
    "data.max_val_clips": "data.split.max_val_clips",
    "data.encode_workers": "data.encoding.num_workers",
    "data.dtype": "data.encoding.dtype",
    "data.latents": "data.encoding.posterior",
    "model.noising": "model.noise.process",
    "model.num_strata": "model.noise.num_strata",
    "model.first_frame": "model.conditions",
    "model.noise.first_frame": "model.conditions",
    "model.base_dtype": "model.memory.base_dtype",
    "model.gradient_checkpointing": "model.memory.gradient_checkpointing",
    "model.compile": "model.memory.compile",
    "model.on_bad_loss": "model.bad_steps.action",
    "model.max_bad_steps": "model.bad_steps.max_skipped",
    "wandb": "logging",
}
_SHARES_OF_FIRST_FRAMES = ("model.first_frame", "model.noise.first_frame")
"""Were numbers, and are entries of a list."""
NEW_PATHS = {
    "vidlit.callbacks.averaging": "vidlit.callbacks.averaged_validation",
    "vidlit.callbacks.checkpoints": "vidlit.callbacks.run_checkpoints",
    "vidlit.callbacks.divergence": "vidlit.signals.divergence_monitor",
    "vidlit.callbacks.export": "vidlit.callbacks.weight_export",
    "vidlit.callbacks.exposure": "vidlit.signals.exposure_ledger",
    "vidlit.callbacks.faults": "vidlit.callbacks.bad_steps",
    "vidlit.callbacks.interrupt": "vidlit.callbacks.graceful_interrupt",
    "vidlit.callbacks.overfit_stopping": "vidlit.signals.overfit_stopping",
    "vidlit.callbacks.overview": "vidlit.callbacks.run_overview",
    "vidlit.callbacks.progress": "vidlit.callbacks.step_progress",
    "vidlit.callbacks.resume": "vidlit.callbacks.continuation",
    "vidlit.callbacks.samples": "vidlit.signals.sample_videos",
    "vidlit.callbacks.schedule": "vidlit.signals.validation_schedule",
    "vidlit.checkpoint_files": "vidlit.runs.checkpoint_files",
    "vidlit.csv_logger": "vidlit.runs.loggers.csv_logger",
    "vidlit.data.datamodule.BatchBudget": "vidlit.data.BatchBudget",
    "vidlit.data.datamodule.BucketBudget": "vidlit.video.buckets.BucketBudget",
    "vidlit.metrics.features": "vidlit.models.features",
    "vidlit.models.averaging": "vidlit.training.averaging",
    "vidlit.models.memory": "vidlit.training.memory",
    "vidlit.optimizers": "vidlit.training.optimizers",
}
"""Of classes that a config may name, and of modules with such classes."""

_OLD_CLASS = re.compile(rf"({'|'.join(map(re.escape, NEW_PATHS))})(\.[A-Z]\w*)?")
_SECTIONS = ("data", "model")
_told: set[str] = set()


def rename_words(words: Iterable[str]) -> list[str]:
    """The words of a command line, options and classes under the names they have now.

    Each old name is told once a process, on stderr.

    Args:
        words: of the command line.
    """
    given = list(words)
    renamed = [_rename_word(word) for word in given]
    for place, word in enumerate(given[:-1]):
        if word in ("--data", "--model"):  # the whole of a section at once, as text or as a file
            renamed[place + 1] = _rename_section(word[2:], renamed[place + 1])
        if word.startswith("--"):
            renamed[place + 1] = _as_text(_value_of_today(word[2:], renamed[place + 1]))
    return renamed


def rename_key(key: str) -> str:
    """An option or key under the name it has now: ``data.fold.number`` is ``data.split.fold.number``.

    Args:
        key: without dashes, with dots; of a section, and whatever lies below it.
    """
    old = next((old for old in NEW_KEYS if re.match(rf"{re.escape(old)}($|[.+])", key)), None)
    if old is None:
        return key
    _tell(old, NEW_KEYS[old])
    return NEW_KEYS[old] + key[len(old) :]


def rename_config(config: Any) -> Any:
    """A config, or a value of one, with keys and classes under the names they have now.

    Args:
        config: as YAML gives it.
    """
    if isinstance(config, str):
        return _rename_class(config)
    if isinstance(config, list):
        return [rename_config(value) for value in config]
    if not isinstance(config, dict):
        return config
    renamed = {key: rename_config(value) for key, value in config.items()}
    if isinstance(renamed.get("wandb"), dict):
        renamed[rename_key("wandb")] = renamed.pop("wandb")
    for section in _SECTIONS:
        if isinstance(renamed.get(section), dict):
            renamed[section] = _rename_keys(section, renamed[section])
    return renamed


@cache
def rename_configs_when_read() -> None:
    """Let jsonargparse rename what stands in every config file that this process reads from here on."""
    from jsonargparse import get_loader, set_loader

    load = get_loader("yaml")

    def load_renamed(text: str) -> Any:
        check_size(text)
        return rename_config(without_removed(load(text)))

    set_loader("yaml", load_renamed, (yaml.YAMLError,))


def without_removed(config: Any) -> Any:
    """A config without what saved configs of before hold and no command takes any more, where it says nothing."""
    if not isinstance(config, dict):
        return config
    return {key: value for key, value in config.items() if not is_removed(key, value)}


def is_removed(key: str, value: Any) -> bool:
    """Whether an option is one that configs of earlier runs hold, with the one value that is left.

    Args:
        key: of a config, at its top.
        value: as YAML gives it, or its text.

    Raises:
        UserError: it has another value, which would run what stands in a checkpoint.
    """
    if key != "weights_only":
        return False
    if value not in (True, None) and str(value).lower() not in ("true", "null", "~", ""):
        raise UserError(
            f"weights_only: {value} would run whatever code a checkpoint holds: checkpoints are only ever read as "
            "numbers. Leave the key out."
        )
    return True


def _rename_word(word: str) -> str:
    option, equals, value = word.partition("=")
    if option in ("--data", "--model") and equals:
        return f"{option}={_rename_section(option[2:], value)}"
    if option.startswith("--"):
        value = _as_text(_value_of_today(option[2:], value))
        return "--" + rename_key(option[2:]) + equals + _rename_class(value)
    return _rename_class(word)


def _rename_class(value: str) -> str:
    found = _OLD_CLASS.fullmatch(value)
    if found is None:
        return value
    new = NEW_PATHS[found[1]] + (found[2] or "")
    _tell(value, new)
    return new


def _rename_section(section: str, value: str) -> str:
    try:
        given = load_yaml(read_text(Path(value)) if os.path.isfile(value) else value)
    except (yaml.YAMLError, UserError):
        return value  # whoever reads it next says what is wrong with it
    if not isinstance(given, dict):
        return value
    renamed = rename_config({section: given})[section]
    return value if renamed == given else _as_text(renamed)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "null" if value is None else yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()


def _value_of_today(key: str, value: Any) -> Any:
    """What the option that a key was renamed to takes."""
    if key not in _SHARES_OF_FIRST_FRAMES:
        return value
    try:
        share = float(value)
    except (TypeError, ValueError):
        return value  # whoever reads it next says what is wrong with it
    return [{"frames": "first", "share": share}] if share else None


def _rename_keys(section: str, options: dict[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, value in _with_renamed_apart(section, options):
        _, *path, last = rename_key(f"{section}.{key}").split(".")
        value = _value_of_today(f"{section}.{key}", value)
        place = renamed
        for name in path:  # beside what the file says under the new name
            place[name] = dict(place.get(name) or {})
            place = place[name]
        both = isinstance(place.get(last), dict) and isinstance(value, dict)
        place[last] = {**place[last], **value} if both else value
    return renamed


def _with_renamed_apart(section: str, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values; what lies below a key and is elsewhere now comes by itself, under both names."""
    for key, value in options.items():
        below = value if isinstance(value, dict) else {}
        moved = {name: below[name] for name in below if f"{section}.{key}.{name}" in NEW_KEYS}
        yield from ((f"{key}.{name}", each) for name, each in moved.items())
        if not moved or len(moved) < len(below):
            yield key, {name: below[name] for name in below if name not in moved} if moved else value


def _tell(old: str, new: str) -> None:
    if old not in _told and rank_from_environment() == 0:
        _told.add(old)
        print(f"vidlit: {old} is now {new}", file=sys.stderr)
