"""Every command by its name, what it prints when it goes wrong, and its exit code."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vidlit.commands.cli import RUN_DIRECTORY_VARIABLE, ParsedConfig, VidlitCLI
from vidlit.commands.demo import Demo
from vidlit.commands.kfold import fold_words, print_folds, summarise_folds
from vidlit.commands.refit import announcement, finished, full_steps, no_refit_because, note_refit, refit_words
from vidlit.errors import Interrupted, UserError
from vidlit.latents.encode_progress import VERBOSE_VARIABLE, quiet_lightning
from vidlit.runs.directory import RunDirectory, write_text

SWITCHES = ("--debug", "-v", "--verbose")
FLAGS = ("--json", "--verify", "--refit", "--overwrite")


def run(words: list[str]) -> int:
    """Run one command; errors a user can mend are one line.

    Args:
        words: of the command line, without the program's name.

    Returns:
        Exit code: 0 for success, 2 for an error of the user's, 128 + the signal's number after an interrupt.
    """
    debug = "--debug" in words
    verbose = "-v" in words or "--verbose" in words
    # jsonargparse wants a value for a bool; people type flags.
    words = [f"{word}=true" if word in FLAGS else word for word in words if word not in SWITCHES]
    if verbose:
        os.environ[VERBOSE_VARIABLE] = "1"
    try:
        COMMANDS.get(words[0], _lightning)(words)
    except (UserError, ArgumentError) as error:
        if debug:
            raise
        message = str(error) if isinstance(error, UserError) else " ".join(str(error).split())
        print(f"vidlit: error: {message}", file=sys.stderr)
        return 2
    except Interrupted as interrupt:
        print(f"\nvidlit: {interrupt}; saved. {interrupt.advice}", file=sys.stderr)
        return 128 + interrupt.signal_number
    except (KeyboardInterrupt, SystemExit) as end:
        # Before training begins; Lightning turns Ctrl-C into sys.exit(1) on its way.
        terminated = isinstance(end, SIGTERMException)
        if isinstance(end, SystemExit) and not terminated and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        number = signal.SIGTERM if terminated else signal.SIGINT
        print(f"\nvidlit: interrupted by {number.name}; what was encoded is kept.", file=sys.stderr)
        return 128 + number
    return 0


def _lightning(words: list[str], directory: RunDirectory | None = None) -> VidlitCLI:
    """Run a command that LightningCLI knows.

    Args:
        words: of the command line.
        directory: of the run, where it is decided already.
    """
    before = os.environ.get(RUN_DIRECTORY_VARIABLE)
    if directory is not None:
        os.environ[RUN_DIRECTORY_VARIABLE] = str(directory.path)
    try:
        with quiet_lightning():
            warnings.showwarning = _show_warning  # until quiet_lightning puts the old one back
            return VidlitCLI(words)
    finally:
        claimed = os.environ.pop(RUN_DIRECTORY_VARIABLE, None)
        if before is not None:
            os.environ[RUN_DIRECTORY_VARIABLE] = before
        elif claimed is not None:
            RunDirectory(Path(claimed)).discard_if_empty()  # a run that never began leaves no folder


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"vidlit: warning: {message}", file=sys.stderr)


def _fit(words: list[str]) -> None:
    """Fit, and where ``--refit`` asks for it, train again on all clips when the best step is known.

    Both phases run in this process, and with several devices in each: all of them come here and go the same way.
    """
    cli = _lightning(words)
    directory, shows = cli.run_directory, cli.trainer.is_global_zero
    if not cli.config.fit.refit:
        return
    del cli
    gc.collect()  # the first phase's model
    summary = directory.read_summary()
    if reason := no_refit_because(summary):
        if shows:
            print(f"No refit: {reason}.")
        return
    if shows:
        print(f"\n{announcement(summary)}")
    if not finished(directory.refit.read_summary(), full_steps(summary)):
        try:
            _lightning(refit_words(summary, directory), directory.refit)
        except Interrupted as interrupt:
            interrupt.advice = f"Go on with the same command and --ckpt_path {directory.last_checkpoint}"
            raise
    if shows:
        note_refit(directory)


def _kfold(words: list[str]) -> None:
    """Fit once a fold, leaving out those that are over, and say what all of them say."""
    # jsonargparse does not part options it knows from those it does not.
    parser = argparse.ArgumentParser(
        prog="vidlit kfold",
        description="Fit once a fold of source videos, and say what is best for all of them.",
        epilog="All options of `vidlit fit` are taken, too: see `vidlit fit --help`.",
        allow_abbrev=False,
    )
    parser.add_argument("--folds", type=int, default=5, help="parts that the source videos are divided into")
    options, fit_words = parser.parse_known_args(words[1:])
    config = ParsedConfig(["fit", *fit_words]).config.fit
    if config.get("ckpt_path") is not None:
        raise UserError("kfold goes on by itself where it was interrupted: leave --ckpt_path out.")
    root = config.run.dir / config.run.name / f"kfold_{options.folds}"
    _same_config(root / "config.json", config)
    folds = [RunDirectory(root / f"fold_{number}") for number in range(options.folds)]
    shows = "LOCAL_RANK" not in os.environ or os.environ.get("RANK", os.environ["LOCAL_RANK"]) == "0"
    for number, directory in enumerate(folds):
        if finished(directory.read_summary(), config.trainer.max_steps):
            continue
        if shows:
            print(f"\nfold {number} of {options.folds}")
        try:
            _lightning(fold_words(fit_words, number, options.folds, directory), directory)
        except Interrupted as interrupt:
            interrupt.advice = "Go on with the same command."
            raise
        gc.collect()
    if shows:
        told = summarise_folds([directory.read_summary() for directory in folds])
        path = root / "folds.json"
        write_text(path, json.dumps(told, indent=2) + "\n")
        print_folds(told, fit_words, path)


def _same_config(path: Path, config: Namespace) -> None:
    """Keep the config of the folds, or make sure that it is the one kept.

    Raises:
        UserError: folds of another config lie there.
    """
    text = json.dumps(config.as_dict(), indent=2, default=str, sort_keys=True)
    if path.is_file() and path.read_text() != text:
        raise UserError(
            f"{path.parent} holds folds of other options ({path.name}): give them another --run.name, or delete them."
        )
    write_text(path, text)


def _demo(words: list[str]) -> None:
    parser = ArgumentParser(prog="vidlit demo", description="Write the procedural clips and the tiny base model.")
    parser.add_class_arguments(Demo, skip={"dir"})
    parser.add_argument("dir", type=Path, help="folder to write clips/ and base/ to")
    demo = Demo(**vars(parser.parse_args(words[1:])))
    demo.write()
    print(f"{demo.num_videos * demo.clips_per_video} clips in {demo.dir / 'clips'}, base model in {demo.dir / 'base'}")


def _report(words: list[str]) -> None:
    from vidlit.report import write_report  # loads matplotlib

    parser = ArgumentParser(prog="vidlit report", description="Make one HTML page of a run, or of several.")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories: finished, running or crashed")
    parser.add_argument("--out", type=Path | None, default=None, help="file to write; report.html of the run if null")
    parser.add_argument("--megabytes", type=float, default=24.0, help="videos put into the page; others are linked")
    options = parser.parse_args(words[1:])
    print(write_report(options.runs, options.out, options.megabytes))


def _dashboard(words: list[str]) -> None:
    from vidlit.report.workspace import as_json, make_workspace, read_target

    parser = ArgumentParser(prog="vidlit dashboard", description="Set up a W&B workspace for the runs of a project.")
    parser.add_argument("--config", type=list[Path], default=[], help="YAML file with the W&B logger; may be repeated")
    parser.add_argument("--project", type=str | None, default=None, help="W&B project, over the config's")
    parser.add_argument("--entity", type=str | None, default=None, help="user or team, over the config's")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, as JSON")
    parser.add_argument("--push", action="store_true", help="create the workspace; needs a W&B key")
    # A plain option that is repeated replaces; "+" appends.
    words = ["--config+=" + word[9:] if word.startswith("--config=") else word for word in words[1:]]
    options = parser.parse_args(["--config+" if word == "--config" else word for word in words])
    if options.dry_run == options.push:
        raise UserError("say either --dry-run, which prints the workspace, or --push, which creates it.")
    if options.project:
        project, entity, levels = options.project, "", 4
    else:
        project, entity, levels = read_target(options.config)
    workspace = make_workspace(project, options.entity or entity, levels)
    if options.dry_run:
        print(as_json(workspace))
        return
    try:
        workspace.save()
    except Exception as error:  # of wandb, of its server, of the network
        raise UserError(f"W&B did not take the workspace ({type(error).__name__}): {error}") from error
    print(workspace.url)


COMMANDS: dict[str, Callable[[list[str]], object]] = {
    "dashboard": _dashboard,
    "demo": _demo,
    "fit": _fit,
    "kfold": _kfold,
    "report": _report,
}
"""The commands that are more than LightningCLI's own."""
