"""Datasets as the configs of other trainers describe them: folders, caption files and prefixes.

Their keys are those of musubi-tuner's ``docs/dataset_config.md``, diffusion-pipe's ``examples/dataset.toml`` and
SimpleTuner's ``documentation/DATALOADER.md``. Paths are seen from the config's own folder, and nothing outside of it is
opened. What a source has no place for is named in a note.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vidlit.errors import UserError
from vidlit.video.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from vidlit.video.layouts.cells import CellError, read_text, read_texts, shown
from vidlit.video.layouts.layout import PATH_COLUMNS, Layout, Listing, Rejected, Row
from vidlit.video.layouts.source_folder import MEDIA_SUFFIXES, SourceFolder, is_inside, is_utf8
from vidlit.video.layouts.table_files import read_json_file, read_table, read_text_file
from vidlit.video.layouts.text_files import caption_files, caption_row

_SHOWN_WITH_VALUE = ("resolution", "resolutions", "target_frames", "frame_buckets", "num_repeats", "repeats")
_OTHER_DATASETS = ("text_embeds", "image_embeds", "conditioning_image_embeds", "conditioning", "audio", "eval")


@dataclass
class _Reading:
    """What was read of a config so far."""

    source: Path
    rows: list[tuple[str, Row]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unread: dict[str, Any] = field(default_factory=dict)
    seen: set[tuple[str, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.folder = SourceFolder(self.source.parent)
        self.files.append(self.source.name)

    def refuse(self, place: str, reason: str) -> None:
        self.rows.append((place, Rejected(place, reason)))

    def pass_over(self, entry: Mapping[str, Any], used: Sequence[str]) -> None:
        """Remember the keys of an entry that nothing is made of."""
        for key, value in entry.items():
            if key not in used:
                self.unread.setdefault(key, value)

    def within(self, path: Any, base: str = "") -> str | None:
        """A path of the config relative to its folder; ``None`` where it leads elsewhere."""
        if not isinstance(path, str) or "\0" in path:
            return None
        found = Path(os.path.realpath(self.folder.root / base / path))
        return found.relative_to(self.folder.root).as_posix() if found.is_relative_to(self.folder.root) else None

    def read_directory(
        self,
        place: str,
        path: Any,
        caption_of: Callable[[str], Row],
        suffixes: frozenset[str] = MEDIA_SUFFIXES,
        deep: bool = False,
    ) -> None:
        """Add the media of a directory, in folders below, too, if it is ``deep``."""
        directory = self.within(path)
        if directory is None or not (self.folder.root / directory).is_dir():
            what = "is no folder" if directory is not None or not isinstance(path, str) else "leads out of its folder"
            self.refuse(place, f"{shown(path)} {what}: put {self.source.name} above its videos")
            return
        above = "" if directory == "." else f"{directory}/"
        names = [name for name in self.folder.media if name.startswith(above) and is_utf8(name)]
        names = [name for name in names if deep or "/" not in name.removeprefix(above)]
        names = [name for name in names if PurePosixPath(name).suffix.lower() in suffixes]
        if not names:
            self.refuse(place, f"{shown(path)} holds no videos or images of its kind")
        self.rows += [(name, caption_of(name)) for name in names]

    def is_new(self, place: str, path: Any, *how: str) -> bool:
        """Whether an entry is the first to read a path in this way: trainers repeat one for each resolution."""
        what = (self.within(path) or shown(path), *how)
        if what in self.seen:
            self.notes.append(f"{place} names what an entry before it names: its clips are used once")
            return False
        self.seen.add(what)
        return True

    def listing(self) -> Listing:
        if self.unread:
            valued = [f"{key} = {shown(self.unread[key])}" for key in _SHOWN_WITH_VALUE if key in self.unread]
            named = sorted(set(self.unread) - set(_SHOWN_WITH_VALUE))
            self.notes.append(
                f"not used of {self.source.name}: {', '.join(valued + [shown(key)[1:-1] for key in named])} "
                "(data.buckets has the sizes, every clip is used equally often)"
            )
        return Listing(self.source.name, self.rows, tuple(self.files), notes=tuple(self.notes))


class MusubiTuner(Layout):
    """``dataset.toml`` of musubi-tuner."""

    description = "the path of musubi-tuner's dataset TOML, in a folder above the videos"

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`."""
        config = _read_toml(source)
        if "datasets" not in config:
            return None
        reading = _Reading(source)
        general = _table(config.get("general", {}))
        reading.pass_over(general, ["caption_extension"])
        for place, entry in _entries(reading, config["datasets"], "[[datasets]]"):
            suffix = f".{str(entry.get('caption_extension', general.get('caption_extension', 'txt'))).lstrip('.')}"
            used = ["caption_extension"]
            for kind, suffixes in (("video", VIDEO_SUFFIXES), ("image", IMAGE_SUFFIXES)):
                directory, table = f"{kind}_directory", f"{kind}_jsonl_file"
                used += [key for key in (directory, table) if key in entry]
                if directory in entry and reading.is_new(place, entry[directory], directory, suffix):
                    reading.read_directory(place, entry[directory], _beside(reading, suffix), suffixes)
                if table in entry and reading.is_new(place, entry[table], table):
                    _read_jsonl(reading, place, entry[table], f"{kind}_path")
            if used == ["caption_extension"]:
                reading.refuse(place, "names neither a directory nor a JSONL file")
            reading.pass_over(entry, used)
        return reading.listing()


class DiffusionPipe(Layout):
    """``dataset.toml`` of diffusion-pipe."""

    description = "the path of diffusion-pipe's dataset TOML, in a folder above the videos"

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`."""
        config = _read_toml(source)
        if "directory" not in config:
            return None
        reading = _Reading(source)
        reading.pass_over(config, ["directory", "caption_prefix"])
        for place, entry in _entries(reading, config["directory"], "[[directory]]"):
            prefix = entry.get("caption_prefix", config.get("caption_prefix", ""))
            reading.pass_over(entry, ["path", "caption_prefix"])
            if not reading.is_new(place, entry.get("path"), shown(prefix)):
                continue
            directory = reading.within(entry.get("path"))
            told = f"{directory}/captions.json".removeprefix("./")
            path = reading.folder.root / told
            if directory is not None and path.is_file() and is_inside(reading.folder.root, path):
                reading.files.append(told)
                captions = _table(read_json_file(path))
                caption_of = _from_table(captions, told, prefix)
            else:
                caption_of = _beside(reading, ".txt", prefix)
            reading.read_directory(place, entry.get("path"), caption_of)
        return reading.listing()


class SimpleTuner(Layout):
    """``multidatabackend.json`` of SimpleTuner."""

    description = "the path of SimpleTuner's data backend JSON, in a folder above the videos"

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`."""
        if not source.is_file() or source.suffix.lower() != ".json":
            return None
        config = read_json_file(source)
        if not isinstance(config, list) or not any(isinstance(e, dict) and "instance_data_dir" in e for e in config):
            return None
        reading = _Reading(source)
        for place, entry in _entries(reading, config, "entry"):
            kind = entry.get("dataset_type", "image")
            if kind in _OTHER_DATASETS:
                reading.notes.append(f"{place} is of type {kind}, which holds no clips to train on: left out")
            elif entry.get("disabled", entry.get("disable")) is True:
                reading.notes.append(f"{place} is disabled: left out")
            elif entry.get("type", "local") != "local":
                reading.refuse(place, f"is of type {shown(entry['type'])}: only local folders are read")
            else:
                cls._read_entry(reading, place, entry)
        return reading.listing()

    @staticmethod
    def _read_entry(reading: _Reading, place: str, entry: Mapping[str, Any]) -> None:
        strategy, prompt = entry.get("caption_strategy", "filename"), entry.get("instance_prompt")
        if entry.get("only_instance_prompt") is True:
            strategy = "instanceprompt"
        prefix = f"{prompt} " if entry.get("prepend_instance_prompt") is True and isinstance(prompt, str) else ""
        captions: dict[str, Callable[[str], Row]] = {
            "textfile": _beside(reading, ".txt", prefix, several=True),
            "filename": lambda name: {
                "file_name": name,
                "caption": f"{prefix}{PurePosixPath(name).stem.replace('_', ' ')}",
            },
            "instanceprompt": lambda name: {"file_name": name, "caption": prompt},
        }
        own = ["id", "type", "dataset_type", "disabled", "disable", "instance_data_dir", "caption_strategy"]
        reading.pass_over(entry, [*own, "instance_prompt", "prepend_instance_prompt", "only_instance_prompt"])
        if not isinstance(strategy, str) or strategy not in captions:
            reading.refuse(place, f"has caption_strategy {shown(strategy)}: {', '.join(captions)} are read")
        elif entry.get("prepend_instance_prompt") is True and not isinstance(prompt, str):
            reading.refuse(place, f"prepends {shown(prompt)} to captions, which is no text")
        elif reading.is_new(place, entry.get("instance_data_dir"), strategy, shown(prompt), prefix):
            reading.read_directory(place, entry.get("instance_data_dir"), captions[strategy], deep=True)


def _read_toml(source: Path) -> dict[str, Any]:
    """A TOML file; empty where the source is none."""
    if not source.is_file() or source.suffix.lower() != ".toml":
        return {}
    text = read_text_file(source)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not valid TOML: {error}") from error


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _entries(reading: _Reading, entries: Any, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        place = f"{reading.source.name} {what} {number}"
        if isinstance(entry, dict):
            yield place, entry
        else:
            reading.refuse(place, f"is {shown(entry)}, not a table of options")


def _beside(reading: _Reading, suffix: str, prefix: Any = "", several: bool = False) -> Callable[[str], Row]:
    """Captions from a file beside each video, of which each line is one if it holds ``several``."""
    found = caption_files(reading.folder, suffix)

    def read(text: str) -> list[str]:
        return [f"{prefix}{each}" for each in map(read_text, text.split("\n") if several else [text]) if each]

    def row(name: str) -> Row:
        reading.files += [found[name]] if name in found else []
        return caption_row(reading.folder, name, found.get(name), suffix, read)

    return row


def _from_table(captions: Mapping[str, Any], told: str, prefix: Any) -> Callable[[str], Row]:
    """Captions by the name of the file, one or a list of them."""

    def row(name: str) -> Row:
        try:
            texts = read_texts(captions.get(PurePosixPath(name).name))
        except CellError as error:
            return Rejected(name, f"its caption in {told} {error}")
        return {"file_name": name, "caption": [f"{prefix}{text}" for text in texts]}

    return row


def _read_jsonl(reading: _Reading, place: str, path: Any, column: str) -> None:
    """Rows of a JSONL file, whose paths are seen from its own folder."""
    name = reading.within(path)
    if name is None or not (reading.folder.root / name).is_file():
        what = "leads out of its folder" if name is None else "does not exist"
        reading.refuse(place, f"{shown(path)} {what}")
        return
    reading.files.append(name)
    base = PurePosixPath(name).parent.as_posix()
    for where, row in read_table(reading.folder.root / name):
        if isinstance(row, Rejected) or not isinstance(row.get(column), str):
            reading.rows.append((where, row))
            continue
        others = {key: value for key, value in row.items() if key not in (column, *PATH_COLUMNS)}
        within = reading.within(row[column], base)
        reading.rows.append((where, {**others, "file_name": row[column] if within is None else within}))
