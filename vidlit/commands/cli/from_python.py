"""``vidlit.fit``, ``plan`` and ``predict``: the commands from Python, with objects in place of files and text."""

from __future__ import annotations

import json
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vidlit import plugins as active_plugins
from vidlit.commands.cli.configs import find_config
from vidlit.commands.options.checking import check
from vidlit.commands.options.old_keys import rename_words
from vidlit.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from vidlit.data.datamodule import LatentDataModule
    from vidlit.runs.record import RunRecord
    from vidlit.training.forecast import RunPlan
    from vidlit.training.module import VideoDiffusionModule

Config = str | Path | Mapping[str, Any]
"""A file, the name of one that comes with vidlit, or what would stand in one."""


@dataclass(frozen=True)
class FitResult:
    """A fit that is over.

    Args:
        record: its files, read back: ``record.curve("val/log_ratio")``, ``record.directory.weights``.
        module: with the weights that were kept.
        datamodule: of its clips.
    """

    record: RunRecord
    module: VideoDiffusionModule
    datamodule: LatentDataModule

    @property
    def directory(self) -> Path:
        """The run's folder."""
        return self.record.path

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds: ``stop_step``, ``best_step``, ``kept_step``, ``exposures`` ..."""
        return self.record.summary

    @property
    def stopped_by(self) -> str:
        """The signal that stopped it, ``max_steps``, or ``request`` (``vidlit stop``)."""
        return str(self.summary["stopped_by"])

    @property
    def reason(self) -> str:
        """Why, in words."""
        return str(self.summary["reason"])


@dataclass(frozen=True)
class PredictedVideo:
    """A video of a prompt.

    Args:
        path: of the mp4.
        details: what it was made with: prompt, seed, size, weights.
    """

    path: Path
    details: dict[str, Any]


def fit(
    config: Config | Sequence[Config] = "quickstart",
    *,
    callbacks: Sequence[Callback] = (),
    plugins: Sequence[str] = (),
    quiet: bool = False,
    **overrides: Any,
) -> FitResult:
    """As ``vidlit fit``.

    Args:
        config: a YAML file, the name of one that comes with vidlit, or a dict; of several, later ones win.
        callbacks: Lightning's, or signals, beside vidlit's own.
        plugins: files or modules whose signals, callbacks and families take part, as with ``--plugin``.
        quiet: print nothing and show no bar.
        overrides: options, with two underscores for a dot: ``trainer__max_steps=60``, ``model__adapter={"rank": 8}``.

    Raises:
        UserError: an option, a config or the clips cannot be used.
        Interrupted: it was told to stop; says which checkpoint to go on from.

    Example::

        result = vidlit.fit("quickstart", trainer__max_steps=60)
        print(result.stopped_by, result.directory)
    """
    if quiet:
        overrides = {"trainer__enable_progress_bar": False, **overrides}
    with _from_python(quiet, plugins):
        from vidlit.commands.fit import train
        from vidlit.runs.record import RunRecord

        directory, cli = train(_words("fit", config, overrides), callbacks)
        return FitResult(RunRecord(directory.path), cli.model, cli.datamodule)


def plan(
    config: Config | Sequence[Config] = "quickstart",
    *,
    plugins: Sequence[str] = (),
    quiet: bool = False,
    **overrides: Any,
) -> RunPlan:
    """As ``vidlit plan``: what a fit would do.

    Args:
        config: as :func:`fit` takes it.
        plugins: as :func:`fit` takes them.
        quiet: print nothing.
        overrides: options, with two underscores for a dot.

    Raises:
        UserError: an option, a config or the clips cannot be used.
    """
    with _from_python(quiet, plugins):
        from vidlit.commands.plan import plan_of, print_plan

        made = plan_of(_words("plan", config, overrides))
        print_plan(made)
        return made


def predict(
    config: Config | Sequence[Config],
    prompts: str | Path | Sequence[str],
    *,
    plugins: Sequence[str] = (),
    quiet: bool = False,
    **overrides: Any,
) -> list[PredictedVideo]:
    """As ``vidlit predict``: videos for prompts, as files.

    Args:
        config: as :func:`fit` takes it; ``config.yaml`` of a run, for its weights.
        prompts: a prompt, several, or a text or CSV file of them.
        plugins: as :func:`fit` takes them.
        quiet: print nothing.
        overrides: options, with two underscores for a dot, such as ``ckpt_path="best"``, ``lora=...``,
            ``output="videos"``, ``overwrite=True``, ``samples__num_steps=10``.

    Raises:
        UserError: an option, a config or a prompt cannot be used, or a file is there already.
    """
    with _from_python(quiet, plugins):
        from vidlit.commands.cli.run_lightning import run_lightning

        asked = str(prompts) if isinstance(prompts, str | Path) else list(prompts)
        cli = run_lightning(_words("predict", config, {**overrides, "prompts": asked}))
        return [PredictedVideo(path, json.loads(path.with_suffix(".json").read_text())) for path in cli.predicted]


def _words(command: str, config: Config | Sequence[Config], overrides: Mapping[str, Any]) -> list[str]:
    """The command line that says the same."""
    configs = [config] if isinstance(config, str | Path | Mapping) else config
    words = [f"--config={_text(each) if isinstance(each, Mapping) else find_config(each)}" for each in configs]
    words += [f"--{name.replace('__', '.')}={_text(value)}" for name, value in overrides.items()]
    return check(rename_words([command, *words]))


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, str | Path):
        return str(value)
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=10**9).removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


@contextmanager
def _from_python(quiet: bool, plugins: Sequence[str]) -> Iterator[None]:
    """Errors as exceptions of ours, and what is printed kept back where nobody wants it."""
    try:
        with redirect_stdout(StringIO()) if quiet else nullcontext(), active_plugins.active(plugins):
            yield
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
            raise KeyboardInterrupt from end
        raise UserError(f"it ended early, with exit code {end.code}.") from end
