"""The W&B workspace of a project, as code."""

from __future__ import annotations

from pathlib import Path

from vidlit.commands.cli.plain_parser import PlainParser
from vidlit.errors import UserError


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    from vidlit.report.workspace import as_json, make_workspace, read_target

    options = parser().parse_args(words[1:])
    if options.dry_run == options.push:
        raise UserError("choose one of --dry-run, which prints the workspace, and --push, which creates it.")
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
        raise UserError(f"W&B did not accept the workspace ({type(error).__name__}): {error}") from error
    print(workspace.url)


def parser() -> PlainParser:
    """The command's options."""
    made = PlainParser(prog="vidlit dashboard", description="Set up a W&B workspace for the runs of a project.")
    made.add_argument(
        "--config", type=Path, action="append", default=[], help="YAML file with the W&B logger; may be repeated"
    )
    made.add_argument("--project", help="W&B project, over the config's")
    made.add_argument("--entity", help="user or team, over the config's")
    made.add_argument("--dry-run", action="store_true", help="print what would be sent, as JSON")
    made.add_argument("--push", action="store_true", help="create the workspace; needs a W&B key")
    return made
