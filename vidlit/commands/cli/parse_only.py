"""A command line and its config files, read by LightningCLI's parser without making or running anything."""

from __future__ import annotations

from vidlit.commands.cli.lightning_cli import VidlitCLI


class ParseOnly(VidlitCLI):
    """Only reads the command line and its config files: nothing is made or run."""

    def before_instantiate_classes(self) -> None:
        """Nothing."""

    def instantiate_classes(self) -> None:
        """Nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""
