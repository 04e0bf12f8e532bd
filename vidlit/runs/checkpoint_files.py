"""How a checkpoint lies on disk: whole or not at all, in one file or sharded over ranks."""

from __future__ import annotations

import errno
import io
import math
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from vidlit.errors import UserError, disk_full
from vidlit.io_retry import retry_io
from vidlit.lightning_internals import saves_shards
from vidlit.whole_files import replacing

METADATA = "meta.pt"
"""Lightning's file beside the shards: everything but weights and moments."""
_WEIGHTS = "state_dict."


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then renames it: a kill leaves the old one or the new one.

    Lightning's own writes into the machine's folder for temporary files, from where a move to another disk is a copy,
    and holds the whole file in memory first.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file."""
        path = Path(path)
        try:
            retry_io(partial(_write, checkpoint, path), f"writing {path}")
        except Exception as error:
            if (full := disk_full(error)) is not None:
                kept = f" {path} is as it was before." if path.exists() else ""
                raise UserError(f"{path} could not be written: {full}.{kept} Free some space and go on.") from error
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read one file; of a sharded checkpoint everything but moments. Only ever numbers: no object, no code.

        Args:
            path: of the checkpoint.
            map_location: where tensors go; left where they are saved for by default, which is the CPU.
            weights_only: not asked.

        Raises:
            UserError: it is no checkpoint.
        """
        path = Path(path)
        if is_sharded(path):
            checkpoint: dict[str, Any] = _load(path / METADATA) | {"state_dict": _read_shards(path)}
        else:
            checkpoint = _load(path, map_location or (lambda storage, _: storage))
        return checkpoint


def check_checkpoint(path: Path) -> None:
    """Make sure, before anything slow and before Lightning opens it, that this is a checkpoint and holds no code.

    Args:
        path: of a file, or of a folder of shards.

    Raises:
        UserError: it is not; says what it seems to be.
    """
    if is_sharded(path):
        read_shard_metadata(path)
        checkpoint = _load(path / METADATA)
    elif (path / "model_index.json").is_file() or (path / "transformer").is_dir():
        raise UserError(f"{path} is a folder of weights, not a checkpoint: give it as --model.base.")
    elif path.is_dir():
        raise UserError(f"{path} is a folder without the shards of a checkpoint: name a file, such as last.ckpt.")
    elif path.suffix == ".safetensors":
        raise UserError(
            f"{path} holds weights alone, not a checkpoint: `vidlit predict --lora` makes videos with a LoRA."
        )
    else:
        checkpoint = _load(path, mmap=True)
    missing = {"global_step", "pytorch-lightning_version", *(() if is_sharded(path) else ("state_dict",))}
    if not isinstance(checkpoint, dict) or (missing := missing - checkpoint.keys()):
        raise UserError(f"{path} is not a checkpoint of vidlit: it has no {', '.join(sorted(missing))}.")


def check_goes_on(path: Path) -> None:
    """Make sure that a run can go on from a checkpoint: ``best.ckpt`` is of weights alone.

    Raises:
        UserError: it holds no optimizer's state, or is no checkpoint.
    """
    if is_sharded(path):
        goes_on = any(name.startswith("optimizer_") for name in read_shard_metadata(path).state_dict_metadata)
    else:
        goes_on = bool(_load(path, mmap=True).get("optimizer_states"))
    if not goes_on:
        raise UserError(
            f"{path} holds weights without the optimizer's state, so training cannot go on from there: set --ckpt_path "
            "last. To train on from the best weights, start a new run with the exported ones as --model.base."
        )


def _load(path: Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """What a file of torch's holds, read without running anything; in place where ``mmap``.

    Raises:
        UserError: it cannot be read, or not without running what stands in it.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file")
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not a checkpoint, or is damaged: torch did not write it, or it was cut short.")
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a checkpoint of vidlit, or is damaged: it is not made of numbers.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # torch raises whatever a damaged file leads it to
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{path} is not a checkpoint, or is damaged ({reason}).") from error


def remove_leftovers(directory: Path) -> list[Path]:
    """Delete what killed processes left half written beside checkpoints; call it where no other process writes there.

    Args:
        directory: of the checkpoints.

    Returns:
        What was deleted.
    """
    left = list(directory.glob(".*.link"))
    for kind in ("a", "b"):
        for folder in directory.glob(f".*.{kind}"):
            link = directory / folder.name[1:-2]
            if not (link.is_symlink() and os.readlink(link) == folder.name):
                left.append(folder)
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return left


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with replacing(path, sync=True) as unfinished:
        with unfinished.open("wb") as file:
            torch.save(checkpoint, file)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def save_sharded(save: Callable[[Path], None], path: Path, trainer: Trainer) -> None:
    """Write a sharded checkpoint, a folder, so that ``path`` is always the whole old one or the whole new one.

    A folder cannot take another's place in one act, a link can: ``path`` is a link to one of two folders beside it.

    Args:
        save: writes the folder, on all ranks at once.
        path: of the checkpoint.
        trainer: of the ranks.
    """
    taken = os.readlink(path) if path.is_symlink() else ""
    target = path.with_name(f".{path.name}.{'b' if taken.endswith('.a') else 'a'}")
    target = trainer.strategy.broadcast(target)
    if trainer.is_global_zero:
        remove_checkpoint(target)
    trainer.strategy.barrier("before a sharded checkpoint")
    with _untouched_optimizers(trainer):
        save(target)
    if trainer.is_global_zero:
        link = path.with_name(f".{path.name}.link")
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        link.replace(path)
        if taken:
            remove_checkpoint(path.with_name(taken))
    trainer.strategy.barrier("after a sharded checkpoint")


@contextmanager
def _untouched_optimizers(trainer: Trainer) -> Iterator[None]:
    """Leave optimizers that have not stepped as they are: torch asks them for their state by a step without gradients.

    ``get_optimizer_state_dict`` fills an empty state that way, after which AdamW would count one step too many.
    """
    fresh = [optimizer for optimizer in trainer.optimizers if not optimizer.state]
    groups = [[{k: v for k, v in group.items() if k != "params"} for group in each.param_groups] for each in fresh]
    yield
    for optimizer, before in zip(fresh, groups, strict=True):
        optimizer.state.clear()
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.update(values)


def remove_checkpoint(path: Path) -> None:
    """Delete a file, or a folder of shards and the link to it."""
    if path.is_symlink():
        shutil.rmtree(path.resolve(), ignore_errors=True)
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_sharded(path: Path) -> bool:
    """Is this a folder of shards, as ``ModelParallelStrategy`` writes it?"""
    return (path / METADATA).is_file()


def shards_weights(trainer: Trainer) -> bool:
    """Does this Trainer write folders of shards?"""
    strategy = trainer.strategy
    return isinstance(strategy, ModelParallelStrategy) and saves_shards(strategy)


def load_weights(pl_module: LightningModule, path: Path, wanted: Callable[[str], bool] | None = None) -> int:
    """Put a checkpoint's weights into a model that may be sharded; every rank calls it.

    Args:
        pl_module: takes them.
        path: of the checkpoint.
        wanted: which of them, by name; ``None`` for all.

    Returns:
        The checkpoint's step.
    """
    if is_sharded(path):
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        whole = get_model_state_dict(pl_module)
        weights = {"state_dict": {name: value for name, value in whole.items() if wanted is None or wanted(name)}}
        _load_shards(weights, path)  # each rank its part, in place
        checkpoint = _load(path / METADATA)
    else:
        checkpoint = weights = _load(path)
    state = {name: value for name, value in weights["state_dict"].items() if wanted is None or wanted(name)}
    pl_module.load_state_dict(state, strict=False)
    return int(checkpoint["global_step"])


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a sharded checkpoint, without reading them."""
    return {name: tuple(entry.size) for name, entry in _entries(path).items()}


def _read_shards(path: Path) -> dict[str, Tensor]:
    entries = _entries(path)
    wanted = {
        f"{_WEIGHTS}{name}": torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()
    }
    _load_shards(wanted, path, no_dist=True)
    return {name[len(_WEIGHTS) :]: value for name, value in wanted.items()}


def _load_shards(wanted: dict[str, Any], path: Path, no_dist: bool = False) -> None:
    read_shard_metadata(path)
    try:
        load(wanted, storage_reader=_ShardReader(path), no_dist=no_dist)
    except CheckpointException as error:  # which is no Exception
        reason = " ".join(str(error).split())[-300:]
        raise UserError(f"{path} is not a sharded checkpoint of this model, or is damaged ({reason}).") from error


def _entries(path: Path) -> dict[str, TensorStorageMetadata]:
    entries = read_shard_metadata(path).state_dict_metadata
    return {
        name[len(_WEIGHTS) :]: entry
        for name, entry in entries.items()
        if name.startswith(_WEIGHTS) and isinstance(entry, TensorStorageMetadata)
    }


# -- what stands in the description of shards: torch's own reader runs whatever it finds there


_DESCRIBED_BY = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "_MEM_FORMAT_ENCODING",
        "ChunkStorageMetadata",
        "BytesStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},  # looks a name up
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
}
"""All that torch writes into a description, by module."""
_PATHS = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}  # where it was saved: said, never opened
_SHARD = re.compile(r"__\d+_\d+\.distcp")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "pathlib" and name in _PATHS:
            return _PATHS[name]
        if name not in _DESCRIBED_BY.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class _ShardReader(FileSystemReader):
    """torch's reader, but for the description, which it would run."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = read_shard_metadata(Path(self.path))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_shard_metadata(path: Path) -> Metadata:
    """What shards hold and where, read without running anything, and checked: torch itself may open them afterwards.

    Args:
        path: of the folder.

    Raises:
        UserError: it holds something else than numbers, names files outside the folder, or more than they hold.
    """
    description = path / ".metadata"
    try:
        with description.open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise TypeError("it is no description")
        lengths = {each.name: each.stat().st_size for each in path.iterdir() if _is_shard(each)}
        for entry in metadata.state_dict_metadata.values():
            if isinstance(entry, TensorStorageMetadata):
                if math.prod(entry.size) * entry.properties.dtype.itemsize > sum(lengths.values()):
                    raise ValueError("it describes more than its files hold")
            elif not isinstance(entry, BytesStorageMetadata):
                raise TypeError("it describes something else than tensors")
        for index, place in metadata.storage_data.items():
            if place.relative_path not in lengths:
                raise ValueError(f"it names {str(place.relative_path)[:100]!r}, which is no shard beside it")
            end = place.offset + place.length
            if not 0 <= place.offset <= end <= lengths[place.relative_path] or place.transform_descriptors:
                raise ValueError("it names places that its files do not have")
            if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):  # torch would run it
                with (path / place.relative_path).open("rb") as file:
                    file.seek(place.offset)
                    torch.load(io.BytesIO(file.read(place.length)), weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a sharded checkpoint of vidlit: it holds more than numbers.") from error
    except OSError as error:
        raise UserError(f"{description} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # whatever a hostile one leads to
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{path} is not a sharded checkpoint of vidlit, or is damaged ({reason}).") from error
    return metadata


def _is_shard(path: Path) -> bool:
    return bool(_SHARD.fullmatch(path.name)) and path.is_file() and not path.is_symlink()
