"""Numbers as people say them, and sentences as a terminal shows them."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def duration(seconds: float) -> str:
    """A time in its two largest units.

    Example:
        >>> [duration(each) for each in (41, 185, 3720, 431234)]
        ['41 s', '3 min 5 s', '1 h 2 min', '4 d 23 h']
    """
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    seconds = round(seconds)
    place = next((place for place, (_, size) in enumerate(units) if seconds >= size), len(units) - 1)
    (name, size), *finer = units[place : place + 2]
    rest = [f"{seconds % size // small} {unit}" for unit, small in finer if seconds % size // small]
    return " ".join([f"{seconds // size} {name}", *rest])


def say(text: str, console: Console | None = None) -> None:
    """Print a paragraph: on a terminal wrapped between words, elsewhere as it is."""
    from rich.console import Console

    console = console or Console()
    for line in text.split("\n"):
        for part in wrapped(line, console):
            console.print(part, highlight=False, soft_wrap=True, markup=False, emoji=False)


def wrapped(text: str, console: Console, indent: int = 0) -> list[str]:
    """The lines of a paragraph on a terminal, broken between words alone: half a path cannot be copied.

    Args:
        text: to show, as it is.
        console: whose width counts; what is no terminal gets one line.
        indent: characters that stand before each line.
    """
    width = max(1, console.width - indent)
    if not console.is_terminal or len(text) <= width:
        return [text]
    return textwrap.wrap(
        text, width, break_long_words=False, break_on_hyphens=False, expand_tabs=False, replace_whitespace=False
    )
