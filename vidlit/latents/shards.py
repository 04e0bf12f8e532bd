"""Tensors in safetensors files: written once and for good, read at an offset."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidlit.errors import UserError
from vidlit.latents.index import name_at
from vidlit.latents.storage.interface import CHANGED, Range, RangeError, ShardError, Storage
from vidlit.latents.store_folder import is_shard_name

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8, torch.int32, torch.int64)
}
_SHAPE = re.compile(r"(?:\d{1,10}(?:x\d{1,10}){0,7})?")


class Place(NamedTuple):
    """Where a tensor lies in a shard, and what it must be."""

    offset: int
    """Bytes from the start of the file."""
    layout: str
    """dtype and shape, ``"bfloat16 128x3x16x24"``."""
    checksum: int
    """CRC-32 of its bytes."""


def write_shard(storage: Storage, shard: str, tensors: Mapping[str, Tensor]) -> dict[str, Place]:
    """Write tensors to a new safetensors file: durable and whole when this returns, or not there."""
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    storage.write(shard, data)
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
        storage: of the store.
        shards: names of shards.
        layouts: those of :class:`Place`.
        places: (rows, 4) number of the shard, byte offset, number of the layout, checksum.

    Raises:
        UserError: a name is none that a store gives a shard.
    """

    def __init__(self, storage: Storage, shards: list[str], layouts: list[str], places: NDArray[np.int64]) -> None:
        if wrong := [name for name in shards if not is_shard_name(name)]:
            raise UserError(f"the index of {storage} names {wrong[0][:80]!r}, which is no shard of a store")
        self.storage = storage
        self.shards = shards
        self.layouts = [parse_layout(layout) for layout in layouts]
        self.places = places
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
        read_rows([RowRead(self, row, self.places[row].tolist(), as_bytes(tensor))])
        return tensor

    def check(self, row: int, place: Sequence[int], buffer: memoryview) -> None:
        """Compare what was read of a row with its checksum, if this process has not done so before.

        Args:
            row: its number.
            place: its row of :attr:`places`.
            buffer: what was read: the whole tensor, or its beginning.

        Raises:
            ShardError: it changed.
        """
        if self._is_checked[row]:
            return
        shape, dtype = self.layouts[place[2]]
        size = math.prod(shape) * dtype.itemsize
        if len(buffer) < size:
            buffer = memoryview(bytearray(size))
        elif zlib.crc32(buffer) == place[3]:
            self._is_checked[row] = 1
            return
        wanted = Range(self.shards[place[0]], place[1], buffer)
        self.storage.forget(wanted)  # a copy of it may be what changed
        self.storage.fetch([wanted])
        if zlib.crc32(buffer) != place[3]:
            raise ShardError(CHANGED)
        self._is_checked[row] = 1

    def explain(self, place: Sequence[int], error: ShardError) -> UserError:
        """The error of a row in words: names the clip, the shard and what to do."""
        shard = self.shards[place[0]]
        return UserError(
            f"{name_at(self.storage, shard, place[1])} is damaged in {self.storage.where(shard)}: {error}. Run "
            "`vidlit encode --repair` with the same configuration: it encodes again what is damaged or gone, and "
            "nothing else."
        )


class RowRead(NamedTuple):
    """A row of a table that is to be read, and where to."""

    table: TensorTable
    row: int
    place: list[int]
    """Its row of :attr:`TensorTable.places`."""
    buffer: memoryview
    """Of the size of its tensor, or smaller: then it gets the tensor's beginning."""


def read_rows(rows: Sequence[RowRead]) -> None:
    """Fill buffers with rows of tables of one store, all together.

    Raises:
        UserError: one is damaged or gone; names the clip, the shard and what to do.
    """
    ranges = [Range(table.shards[place[0]], place[1], buffer) for table, _, place, buffer in rows]
    try:
        rows[0].table.storage.fetch(ranges)
    except RangeError as error:
        wrong = rows[error.position]
        raise wrong.table.explain(wrong.place, error) from error
    for table, row, place, buffer in rows:
        try:
            table.check(row, place, buffer)
        except ShardError as error:
            raise table.explain(place, error) from error


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
