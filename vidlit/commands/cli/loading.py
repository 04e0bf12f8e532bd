"""Says on a terminal what is being waited for, and takes it back when it is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Show a line on stderr while something loads; nothing where stderr is no terminal.

    Args:
        what: is loaded.
    """
    shows = sys.stderr.isatty()
    if shows:
        print(f"loading {what} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shows:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
