"""LightningCLI with vidlit's data, module and callbacks: what one YAML file drives."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy

import vidlit.callbacks
import vidlit.signals
from vidlit import plugins
from vidlit.callbacks.evaluation import Validate
from vidlit.callbacks.order import callbacks_for
from vidlit.callbacks.run_overview import closing_facts, print_facts
from vidlit.commands.cli.configs import TRAINER_DEFAULTS, allow_imports, check_classes, check_run_name, expand_paths
from vidlit.commands.cli.further_captions import link_further_captions
from vidlit.commands.cli.references import link_references
from vidlit.commands.cli.refit import finished
from vidlit.commands.cli.saved_config import SaveRunConfig, config_text
from vidlit.commands.cli.trainer import VidlitTrainer
from vidlit.commands.on_runs.report import write_report_of
from vidlit.commands.on_runs.watch import open_page
from vidlit.commands.options.old_keys import rename_configs_when_read, rename_words
from vidlit.commands.options.resumed_options import changed_options
from vidlit.commands.planning.out_of_memory import memory_advice
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.demo_folder import Demo
from vidlit.data.identity import DataIdentity
from vidlit.errors import UserError, is_out_of_memory
from vidlit.lightning_internals import callbacks_of, parser_of
from vidlit.runs.checkpoint_files import AtomicCheckpointIO, check_checkpoint, check_goes_on, remove_leftovers
from vidlit.runs.closing import how_it_ended
from vidlit.runs.directory import (
    RunDirectory,
    latest_run_directory,
    new_run_directory,
    restarted_run_directory,
    write_text,
)
from vidlit.runs.launch import Launch, telling_of_lost_ranks
from vidlit.runs.live.requests import Requests
from vidlit.runs.live.run_log import RunLog
from vidlit.runs.lock import RunLock
from vidlit.runs.loggers.background_logger import finish_loggers, in_background, prepare_wandb
from vidlit.runs.loggers.continued_loggers import continued, remember
from vidlit.runs.loggers.csv_logger import RunCSVLogger
from vidlit.runs.rank import rank_from_environment
from vidlit.runs.resumes import Change
from vidlit.runs.wording import say
from vidlit.sampling.prediction import Predict
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.precision import precision_and_plugins

RUN_DIRECTORY_VARIABLE = "VIDLIT_RUN_DIRECTORY"
"""Tells processes that Lightning launches for further devices where their run is."""


class VidlitCLI(LightningCLI):
    """``fit``, ``validate``, ``test``, ``predict`` and ``encode``, driven by one YAML file.

    Args:
        args: words of the command line.
        callbacks: beside those that the config names.
    """

    run_directory: RunDirectory
    changes: Sequence[Change] = ()
    """Options that were changed since a run that goes on was saved."""
    predicted: list[Path]
    """Videos that ``predict`` made."""

    def __init__(self, args: list[str], callbacks: Sequence[Callback] = ()) -> None:
        self.given_callbacks, self.given_words = callbacks, args
        self.held = ExitStack()
        """What a fit holds of its run while it is at it: lock and log; on the process that decides for all."""
        asked = {name: skipped for name, skipped in self.subcommands().items() if name in args}
        # Lightning would build the parsers of all commands, which takes a second.
        self.subcommands = lambda: asked  # type: ignore[method-assign]  # as Lightning calls it
        allow_imports()
        rename_configs_when_read()
        with self.held:
            super().__init__(
                VideoDiffusionModule,
                LatentDataModule,
                SaveRunConfig,
                trainer_class=VidlitTrainer,
                trainer_defaults=TRAINER_DEFAULTS,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={"prog": "vidlit"},
                args=rename_words(args),
            )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose errors are raised, so that they can be told in one line."""
        kwargs.setdefault("exit_on_error", False)
        return super().init_parser(**kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:  # type: ignore[override]  # only words
        """Parse the words given; Lightning's own would warn that ``sys.argv`` holds others, as it does in a test."""
        self.config = parser.parse_args(args)
        check_classes(self.config)
        check_run_name(self.config)
        expand_paths(self.config)

    def _parse_ckpt_path(self) -> None:
        """Leave the config as it is: Lightning's own lets a checkpoint's hyperparameters change it, classes as well."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Commands and the arguments they do not take from the command line."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only"},
            "test": {"model", "dataloaders", "datamodule", "weights_only"},
            "predict": {"model", "dataloaders", "datamodule", "weights_only", "return_predictions"},
            "encode": {"model", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The sections beside ``trainer``, ``model`` and ``data``."""
        parser.add_argument(
            "--demo", type=Demo | None, default=None, help="Procedural clips and base model to write first."
        )
        parser.add_argument("--run.dir", type=Path, default=Path("runs"), help="Folder of all run directories.")
        parser.add_argument(
            "--run.name", type=str, default="vidlit", help="Name of the folder in which runs are numbered."
        )
        parser.add_argument("--run.report", type=bool, default=True, help="Whether to write report.html at the end.")
        parser.add_argument(
            "--run.watch", type=bool, default=False, help="Whether to show the run in a browser; short: --watch."
        )
        told = "Whether to begin although the forecast says that the GPU's memory will not do."
        parser.add_argument("--run.ignore_memory_forecast", type=bool, default=False, help=told)
        parser.add_argument(
            "--refit",
            type=bool,
            default=False,
            help="Whether to train again on all clips after the stop, for the number of steps that was best.",
        )
        for section, kind in plugins.in_modules(_import_all(vidlit.signals, vidlit.callbacks)).items():
            parser.add_lightning_class_args(kind, section)
        plugins.add_to(parser)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("model.base", "data.base")
        parser.link_arguments("model.audio", "data.audio")
        link_references(parser)
        parser.link_arguments("data.fps", "model.fps")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        link_further_captions(parser, subcommand)
        if subcommand == "predict":
            parser.add_class_arguments(Predict)
        if subcommand == "validate":
            parser.add_class_arguments(Validate)
        return parser

    # -- before anything is made

    def before_instantiate_classes(self) -> None:
        """Write the demo where one is asked for, and decide where the run is."""
        config = self.config[self.subcommand]
        if RUN_DIRECTORY_VARIABLE in os.environ:  # a process launched by Lightning, after the first one had decided
            path, checkpoint = self._inherit(config)
        elif (launch := Launch.detect(config.trainer.num_nodes)) is not None:
            if launch.devices is not None and config.trainer.devices == 1:
                config.trainer.devices, config.trainer.num_nodes = launch.devices, launch.num_nodes
            path, checkpoint = launch.agree(lambda: self._prepare(config))
        else:
            path, checkpoint = self._prepare(config)
        if checkpoint is not None:
            check_checkpoint(Path(checkpoint))
            if self.subcommand == "fit":
                check_goes_on(Path(checkpoint))
            config.ckpt_path = checkpoint
        if path is not None:
            os.environ[RUN_DIRECTORY_VARIABLE] = path
        self.run_directory = RunDirectory(Path(path or config.run.dir))  # where nothing is written, any will do
        config.trainer.default_root_dir = str(self.run_directory.path)
        prepare_wandb(config.trainer.logger, self.run_directory.path)

    def _inherit(self, config: Namespace) -> tuple[str | None, str | None]:
        directory = RunDirectory(Path(os.environ[RUN_DIRECTORY_VARIABLE]))
        checkpoint = config.get("ckpt_path")
        if self.subcommand == "fit" and rank_from_environment() == 0:  # a fold, or a refit, in a folder of its own
            self._take_up(directory, goes_on=checkpoint is not None)
        named = {"last": str(directory.last_checkpoint), "best": str(directory.best_checkpoint)}
        return str(directory.path), named.get(checkpoint, checkpoint)

    def _prepare(self, config: Namespace) -> tuple[str | None, str | None]:
        """The run directory, if there is one, and the checkpoint to load: decided by one process for all."""
        if config.demo is not None:
            Demo(**vars(config.demo)).write()
        checkpoint = config.get("ckpt_path")
        if self.subcommand == "fit" and (restarted := restarted_run_directory(config.run.dir, config.run.name)):
            directory, checkpoint = restarted, str(restarted.last_checkpoint)
        elif checkpoint in ("last", "best"):
            directory = _run_of(config)
            checkpoint = str(directory.last_checkpoint if checkpoint == "last" else directory.best_checkpoint)
        elif checkpoint is not None:
            if not Path(checkpoint).exists():
                raise UserError(f"--ckpt_path {checkpoint}: no such file. Name a checkpoint, 'best' or 'last'.")
            check_checkpoint(Path(checkpoint))
            directory = RunDirectory(Path(checkpoint).resolve().parents[1])
            if self.subcommand == "fit" and directory.checkpoints != Path(checkpoint).resolve().parent:
                raise UserError(
                    f"--ckpt_path {checkpoint}: a run goes on in its own folder, and this checkpoint lies outside "
                    "of one. Move it back into `checkpoints` of its run, and name it there."
                )
        elif self.subcommand == "fit":
            directory = new_run_directory(config.run.dir, config.run.name)
        else:
            return None, None
        if self.subcommand == "fit":
            self._take_up(directory, goes_on=checkpoint is not None)
        return str(directory.path), checkpoint

    def _take_up(self, directory: RunDirectory, *, goes_on: bool) -> None:
        """Make the run this process's own, if nobody else is at it and it can go on as it is asked to."""
        plugins.require(directory)
        self.held.callback(RunLock(directory).release)
        requests = Requests(directory)
        requests.clear()  # of a run that ended before it had heard
        self.held.callback(requests.clear)
        self.held.enter_context(RunLog(directory, self.given_words))
        if self.config.fit.run.watch:
            open_page(directory)
        remove_leftovers(directory.checkpoints)
        if goes_on:
            text = config_text(parser_of(self, "fit"), self.config.fit)
            self.changes = changed_options(directory, text)

    def instantiate_classes(self) -> None:
        """Make Trainer, model and data; loggers of a run go on in what they had begun for it."""
        if self.subcommand != "fit":
            return super().instantiate_classes()
        with continued(self.config.fit.trainer.logger, self.run_directory):
            return super().instantiate_classes()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        loggers = config["logger"] if isinstance(config["logger"], list) else [config["logger"]]
        kept = [logger for logger in loggers if logger not in (None, True, False)]
        training = self.subcommand == "fit"
        if self.subcommand == "predict":
            config["enable_progress_bar"] = False  # each video is a line
        if isinstance(config["strategy"], ModelParallelStrategy):
            config["inference_mode"] = False  # what it gathers cannot be trained with; as for Lightning's FSDP
        given = config["plugins"] if isinstance(config["plugins"], list) else [config["plugins"]]
        plugins = [*(plugin for plugin in given if plugin is not None), AtomicCheckpointIO()]
        config |= precision_and_plugins(config["precision"], plugins)
        if config["overfit_batches"]:
            raise UserError(
                "--trainer.overfit_batches: training batches never end here; train on a few videos instead."
            )
        patient = in_background(kept) if training else []
        remember(patient, self.run_directory)
        config["logger"] = [*patient, RunCSVLogger(self.run_directory)] if training else False
        ignore = bool(self.config[self.subcommand].run.ignore_memory_forecast)
        given = [*callbacks, *self.given_callbacks]
        acting = callbacks_for(str(self.subcommand), given, self.changes, ignore_forecast=ignore)
        if config["enable_progress_bar"] is False:  # Lightning refuses a bar then
            acting = [callback for callback in acting if not isinstance(callback, ProgressBar)]
        return super()._instantiate_trainer(config, acting)

    # -- commands

    def _run_subcommand(self, subcommand: str) -> None:
        """Leave out the first phase of a refit that is over; report and close loggers, whatever happens."""
        config = self.config[self.subcommand]
        if subcommand == "fit" and config.refit and config.get("ckpt_path") is not None:
            if finished(self.run_directory.read_summary(), config.trainer.max_steps):
                return
        try:
            self._run_or_advise(subcommand)
        except Exception:  # not Ctrl-C for the second time: that one wants to be out
            if subcommand == "fit" and self.trainer.is_global_zero and self.run_directory.metrics.is_file():
                self._write_report()
            raise
        finally:
            finish_loggers(getattr(self, "trainer", None))

    def _run_or_advise(self, subcommand: str) -> None:
        """Run it; where memory ran out, say what would have saved how much."""
        last_checkpoint = self.run_directory.last_checkpoint if subcommand == "fit" else None
        try:
            with telling_of_lost_ranks(self.trainer, last_checkpoint):
                super()._run_subcommand(subcommand)
        except (RuntimeError, MemoryError) as error:
            if subcommand != "fit" or not is_out_of_memory(error) or not self.model.is_loaded:
                raise
            advice = memory_advice(self.trainer, self.model)
            raise UserError(f"out of memory at step {self.trainer.global_step}. {advice}") from error

    def before_fit(self) -> None:
        """Encode what is missing, and make sure that a fold, or a refit, has the clips of the whole."""
        cast("VidlitTrainer", self.trainer).check_before_encoding(self.model, self.datamodule)
        self._encode()
        whole = self.run_directory.whole
        if whole is None:
            return
        here, there = self.datamodule.clip_identity, DataIdentity.read(whole.clips)
        if there is None and self.trainer.is_global_zero:
            write_text(whole.clips, here.as_table())
        differences = here.differences(there, sides=False) if there is not None else []
        if differences:
            raise UserError(
                f"{whole.path} was begun with other clips: {'; '.join(differences)}. Use the same files, captions and "
                "options of data as then, or start anew under another --run.name."
            )

    def before_validate(self) -> None:
        """Encode what is missing."""
        self._encode()

    def before_test(self) -> None:
        """Encode what is missing."""
        self._encode()

    def before_predict(self) -> None:
        """Read the prompts, and refuse what cannot be made or written before anything is loaded."""
        config = self.config[self.subcommand]
        options = Predict(**{field.name: config[field.name] for field in fields(Predict)})
        sampling = self.config_init[self.subcommand]["samples"].sampling
        self.datamodule, writer = options.prepare(self.model, self.datamodule, sampling, config.ckpt_path)
        callbacks_of(self.trainer).append(writer)
        self.predicted = [writer.path(prompt) for prompt in writer.prompts]

    def predict(self, **arguments: Any) -> None:
        """LightningCLI runs this in place of the Trainer's method."""
        self.trainer.predict(**arguments, return_predictions=False)

    def _encode(self) -> None:
        trainer = cast("VidlitTrainer", self.trainer)
        report = self.datamodule.encode(
            retry_transient=self.config[self.subcommand].get("ckpt_path") is None,
            accelerator=trainer.accelerator_name,
            devices=trainer.num_devices,
            num_nodes=trainer.num_nodes,
        )
        if trainer.is_global_zero:
            say(str(report))
            if self.subcommand != "fit":  # whose table says it
                for line in (_used(self.datamodule), *self.datamodule.usage.lines()):
                    say(line)

    def after_fit(self) -> None:
        """Say how it ended, and make the page that shows it."""
        if self.trainer.is_global_zero:
            summary = self.run_directory.read_summary()
            print()
            say(how_it_ended(summary, self.run_directory))
            print()
            self._write_report()
            print_facts(closing_facts(summary, self.run_directory))

    def _write_report(self) -> None:
        if self.config.fit.run.report:
            write_report_of(self.run_directory)


def _import_all(*rooms: ModuleType) -> list[str]:
    """Import every module of rooms, so that what they define is known; the rooms' names."""
    for room in rooms:
        for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            importlib.import_module(module.name)
    return [room.__name__ for room in rooms]


def _run_of(config: Namespace) -> RunDirectory:
    """The run that a saved config is of, else the latest of its name."""
    own = RunDirectory(Path(config.trainer.default_root_dir or ""))
    return own if own.last_checkpoint.is_file() else latest_run_directory(config.run.dir, config.run.name)


def _used(data: LatentDataModule) -> str:
    sides = {"for training": data.train_clips, "for validation": data.val_clips, "for the test": data.test_clips}
    parts = [
        f"{len(clips)} clips of {len({clip.source.group for clip in clips})} recordings {what}"
        for what, clips in sides.items()
        if clips
    ]
    return ", ".join(parts)
