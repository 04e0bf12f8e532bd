"""``vidlit.fit``, ``fit_model``, ``plan``, ``predict``: the commands from Python, with objects for files and text."""

from __future__ import annotations

import json
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vidlit import plugins as active_plugins
from vidlit.commands.cli.configs import TRAINER_DEFAULTS, check_run_name, find_config
from vidlit.commands.options.checking import check
from vidlit.commands.options.old_keys import rename_words
from vidlit.errors import UserError
from vidlit.latents.quiet_lightning import quiet_lightning

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from vidlit.data.datamodule import LatentDataModule
    from vidlit.forecast.run_plan import RunPlan
    from vidlit.runs.directory import RunDirectory
    from vidlit.runs.record import RunRecord
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


def fit_model(
    model: VideoDiffusionModule,
    data: LatentDataModule,
    *,
    callbacks: Sequence[Callback] = (),
    name: str = "vidlit",
    runs: str | Path = "runs",
    report: bool = True,
    quiet: bool = False,
    **trainer: Any,
) -> FitResult:
    """As ``vidlit fit``, of a module and data made in Python: encodes what is missing, trains, stops, keeps the best.

    The run has no ``config.yaml``: what it was made with is the code that called this.

    Args:
        model: to train.
        data: of the same base, frame rate and sound.
        callbacks: Lightning's, signals, and vidlit's own where they shall have other options than by default:
            ``vidlit.signals.SampleVideos(num_audit=0)``, ``vidlit.signals.OverfitStopping(policy={"copies": "warn"})``.
        name: of the run.
        runs: folder of all runs.
        report: whether to write ``report.html`` at the end.
        quiet: print nothing and show no bar.
        trainer: options of Lightning's Trainer: ``max_steps=60``, ``accelerator="cpu"``.

    Raises:
        UserError: model and data do not go together, or cannot be used, or there are several devices.
        Interrupted: it was told to stop; says which checkpoint holds it.

    Example::

        data = vidlit.LatentDataModule("clips", "latents", base, ["49x480x832"])
        model = vidlit.VideoDiffusionModule(base, adapter=LoRA(rank=16))
        result = vidlit.fit_model(model, data, max_steps=500)
    """
    with _from_python(quiet, ()), quiet_lightning():
        from vidlit.runs.record import RunRecord

        options = {"enable_progress_bar": False, **trainer} if quiet else trainer
        directory = _fit_objects(model, data, callbacks, Path(runs), name, report, options)
        return FitResult(RunRecord(directory.path), model, data)


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
        from vidlit.commands.plan import plan_of
        from vidlit.commands.planning.plan_words import print_plan

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


def _fit_objects(
    model: VideoDiffusionModule,
    data: LatentDataModule,
    callbacks: Sequence[Callback],
    runs: Path,
    name: str,
    report: bool,
    options: Mapping[str, Any],
) -> RunDirectory:
    """What the command makes of a config, made of objects."""
    from lightning.pytorch.callbacks import ProgressBar

    from vidlit.callbacks.order import callbacks_for
    from vidlit.callbacks.run_overview import closing_facts, print_facts
    from vidlit.commands.cli.trainer import VidlitTrainer
    from vidlit.commands.on_runs.report import write_report_of
    from vidlit.runs.checkpoint_files import AtomicCheckpointIO
    from vidlit.runs.closing import how_it_ended
    from vidlit.runs.directory import new_run_directory
    from vidlit.runs.live.run_log import RunLog
    from vidlit.runs.lock import RunLock
    from vidlit.runs.loggers.background_logger import finish_loggers, in_background
    from vidlit.runs.loggers.csv_logger import RunCSVLogger
    from vidlit.runs.wording import say
    from vidlit.signals.signal import known_signals
    from vidlit.training.precision import precision_and_plugins

    _check_together(model, data)
    check_run_name({"run.name": name})
    known_signals()  # imports them all
    kinds = active_plugins.in_modules(["vidlit.signals", "vidlit.callbacks"])
    given = list(callbacks)
    given += [kind() for kind in kinds.values() if not any(isinstance(callback, kind) for callback in callbacks)]
    data.further_captions = list(dict.fromkeys([*data.further_captions, *_captions(model, given)]))
    directory = new_run_directory(runs, name)
    acting = callbacks_for("fit", given)
    if options.get("enable_progress_bar") is False:  # Lightning refuses a bar then
        acting = [callback for callback in acting if not isinstance(callback, ProgressBar)]
    trainer = None
    with ExitStack() as held:
        held.callback(directory.discard_if_empty)
        held.callback(RunLock(directory).release)
        held.enter_context(RunLog(directory, ["fit_model"]))
        try:
            trainer = VidlitTrainer(
                **{
                    **TRAINER_DEFAULTS,
                    **options,
                    "default_root_dir": directory.path,
                    "logger": [*in_background(_listed(options.get("logger"))), RunCSVLogger(directory)],
                    **precision_and_plugins(
                        options.get("precision"), [*_listed(options.get("plugins")), AtomicCheckpointIO()]
                    ),
                    "callbacks": acting,
                }
            )
            if trainer.world_size > 1:  # each of its processes would run the code that called this
                raise UserError("vidlit.fit_model trains on one device: use `vidlit fit` for several.")
            trainer.check_before_encoding(model, data)
            print(data.encode(accelerator=trainer.accelerator_name, devices=trainer.num_devices))
            trainer.fit(model, datamodule=data)
        finally:
            finish_loggers(trainer)
        summary = directory.read_summary()
        print()
        say(how_it_ended(summary, directory))
        print()
        if report:
            write_report_of(directory)
        print_facts(closing_facts(summary, directory))
    return directory


def _check_together(model: VideoDiffusionModule, data: LatentDataModule) -> None:
    ours, theirs = model.family, data.family
    for what, one, other in (
        ("base", ours.base.resolve(), theirs.base.resolve()),
        ("fps", ours.fps, theirs.fps),
        ("audio", [stream.name for stream in ours.streams], [stream.name for stream in theirs.streams]),
        ("references", model.reads_references, data.references),
    ):
        if one != other:
            raise UserError(f"model and data do not go together: {what} is {one} of the model, {other} of the data.")


def _captions(model: VideoDiffusionModule, callbacks: Sequence[Callback]) -> list[str]:
    """What training and checks need beside the captions of the clips."""
    from vidlit.commands.cli.further_captions import captions_of_training
    from vidlit.signals import DriftMonitor, OverfitStopping, SampleVideos

    (samples,) = (callback for callback in callbacks if isinstance(callback, SampleVideos))
    (drift,) = (callback for callback in callbacks if isinstance(callback, DriftMonitor))
    (stopping,) = (callback for callback in callbacks if isinstance(callback, OverfitStopping))
    return captions_of_training(
        samples.sampling.guidance_scale,
        samples.sampling.negative_prompt,
        model.caption_dropout,
        None if model.preservation is None else {"captions": model.preservation.texts},
        drift.captions,
        stopping.policy,
    )


def _listed(value: Any) -> list[Any]:
    """What a Trainer takes as one, several or none."""
    return list(value) if isinstance(value, list | tuple) else [] if value in (None, True, False) else [value]
