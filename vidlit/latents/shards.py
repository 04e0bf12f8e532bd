"""Tensors in safetensors files: written once and for good, read at an offset."""

from __future__ import annotations

import json
import math
import os
import re
import threading
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidlit.errors import UserError
from vidlit.io_retry import retry_io
from vidlit.latents.index import name_at
from vidlit.latents.store_folder import inside, is_shard_name
from vidlit.whole_files import open_regular, write_whole

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8, torch.int32, torch.int64)
}
_SHAPE = re.compile(r"(?:\d{1,10}(?:x\d{1,10}){0,7})?")
CHANGED = "its bytes changed since they were written"
GONE = "No such file: the shard is gone"
TRUNCATED = "it was truncated: the shard ends before the index says"
_one_reader = threading.Lock()


class ShardError(UserError):
    """Something stored that is damaged or gone: what is wrong with it, in words that follow its name."""


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
    write_whole(path, data, sync=True)
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
    """Where one tensor of many items lies: 33 bytes a row, read by row. Can be pickled and shared.

    A process compares the bytes of a row with their checksum when it reads them for the first time.

    Args:
        root: folder of the store.
        shards: names of shards.
        layouts: those of :class:`Place`.
        places: (rows, 4) number of the shard, byte offset, number of the layout, checksum.
    """

    def __init__(self, root: Path, shards: list[str], layouts: list[str], places: NDArray[np.int64]) -> None:
        self.shards = shards
        self.layouts = [parse_layout(layout) for layout in layouts]
        self.places = places
        self._files = ShardFiles(root)
        self._is_checked = bytearray(len(places))

    def __len__(self) -> int:
        return len(self.places)

    def layout(self, row: int) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of a row's tensor, without reading it."""
        return self.layouts[int(self.places[row, 2])]

    def read(self, row: int) -> Tensor:
        """The tensor of a row, in the dtype it was stored in.

        Raises:
            UserError: it is damaged or gone; names the clip, the shard and what to do.
        """
        shape, dtype = self.layout(row)
        tensor = torch.empty(shape, dtype=dtype)
        self.read_into(row, self.places[row].tolist(), as_bytes(tensor))
        return tensor

    def read_into(self, row: int, place: Sequence[int], buffer: memoryview) -> None:
        """Fill a buffer with the bytes of a row.

        Args:
            row: its number.
            place: its row of :attr:`places`.
            buffer: of the size of its tensor, or smaller: then it gets the tensor's beginning.

        Raises:
            UserError: it is damaged or gone; names the clip, the shard and what to do.
        """
        try:
            self._files.read_into(self.shards[place[0]], place[1], buffer)
            if not self._is_checked[row]:
                self._check(row, place, buffer)
        except ShardError as error:
            root, shard = self._files.root, self.shards[place[0]]
            raise UserError(
                f"{name_at(root, shard, place[1])} is damaged in {root / shard}: {error}. Run `vidlit encode --repair` "
                "with the same configuration: it encodes again what is damaged or gone, and nothing else."
            ) from error

    def _check(self, row: int, place: Sequence[int], buffer: memoryview) -> None:
        shape, dtype = self.layouts[place[2]]
        size = math.prod(shape) * dtype.itemsize
        if len(buffer) < size:
            buffer = memoryview(bytearray(size))
            self._files.read_into(self.shards[place[0]], place[1], buffer)
        if zlib.crc32(buffer) != place[3]:
            raise ShardError(CHANGED)
        self._is_checked[row] = 1


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
        """Fill a buffer from a byte offset.

        Raises:
            ShardError: the shard is gone or too short, or no shard of this store.
            UserError: the system refuses to read it.
        """
        try:
            self._read_into(shard, offset, buffer)
        except OSError:
            try:
                retry_io(partial(self._read_into, shard, offset, buffer), f"reading {self.root / shard}")
            except OSError as error:
                raise UserError(f"cannot read {self.root / shard}: {error.strerror}") from error

    def _read_into(self, shard: str, offset: int, buffer: memoryview) -> None:
        descriptor = self._open.get(shard)
        if descriptor is None:
            descriptor = self._descriptor(shard)
        try:
            done = read_at(descriptor, buffer, offset)
            while done < len(buffer):  # a signal came, or the file ends here
                count = read_at(descriptor, buffer[done:], offset + done)
                if not count:
                    raise ShardError(TRUNCATED)
                done += count
        except OSError:  # a network file system that comes back wants the file opened anew
            os.close(self._open.pop(shard))
            raise

    def _descriptor(self, shard: str) -> int:
        if not is_shard_name(shard):
            raise ShardError("the index names a file that is no shard of this store")
        try:
            descriptor = open_regular(inside(self.root, shard))
        except FileNotFoundError as error:
            raise ShardError(GONE) from error
        if len(self._open) >= self.limit:
            os.close(self._open.pop(next(iter(self._open))))  # opened first
        self._open[shard] = descriptor
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
    """Shape and dtype of a layout.

    Raises:
        ValueError: it is none.
    """
    dtype, _, shape = text.partition(" ")
    if dtype not in _DTYPES or not _SHAPE.fullmatch(shape):
        raise ValueError(f"{text[:80]!r} is no dtype and shape")
    return tuple(int(size) for size in shape.split("x") if size), _DTYPES[dtype]


def layout_bytes(text: str) -> int:
    """Bytes of a tensor of this layout, at most 2**62; -1 for what is no layout."""
    try:
        shape, dtype = parse_layout(text)
    except ValueError:
        return -1
    return min(math.prod(shape) * dtype.itemsize, 2**62)
