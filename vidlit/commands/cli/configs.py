"""Config files by name: those that come with vidlit are found from a checkout and from an installed package alike."""

from __future__ import annotations

import difflib
from pathlib import Path

import vidlit
from vidlit.errors import UserError


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


def _yaml_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.yaml"), *folder.glob("*.yml")] if folder.is_dir() else []
