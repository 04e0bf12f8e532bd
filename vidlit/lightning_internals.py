"""What is read from Lightning by names that are not public, or not declared: a new version of it may move these.

Each function says what it stands for and why there is no other way. No other file uses such names; a test holds that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subprocess import Popen

    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch import Tensor


def replaces_samplers(trainer: Trainer) -> bool:
    """``Trainer(use_distributed_sampler=...)`` as it was set: the Trainer keeps it, but shows it to nobody."""
    return trainer._accelerator_connector.use_distributed_sampler


def is_mid_step(trainer: Trainer) -> bool:
    """Whether gradients wait for further micro-batches: at the last batch a strategy may step early, so no counting."""
    return trainer.fit_loop._should_accumulate()


def check_after_every(trainer: Trainer, num_batches: int) -> None:
    """Check after every so many batches from here on: ``val_check_interval`` is read once, when training begins."""
    trainer.val_check_batch = num_batches


def logs_after_this_batch(trainer: Trainer) -> bool:
    """Whether what is logged in ``on_train_batch_end`` reaches the loggers: the counter that decides is not public."""
    log_every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # undeclared
    return (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % log_every == 0


def count_steps_from(trainer: Trainer, num_steps: int) -> None:
    """Set the counter of :func:`logs_after_this_batch`: Lightning counts a run's last step again when it goes on."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = num_steps


def forget_sigterm(trainer: Trainer) -> None:
    """Let a SIGTERM that Lightning has noted rest: it would act on it before the validation that is due."""
    trainer._signal_connector.received_sigterm = False


def is_attached(pl_module: LightningModule) -> bool:
    """Whether a module has a Trainer: asking ``pl_module.trainer`` raises where there is none."""
    return pl_module._trainer is not None


def detach(pl_module: LightningModule) -> None:
    """Let a module have no Trainer and no ranks: setting ``pl_module.trainer`` asks what it has for its children's."""
    pl_module._trainer = pl_module._device_mesh = None


def settle_ddp(trainer: Trainer, *, leaves_parameters: bool) -> None:
    """Choose options of DDP, which ``DDPStrategy`` is told when it is made, and not later.

    Gradients are views of its buckets unless the user says otherwise: by default there is a copy beside them, 4 bytes a
    trained weight.

    Args:
        trainer: of a fit, before it wraps the module.
        leaves_parameters: whether a step leaves parameters without a gradient. Experts take turns, and once a stream is
            done no loss reaches the layers that end in it.
    """
    options = getattr(trainer.strategy, "_ddp_kwargs", None)
    if options is not None:
        options.setdefault("gradient_as_bucket_view", True)
        options["find_unused_parameters"] = leaves_parameters or options.get("find_unused_parameters", False)


def saves_shards(strategy: ModelParallelStrategy) -> bool:
    """``ModelParallelStrategy(save_distributed_checkpoint=...)`` as it was set; the strategy shows it to nobody."""
    return strategy._save_distributed_checkpoint


def save_as_best(checkpoints: ModelCheckpoint, trainer: Trainer, metrics: dict[str, Tensor]) -> None:
    """Save with these metrics as the check to beat: Lightning itself only saves after validations."""
    checkpoints._save_topk_checkpoint(trainer, metrics)


def parser_of(cli: LightningCLI, command: str) -> LightningArgumentParser:
    """The parser of one command: ``cli.parser`` is that of all, which knows its commands as actions only."""
    return cli._parser(command)


def datamodule_of(trainer: Trainer) -> Any:
    """The Trainer's datamodule: public, but not declared, so no type checker knows of it."""
    return trainer.datamodule  # type: ignore[attr-defined]  # undeclared


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The Trainer's callbacks, in the order in which they are called: public, but not declared."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # undeclared
    return callbacks


def launched_processes() -> list[Popen[bytes]]:
    """The ranks that Lightning launched from this process, from the second one on.

    The first Trainer of a process launches them, which may be another one than asks; what watches them is a thread.
    """
    threads = [each for each in threading.enumerate() if each.name == "child-process-observer"]
    return [child for each in threads for child in getattr(each, "_child_processes", ())]


def before_ranks_are_killed(act: Callable[[], None] | None) -> None:
    """Do something when a rank that Lightning launched has failed, before all others are killed without a word.

    A thread of its launcher sees to that every few seconds; all that it does first is to log a line.

    Args:
        act: called in that thread, in place of what was given before; ``None`` for nothing.
    """

    class Acting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if act is not None and "terminated with code" in record.getMessage():
                act()

    logger = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [Acting()]
