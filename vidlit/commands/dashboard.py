"""The W&B workspace of a project, as code (--config FILE, --dry-run or --push)."""

from __future__ import annotations

from pathlib import Path

from vidlit.errors import UserError


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    from jsonargparse import ArgumentParser

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
