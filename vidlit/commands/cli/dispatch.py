"""Every command by its name, what it prints when it goes wrong, and its exit code."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from io import TextIOWrapper

from vidlit import commands, plugins
from vidlit.commands.cli.help_screen import one_command
from vidlit.commands.options.checking import check
from vidlit.commands.options.old_keys import rename_words
from vidlit.commands.options.option_list import option_lists
from vidlit.errors import Interrupted, UserError, explain_bug, explain_error
from vidlit.latents.quiet_lightning import VERBOSE_VARIABLE, quiet_lightning

SWITCHES = ("--debug", "-v", "--verbose")
HELP_ALL = "--help-all"
HELP = {"-h", "--help", HELP_ALL}
SHORT = {"--watch": "--run.watch=true"}
"""Words for what is asked often."""
FLAGS = ("--json", "--verify", "--repair", "--refit", "--overwrite", "--merge", "--retry_quarantined")


def dispatch(words: list[str]) -> int:
    """Run one command; errors a user can mend are one line.

    Args:
        words: of the command line, without the program's name.

    Returns:
        Exit code: 0 for success, 2 for an error of the user's, 1 for one of vidlit's, 128 + the signal's number when
        interrupted.
    """
    debug = "--debug" in words
    verbose = "-v" in words or "--verbose" in words
    # jsonargparse wants a value for a bool; people type flags.
    words = [word.replace("--retry-quarantined", "--retry_quarantined") for word in words if word not in SWITCHES]
    words = [SHORT.get(word, word) for word in words]
    words = [f"{word}=true" if word in FLAGS else word for word in words]
    if verbose:
        os.environ[VERBOSE_VARIABLE] = "1"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may hold anything
    try:
        words, named = plugins.take(words)
        with plugins.active(named), quiet_lightning():
            plugins.require_for_configs(words)
            _command(words)
    except Interrupted as interrupt:
        _say(f"\nvidlit: {interrupt}; saved. {interrupt.advice}")
        return 128 + interrupt.signal_number
    except (KeyboardInterrupt, SystemExit) as end:
        # Before training begins; Lightning turns Ctrl-C into sys.exit(1) and SIGTERM into an exit of its own kind.
        terminated = type(end).__name__ == "SIGTERMException"
        if isinstance(end, SystemExit) and not terminated and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        number = signal.SIGTERM if terminated else signal.SIGINT
        _say(f"\nvidlit: interrupted by {number.name}; what was encoded is kept.")
        return 128 + number
    except BaseException as error:
        if debug or not (isinstance(error, Exception) or type(error).__name__ == "CheckpointException"):
            raise
        told = explain_error(error)
        _say(f"vidlit: error: {told or explain_bug(error)}")
        return 1 if told is None else 2
    return 0


def _say(text: str) -> None:
    from rich.console import Console  # takes a tenth of a second

    from vidlit.runs.wording import say

    say(text, Console(stderr=True))


def _command(words: list[str]) -> None:
    known = commands.summaries()
    if words[0] not in known:
        near = difflib.get_close_matches(words[0], known, n=1, cutoff=0.5)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{words[0]!r} is not a command.{meant} The commands are {', '.join(known)}.")
    if HELP & set(words) and option_lists()[words[0]].reads_yaml:
        if HELP_ALL not in words:
            print(one_command(words[0]))
            return
        words = ["fit" if words[0] in ("kfold", "plan") else words[0], "--help"]  # LightningCLI's own
    commands.load(words[0]).run(check(rename_words(words)))
