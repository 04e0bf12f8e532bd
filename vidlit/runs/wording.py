"""Numbers as people say them."""

from __future__ import annotations


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
