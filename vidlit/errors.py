"""The one exception a user is meant to read."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right: says what is wrong, where (file, row, option), and what to do.

    The command line prints its text as one line and exits non-zero, without a traceback unless ``--debug``.
    """
