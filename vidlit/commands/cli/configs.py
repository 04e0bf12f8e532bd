"""Config files: found by name, from a checkout and from an installed package alike, and which classes they may name."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import vidlit
from vidlit import plugins
from vidlit.errors import UserError

IMPORTABLE = [
    "vidlit",
    "torch.optim",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.profilers",
    "lightning.pytorch.plugins",
    "lightning.fabric.plugins",  # where the plugins' cluster environments and files are really defined
    "lightning.pytorch.cli.ReduceLROnPlateau",
    "torchao.optim",
    "bitsandbytes.optim",
    "prodigyopt",
    "schedulefree",
]
"""What a config may name, and all below it. A config may come from anywhere, and to name a class imports its module."""

KINDS = {
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "lightning.pytorch.callbacks.callback.Callback",
    "lightning.fabric.loggers.logger.Logger",
    "lightning.pytorch.strategies.strategy.Strategy",
    "lightning.fabric.accelerators.accelerator.Accelerator",
    "lightning.pytorch.profilers.profiler.Profiler",
    "lightning.fabric.plugins.precision.precision.Precision",
    "lightning.fabric.plugins.io.checkpoint_io.CheckpointIO",
    "lightning.fabric.plugins.environments.cluster_environment.ClusterEnvironment",
    "lightning.pytorch.plugins.layer_sync.LayerSync",
}
"""What the options are for that take a class of another package. By name, for `plan` does without Lightning."""

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_steps": 2000,
    "val_check_interval": None,  # chosen by ValidationSchedule
    "check_val_every_n_epoch": None,  # an endless epoch has no number
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "use_distributed_sampler": False,  # the batch sampler knows its rank
    "enable_model_summary": False,
    "devices": 1,
}
"""What a fit does where nobody says otherwise."""

_PATHS = {
    *("run.dir", "data.source", "data.store", "data.cache.folder", "data.base", "model.base", "ckpt_path", "demo.dir"),
    *("lora", "output"),
}
"""Options that name files of the user's."""
_NAME = re.compile(r"\w(?:[\w .+=@-]{0,98}[\w+=@-])?")
"""Of a run: what is a name of one folder on every system, and says nothing to a shell, to Markdown or to a browser."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that are devices on Windows."""


def packaged_configs() -> dict[str, Path]:
    """The config files that come with vidlit, by name without ending."""
    package = Path(vidlit.__file__).parent
    folder = next((each for each in (package / "configs", package.parent / "configs") if each.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def find_config(name: str | Path) -> Path:
    """A config file.

    Args:
        name: of a file, or of one that comes with vidlit: ``quickstart``.

    Raises:
        UserError: there is none; names the nearest.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = packaged_configs()
    if str(name) in packaged:
        return packaged[str(name)]
    if path.is_dir():
        raise UserError(f"--config {name} is a folder: name a YAML file.")
    beside = {str(path.with_name(each.name)): each for each in _yaml_files(path.parent)}
    near = difflib.get_close_matches(str(name), [*packaged, *beside], n=1, cutoff=0.6)
    meant = f" Did you mean {near[0]}?" if near else f" Those that come with vidlit: {', '.join(packaged)}."
    raise UserError(f"--config {name}: no such file.{meant}")


def allow_imports() -> None:
    """Let jsonargparse import what these packages and the plugins that take part hold, and nothing else.

    Where an option takes anything, what looks like a class stays the mapping it is.
    """
    from jsonargparse import set_parsing_settings

    set_parsing_settings(
        import_path_denylist=["*", *plugins.modules_of_before()],
        import_path_allowlist=[*IMPORTABLE, *plugins.modules()],
        instantiate_subclass_spec_in_any=False,
    )


def check_classes(config: Any) -> None:
    """Refuse what is no class of a kind that options are for; to be called before anything of a config is made.

    jsonargparse holds a class to the type of its option, but takes any *function* where it takes one that makes an
    optimizer: `torch.load` and `torch.hub.load` are such. What plugins define may be a function, too.

    Args:
        config: as a parser gives it.

    Raises:
        UserError: names the option and what it was given.
    """
    for key, value in _values(config.get(str(config.get("subcommand")), config), ""):
        if key.endswith(".class_path") or key == "class_path":
            value = _imported(value)
        elif not (inspect.isroutine(value) or isinstance(value, type | ModuleType | partial)):
            continue
        if not _may_be_named(value):
            named = value if isinstance(value, str) else getattr(value, "__qualname__", repr(value))
            raise UserError(
                f"{key.removesuffix('.class_path')}: {named} is not what this option is for: a config names only "
                "classes, of optimizers, schedules, loggers, callbacks, strategies and what vidlit has. Code of your "
                f"own takes part by {plugins.OPTION} FILE on the command line."
            )


def check_run_name(config: Any) -> None:
    """Refuse a name of a run that is no name of one folder, below ``run.dir``.

    Args:
        config: as a parser gives it, of one command or of all.

    Raises:
        UserError: says what a name may be.
    """
    name = (config.get("run.name") or config.get(f"{config.get('subcommand')}.run.name")) or ""
    if name and (not _NAME.fullmatch(name) or _RESERVED.fullmatch(name)):
        raise UserError(
            f"--run.name {name[:100]!r}: a run's name is the name of one folder: a letter, a digit or '_', then up to "
            "99 more, with '-', '.', '+', '=', '@' and spaces between them. Where that folder lies says --run.dir."
        )


def expand_paths(config: Any) -> None:
    """Write out ``~`` and ``$HOME`` in paths, in place: a shell does it for its own words only.

    Args:
        config: as a parser gives it, of one command or of all.
    """
    own = config.get(str(config.get("subcommand")), config)
    for key in _PATHS:
        value = own.get(key)
        if isinstance(value, str | Path) and ("$" in str(value) or str(value).startswith("~")):
            own[key] = type(value)(os.path.expandvars(os.path.expanduser(str(value))))


def _values(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """All plain values of a config, with their dotted names."""
    if isinstance(value, Mapping) or type(value).__name__ == "Namespace":
        for name, each in (value if isinstance(value, Mapping) else vars(value)).items():
            yield from _values(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple | set):
        for number, each in enumerate(value):
            yield from _values(each, f"{key}[{number}]")
    else:
        yield key, value


def _imported(path: Any) -> Any:
    """What a dotted name of a module's own class stands for; the name itself where it is none."""
    module, _, name = str(path).rpartition(".")
    return getattr(sys.modules.get(module), name, str(path))


def _may_be_named(value: Any) -> bool:
    module = getattr(value, "__module__", None) or ""
    if any(module == each or module.startswith(f"{each}.") for each in plugins.modules()):
        return isinstance(value, type | FunctionType)
    if not isinstance(value, type):
        return False
    is_own = module.split(".")[0] == vidlit.__name__
    return is_own or any(f"{base.__module__}.{base.__qualname__}" in KINDS for base in value.__mro__)


def _yaml_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.yaml"), *folder.glob("*.yml")] if folder.is_dir() else []
