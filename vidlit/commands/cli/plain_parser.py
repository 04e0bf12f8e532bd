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
