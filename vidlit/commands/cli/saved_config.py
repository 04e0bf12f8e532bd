"""The config that a run leaves behind: what it was really run with, without keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from vidlit import plugins
from vidlit.bounded_yaml import load_yaml
from vidlit.runs.directory import RunDirectory, write_text
from vidlit.runs.redaction import redact


class SaveRunConfig(SaveConfigCallback):
    """Saves the config into the run directory, also on resume, whichever loggers there are (Lightning #7679).

    When a run begins, and when one goes on: not before all of its checkpoint has been taken up, so that the file tells
    what was run, not what was refused.
    """

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Save where nothing is saved yet."""
        if stage == "fit" and not RunDirectory(Path(trainer.default_root_dir)).config.is_file():
            self._save(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Save what the run goes on with."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            directory = RunDirectory(Path(trainer.default_root_dir))
            write_text(directory.config, config_text(self.parser, self.config))
            plugins.save(directory)


def config_text(parser: LightningArgumentParser, config: Namespace) -> str:
    """A config as it is saved beside a run: without keys; word for word where there are none."""
    text = parser.dump(config, skip_unset=False)
    whole = load_yaml(text)
    kept = redact(whole)
    return text if kept == whole else yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
