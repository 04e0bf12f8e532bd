"""How a checkpoint lies on disk: whole or not at all, in one file or sharded over ranks."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from vidlit.errors import UserError
from vidlit.lightning_internals import saves_shards

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
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        with unfinished.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        unfinished.replace(path)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read one file; of a sharded checkpoint everything but moments.

        Raises:
            UserError: it is no checkpoint.
        """
        path = Path(path)
        if is_sharded(path):
            checkpoint: dict[str, Any] = torch.load(path / METADATA, map_location="cpu", weights_only=weights_only)
            return checkpoint | {"state_dict": _read_shards(path)}
        try:
            return super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} is not a checkpoint, or is damaged: {error}") from error


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


def load_weights(pl_module: LightningModule, path: Path) -> int:
    """Put a checkpoint's weights into a model that may be sharded; every rank calls it.

    Returns:
        The checkpoint's step.
    """
    if is_sharded(path):
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        weights = {"state_dict": get_model_state_dict(pl_module)}
        load(weights, checkpoint_id=path)  # each rank its part, in place
        checkpoint = torch.load(path / METADATA, map_location="cpu", weights_only=True)
    else:
        checkpoint = weights = torch.load(path, map_location="cpu", weights_only=True)
    pl_module.load_state_dict(weights["state_dict"], strict=False)
    return int(checkpoint["global_step"])


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a sharded checkpoint, without reading them."""
    return {name: tuple(entry.size) for name, entry in _entries(path).items()}


def _read_shards(path: Path) -> dict[str, Tensor]:
    entries = _entries(path)
    wanted = {
        f"{_WEIGHTS}{name}": torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()
    }
    load(wanted, checkpoint_id=path, no_dist=True)
    return {name[len(_WEIGHTS) :]: value for name, value in wanted.items()}


def _entries(path: Path) -> dict[str, TensorStorageMetadata]:
    entries = FileSystemReader(path).read_metadata().state_dict_metadata
    return {
        name[len(_WEIGHTS) :]: entry
        for name, entry in entries.items()
        if name.startswith(_WEIGHTS) and isinstance(entry, TensorStorageMetadata)
    }
