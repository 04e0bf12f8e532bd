"""A YAML file that is changed in single places: what else stands in it, comments above all, stays as it is."""

from __future__ import annotations

from typing import Any

import yaml

from vidlit.bounded_yaml import compose

_MOST_COLUMNS = 120
_COMMENT_COLUMN = 30
"""Where comments begin, as in the files that come with vidlit."""


def with_value(text: str, name: str, value: Any, why: str) -> str:
    """A file in which an option has another value, or is there at all.

    Args:
        text: of the file: mappings in block style, with values of one line.
        name: of the option, with dots.
        value: plain, as YAML knows it.
        why: comment beside it, in place of the one that was there; above it where the line would get too long.
    """
    lines = text.splitlines()
    node: Any = compose(text)
    parts = name.split(".")
    last = len(lines) - 1  # of the mapping that is gone into
    for depth, part in enumerate(parts):
        inner = {key.value: each for key, each in node.value}.get(part)
        if inner is None:
            indent = node.start_mark.column if depth else 0
            added = [f"{'  ' * k}{key}:" for k, key in enumerate(parts[depth:-1])]
            added += _lines("  " * (len(parts) - 1 - depth) + f"{parts[-1]}: ", value, why, indent)
            added = [" " * indent + line for line in added]
            lines[last + 1 : last + 1] = added if depth else ["", *added]
            return "\n".join(lines) + "\n"
        node, last = inner, _last_line(inner)
    line = node.start_mark.line
    lines[line : line + 1] = _lines(lines[line][: node.start_mark.column], value, why, 0)
    return "\n".join(lines) + "\n"


def _lines(head: str, value: Any, why: str, indent: int) -> list[str]:
    """An option and its comment."""
    option = head + yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("...\n").strip()
    beside = f"{option:{_COMMENT_COLUMN - 2 - indent}}  # {why}"
    if len(beside) + indent <= _MOST_COLUMNS:
        return [beside]
    return [f"{' ' * (len(head) - len(head.lstrip()))}# {why}", option]


def _last_line(node: Any) -> int:
    """On which the last value of a node stands."""
    if isinstance(node, yaml.MappingNode | yaml.SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.line)
