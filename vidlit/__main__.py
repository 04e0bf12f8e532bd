"""``python -m vidlit`` and the ``vidlit`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vidlit import __version__
from vidlit.commands.cli.dispatch import dispatch
from vidlit.commands.cli.help_screen import all_commands


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        args: words after ``vidlit``; ``None`` takes those of the command line.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "--debug"):
        print(all_commands())
        return 0 if "-h" in words or "--help" in words else 2
    if words[0] == "--version":
        print(f"vidlit {__version__}")
        return 0
    return dispatch(words)


if __name__ == "__main__":
    sys.exit(main())
