"""Config files: found by name, from a checkout and from an installed package alike, and which classes they may name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import vidlit
from vidlit import plugins
from vidlit.errors import UserError

# A config file may come from anywhere, and naming a class imports its module: only these may be named.
IMPORTABLE = [
    "vidlit",
    "lightning",
    "torch",
    "diffusers",
    "wandb",
    "torchmetrics",
    "torchao",
    "bitsandbytes",
    "prodigyopt",
    "schedulefree",
]

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
    """Let jsonargparse make classes of these packages and of the plugins that take part, and of no others."""
    from jsonargparse import set_parsing_settings

    set_parsing_settings(
        import_path_denylist=["*", *plugins.modules_of_before()],
        import_path_allowlist=[*IMPORTABLE, *plugins.modules()],
    )


def _yaml_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.yaml"), *folder.glob("*.yml")] if folder.is_dir() else []
