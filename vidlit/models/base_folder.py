"""A base on disk: a folder as diffusers' ``save_pretrained`` writes it, or a hub name that is fetched once."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from vidlit.errors import UserError
from vidlit.whole_files import write_whole

_EDGE_BYTES = 1 << 20
_MOST_LAYERS = 1000
"""Of a part; published ones have up to 126. A config with a million layers would be built for hours before it fails."""
_LAYERS = re.compile(r"(^|_)(layers|blocks|depth)(_|$)")
_CONFIGS_ALONE = ContextVar("configs_alone", default=False)
AUTOENCODER, SCHEDULER = r"AutoencoderKL\w*", r"\w+Scheduler"
"""Names of the classes of diffusers that a base may name for these parts."""


class PartConfig(dict[str, Any]):
    """A config of one part; a key that it lacks is an error of the base.

    Args:
        file: that it was read from.
        values: that stand in it.
    """

    def __init__(self, file: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self._file = file

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self._file} has no {key!r}: it is not the config of a base that can be trained.")


def read_config(base: Path, part: str, file: str = "config.json") -> dict[str, Any]:
    """``config.json`` of one part of a base; schedulers name theirs otherwise, and so does the whole (part ``""``).

    Raises:
        UserError: it is missing or no JSON.
    """
    name = f"{part}/{file}" if part else file
    try:
        config = json.loads((base / name).read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{base} is not a complete diffusers folder: cannot read {name} ({reason}). A base holds "
            "transformer, vae, text_encoder, tokenizer and scheduler, as save_pretrained writes them."
        ) from error
    for key, value in config.items():
        if _LAYERS.search(key) and isinstance(value, int) and value > _MOST_LAYERS:
            raise UserError(f"{base / name}: {key} is {value}; no base has more than {_MOST_LAYERS}.")
    return PartConfig(base / name, config)


def diffusers_class(base: Path, part: str, pattern: str, file: str = "config.json") -> Any:
    """The class of diffusers that a base names for one part.

    Args:
        base: its folder.
        part: of it.
        pattern: of names that are classes for this part.
        file: that names it.

    Raises:
        UserError: it names another kind of class, or one that diffusers does not have.
    """
    import diffusers

    name = read_config(base, part, file)["_class_name"]
    found = getattr(diffusers, name, None) if isinstance(name, str) and re.fullmatch(pattern, name) else None
    if not isinstance(found, type):
        raise UserError(f"{base / part / file} names {str(name)[:100]!r}, which diffusers does not have for a {part}.")
    return found


def fingerprint(folder: Path) -> str:
    """A short hash of a model folder: its small files whole, of its weights the size and both ends.

    Weights of several gigabytes would take longer to hash than a small dataset takes to encode; a fine-tuned or
    converted file differs at its ends (safetensors keep the header there) or in size.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            if size > _EDGE_BYTES:
                file.seek(max(_EDGE_BYTES, size - _EDGE_BYTES))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def fingerprint_of_parts(base: Path, recipe: str, *parts: str) -> str:
    """A short hash of words and of a base's folders whose names begin like these."""
    folders = sorted(path for path in base.iterdir() if path.name.startswith(parts))
    return hashlib.sha256("".join([recipe, *map(fingerprint, folders)]).encode()).hexdigest()[:16]


def local_folder(base: str) -> Path:
    """Where a base lies: the folder itself, or what is fetched of a hub name.

    Raises:
        UserError: no such folder, or the hub name cannot be fetched.
    """
    folder = Path(base)
    if folder.is_dir():
        return folder
    if base.count("/") != 1 or base.startswith((".", "/", "~")):
        raise UserError(
            f"Base model folder {base} does not exist. Give a diffusers folder or a hub name (owner/model)."
        )
    try:
        if _CONFIGS_ALONE.get():
            return _fetch_configs(base)
        from diffusers import DiffusionPipeline

        return Path(DiffusionPipeline.download(base, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise UserError(
            f"Base model {base} is not a local folder, and could not be fetched from the hub: {error}"
        ) from error


@contextmanager
def configs_alone() -> Iterator[None]:
    """While it is open, a hub name gives what is there of its base, or its configs: no weights are fetched."""
    token = _CONFIGS_ALONE.set(True)
    try:
        yield
    finally:
        _CONFIGS_ALONE.reset(token)


def _fetch_configs(base: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        there = Path(snapshot_download(base, local_files_only=True))
        if (there / "model_index.json").is_file():
            return there
    except LocalEntryNotFoundError:
        pass
    return Path(snapshot_download(base, allow_patterns=["model_index.json", "*/*config.json"]))


def load_part(part_class: Any, base: Path, part: str, **kwargs: Any) -> Any:
    """One part of a base by its class's ``from_pretrained``: never code that lies in it, weights of safetensors alone.

    Args:
        part_class: of diffusers or transformers.
        base: its folder.
        part: of it.
        kwargs: further ones for the class.

    Raises:
        UserError: it cannot be loaded.
    """
    folder = base / part
    if issubclass(part_class, torch.nn.Module):
        _check_index(folder)
        kwargs["use_safetensors"] = True
    elif part_class.__name__.startswith("Auto"):
        kwargs["trust_remote_code"] = False
    with errors_of_base(folder, part_class.__name__):
        loaded = part_class.from_pretrained(folder, **kwargs)
        if isinstance(loaded, torch.nn.Module):
            unfilled = [name for name, parameter in loaded.named_parameters() if parameter.is_meta]
            if unfilled:  # diffusers leaves what no file holds without memory, and says nothing
                raise ValueError(f"its files hold no weights for {', '.join(unfilled[:3])}")
        return loaded


@contextmanager
def errors_of_base(folder: Path, name: str) -> Iterator[None]:
    """Whatever a damaged part of a base leads its classes to raise, as one error that says which part it is.

    Args:
        folder: of the part.
        name: of what it is loaded as.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        line = " ".join(str(error).split())
        if "allocate memory" in line:  # how torch says that the machine's memory is full
            raise
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise UserError(f"{folder} could not be loaded as {name}: {kind}{line[:500]}") from error


def add_base_parts(base: Path, folder: Path, trained: Sequence[str], copy: bool) -> None:
    """Put what a base holds beside its transformers into a folder that has transformers of its own.

    Args:
        base: a diffusers folder.
        folder: holds the trained ones; parts that are there already are replaced.
        trained: folders of the transformers.
        copy: or link, which costs no space and needs the base to stay where it is.
    """
    parts = (path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))
    for part in sorted(path for path in parts if path.name not in trained):
        target = folder / part.name
        if target.is_symlink():
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)
        if copy:
            shutil.copytree(part, target)
        else:
            target.symlink_to(part.resolve(), target_is_directory=True)
    if (base / "model_index.json").is_file():
        write_whole(folder / "model_index.json", (base / "model_index.json").read_bytes())


def _check_index(folder: Path) -> None:
    """Refuse an index of shards that names anything but safetensors beside it: what it names is opened."""
    for index in folder.glob("*.index.json"):
        named = read_config(folder, "", index.name).get("weight_map")
        files = set(map(str, named.values())) if isinstance(named, dict) else {str(named)}
        wrong = sorted(name for name in files if Path(name).name != name or not name.endswith(".safetensors"))
        if wrong and "safetensors" in index.name:
            raise UserError(f"{index} names {wrong[0][:100]!r}: only safetensors files beside it may be named.")
