"""Validation loss of a checkpoint (--ckpt_path FILE), by recording."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from vidlit.commands.cli.run_lightning import run_lightning
from vidlit.commands.options.checking import values_of


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    as_json = values_of(words, "json").get("json", "").lower() == "true"
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        cli = run_lightning(words)
    from vidlit.callbacks.evaluation import ValidationTable  # Lightning is loaded now
    from vidlit.lightning_internals import callbacks_of
    from vidlit.runs.directory import write_text

    found = next((each.found for each in callbacks_of(cli.trainer) if isinstance(each, ValidationTable)), None)
    if not found:
        return
    text = json.dumps(found, indent=2)
    if as_json:
        print(text)
    if (output := cli.config.validate.output) is not None:
        write_text(Path(output).expanduser(), text + "\n")
