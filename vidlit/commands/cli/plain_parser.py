"""The parser of commands that read no YAML file."""

from __future__ import annotations

import argparse
from typing import NoReturn

from vidlit.errors import UserError


class PlainParser(argparse.ArgumentParser):
    """argparse's, whose errors are raised, so that they are told in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing how the command is used."""
        raise UserError(f"{message}; see `{self.prog} --help`.")


def true_or_false(text: str) -> bool:
    """The value of a flag: the command line hands ``--json`` on as ``--json=true``."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")
    return text == "true"
