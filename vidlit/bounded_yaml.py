"""YAML of a stranger: read in linear time and bounded memory, whatever stands in it.

An alias may stand for a list of aliases, and so on: a kilobyte of YAML can stand for more than memory holds. Every file
and every text that may come from elsewhere is measured here before anything else reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vidlit.errors import UserError

MAX_BYTES = 1 << 20  # the longest config that comes with vidlit, or that a run has saved, has 8 KB
MAX_DEPTH = 100  # parsers call themselves once a level: at a few thousand levels they end the process
MAX_NODES = 100_000  # of a text with its aliases written out; a text of MAX_BYTES without any has not many more

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class TooLarge(yaml.YAMLError):
    """A text stands for more than a config can be."""


def check_size(text: str) -> None:
    """Measure a text without building what it stands for.

    Raises:
        yaml.YAMLError: it is no YAML; :class:`TooLarge`: it is too long, too deep, or stands for too many nodes.
    """
    if len(text.encode("utf-8", errors="replace")) > MAX_BYTES:
        raise TooLarge(f"it is longer than {MAX_BYTES >> 20} MiB")
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and how many nodes stood before it
    sizes: dict[str, int] = {}
    count = 0
    for event in _events(text):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise TooLarge("a list or mapping in it holds itself")
            count += sizes.get(str(event.anchor), 1)  # an unknown one is refused where it is composed
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = count - before
        if len(open_nodes) > MAX_DEPTH:
            raise TooLarge(f"it is nested deeper than {MAX_DEPTH} levels")
        if count > MAX_NODES:
            raise TooLarge(f"it stands for more than {MAX_NODES:,} values")


def _events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=_Loader)
    except UnicodeError as error:  # half a character, as a name that is no UTF-8 becomes
        raise yaml.YAMLError("it holds bytes that are no UTF-8") from error


def compose(text: str) -> yaml.Node | None:
    """The nodes of a text, with their lines.

    Raises:
        yaml.YAMLError: it is no YAML, or stands for too much.
    """
    check_size(text)
    node: yaml.Node | None = yaml.compose(text, _Loader)
    return node


def load_yaml(text: str) -> Any:
    """What a text stands for: mappings, lists and plain values.

    Raises:
        yaml.YAMLError: it is no YAML, or stands for too much.
    """
    check_size(text)
    try:
        return yaml.load(text, _Loader)
    except ValueError as error:  # a date that is none
        raise yaml.YAMLError(str(error)) from error


def read_yaml(path: Path) -> Any:
    """What a file stands for.

    Raises:
        UserError: it cannot be read, is no YAML, or stands for too much.
    """
    try:
        return load_yaml(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(explain(str(path), error)) from error


def read_text(path: Path) -> str:
    """The text of a YAML file, if it is no longer than one may be.

    Raises:
        UserError: it cannot be read, is no text, or too long.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path} is not read as YAML: it is longer than {MAX_BYTES >> 20} MiB.")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a YAML file: it is not text.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def explain(name: str, error: yaml.YAMLError) -> str:
    """What is wrong with a text, as a sentence, with the line where that is known.

    Args:
        name: of the file, or of where the text stands.
        error: that reading it raised.
    """
    if isinstance(error, TooLarge):
        return f"{name} is not read as YAML: {error}."
    mark = getattr(error, "problem_mark", None)
    problem = " ".join((getattr(error, "problem", None) or str(error)).split())
    return f"{name}{f', line {mark.line + 1}' if mark else ''} is not valid YAML: {problem}."
