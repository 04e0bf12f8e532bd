"""Tensors in safetensors files: written once and for good, read at an offset."""

from __future__ import annotations

import json
import os
import threading
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidlit.errors import UserError

_BINARY = getattr(os, "O_BINARY", 0)  # Windows changes line ends without it
_one_reader = threading.Lock()


class Place(NamedTuple):
    """Where a tensor lies in a shard, and what it must be."""

    offset: int
    """Bytes from the start of the file."""
    layout: str
    """dtype and shape, ``"bfloat16 128x3x16x24"``."""
    checksum: int
    """CRC-32 of its bytes."""


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Place]:
    """Write tensors to a new safetensors file: on disk and whole when this returns, or not there."""
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    write_atomically(path, data)
    header_size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:header_size])
    view = memoryview(data)
    places = {}
    for name, tensor in tensors.items():
        start, end = (header_size + offset for offset in header[name]["data_offsets"])
        layout = f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}"
        places[name] = Place(start, layout, zlib.crc32(view[start:end]))
    return places


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(as_bytes(tensor))


class TensorTable:
    """Where one tensor of many items lies: 24 bytes a row, read by row. Can be pickled and shared.

    Args:
        root: folder of the store.
        shards: names of shards.
        layouts: those of :class:`Place`.
        places: (rows, 3) number of the shard, byte offset, number of the layout.
    """

    def __init__(self, root: Path, shards: list[str], layouts: list[str], places: NDArray[np.int64]) -> None:
        self.shards = shards
        self.layouts = [parse_layout(layout) for layout in layouts]
        self.places = places
        self._files = ShardFiles(root)

    def __len__(self) -> int:
        return len(self.places)

    def layout(self, row: int) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of a row's tensor, without reading it."""
        return self.layouts[int(self.places[row, 2])]

    def read(self, row: int) -> Tensor:
        """The tensor of a row, in the dtype it was stored in.

        Raises:
            UserError: the shard is gone or shorter than the index says.
        """
        shape, dtype = self.layout(row)
        tensor = torch.empty(shape, dtype=dtype)
        self.read_into(self.places[row].tolist(), as_bytes(tensor))
        return tensor

    def read_into(self, place: Sequence[int], buffer: memoryview) -> None:
        """Fill a buffer with the bytes at a place, one of :attr:`places`.

        Raises:
            UserError: the shard is gone or shorter than the index says.
        """
        self._files.read_into(self.shards[place[0]], place[1], buffer)


class ShardFiles:
    """Open shards. Reads at an offset, so forked workers may share a descriptor; not pickled, so spawned ones don't.

    Straight reads, because parsing a shard's header costs more than reading a clip from it, and because a
    truncated file is then an error with a name rather than the SIGBUS of a memory map.
    """

    limit = 128  # well under the usual 1,024 descriptors a process

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_open": {}}

    def read_into(self, shard: str, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from a byte offset."""
        try:
            descriptor = self._open.get(shard)
            if descriptor is None:
                descriptor = self._descriptor(shard)
            done = read_at(descriptor, buffer, offset)
            while done < len(buffer):  # a signal came, or the file ends here
                count = read_at(descriptor, buffer[done:], offset + done)
                if not count:
                    raise UserError(f"{self.root / shard} ends before the index says: it was truncated")
                done += count
        except OSError as error:
            raise UserError(f"cannot read {self.root / shard}: {error.strerror}") from error

    def _descriptor(self, shard: str) -> int:
        if len(self._open) >= self.limit:
            os.close(self._open.pop(next(iter(self._open))))  # opened first
        descriptor = self._open[shard] = os.open(self.root / shard, os.O_RDONLY | _BINARY)
        return descriptor

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read into a buffer from a byte offset, whoever else reads the file: bytes read, 0 at its end."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    with _one_reader:  # Windows: threads share the place in the file, forks there are none
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def as_bytes(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory, to read or to write."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # an array is a buffer


def parse_layout(text: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of a layout."""
    dtype, shape = text.split(" ")
    return tuple(int(size) for size in shape.split("x") if size), getattr(torch, dtype)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file that is whole, synced and under its name when this returns, or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if not hasattr(os, "O_DIRECTORY"):  # Windows, where folders cannot be opened
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut before the index names the file
    finally:
        os.close(folder)
