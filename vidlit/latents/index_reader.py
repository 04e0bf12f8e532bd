"""The index of a store, read once: until a file of the index or a shard changes, what was read stands."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vidlit.latents.index import MERGED, read_all
from vidlit.latents.shards import layout_bytes
from vidlit.latents.store_folder import shard_size

_Read = TypeVar("_Read")
_PLACES = ("key", "tensor", "shard", "offset", "layout", "checksum")
_INDEX, _SHARDS = ("index",), ("index", "shards", "prompts")


class IndexReader:
    """Columns of an index, and which of its items are stored.

    Args:
        root: folder of the store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[Any, tuple[Any, Any]] = {}  # what was asked -> files as they were, and what was read

    def rows(self, columns: Sequence[str], kind: str | None = None) -> pa.Table:
        """As :func:`vidlit.latents.index.read_all`."""
        return self._once((tuple(columns), kind), _INDEX, lambda: read_all(self.root, columns, kind))

    def stored(self, kind: str) -> pa.Table:
        """Key, tensor, shard, offset, layout and checksum of items all of whose bytes are where the index says.

        As far as the sizes of shards tell.

        Raises:
            UserError: the index or a shard cannot be read.
        """
        return self._once(("stored", kind), _SHARDS, lambda: self._stored(kind))

    def keys(self, kind: str) -> frozenset[str]:
        """Keys of :meth:`stored` items."""
        return self._once(("keys", kind), _SHARDS, lambda: frozenset(self.stored(kind)["key"].to_pylist()))

    def __getstate__(self) -> dict[str, Any]:
        """For a process of its own, which reads what it needs itself."""
        return {"root": self.root, "_known": {}}

    def _once(self, what: Any, folders: Sequence[str], read: Callable[[], _Read]) -> _Read:
        files = self._files(folders)
        known = self._known.get(what)
        if known is not None and known[0] == files:
            return known[1]  # type: ignore[no-any-return]  # what the same call read
        found = read()
        self._known[what] = files, found
        return found

    def _files(self, folders: Sequence[str]) -> int:
        """What changes when a file of these folders, or the merged index, does."""
        found = [_identity(MERGED, self.root / MERGED)]
        for folder in folders:
            try:
                with os.scandir(self.root / folder) as entries:
                    found += sorted(_identity(f"{folder}/{entry.name}", entry) for entry in entries)
            except OSError:  # there is no such folder yet
                found.append((folder,))
        return hash(tuple(found))

    def _stored(self, kind: str) -> pa.Table:
        table = self.rows(_PLACES, kind)
        is_there = self._is_there(table)
        if not is_there.all():
            gone = table.filter(pa.array(~is_there))
            pairs = set(zip(gone["key"].to_pylist(), gone["shard"].to_pylist(), strict=True))
            every = zip(table["key"].to_pylist(), table["shard"].to_pylist(), strict=True)
            table = table.filter(pa.array([pair not in pairs for pair in every], pa.bool_()))
        return table

    def _is_there(self, table: pa.Table) -> NDArray[np.bool_]:
        names, layouts = (table[column].fill_null("") for column in ("shard", "layout"))
        shard_codes, shards = encode_column(names)
        layout_codes, texts = encode_column(layouts)
        sizes = np.array([-1 if (size := shard_size(self.root, name)) is None else size for name in shards], np.int64)
        lengths = np.array([layout_bytes(text) for text in texts], np.int64)
        offsets = table["offset"].fill_null(-1).to_numpy()
        size, length = sizes[shard_codes], lengths[layout_codes]
        known = pc.and_(pc.is_valid(table["key"]), pc.is_valid(table["checksum"])).to_numpy()
        is_there: NDArray[np.bool_] = known & (size >= 0) & (length >= 0) & (offsets >= 0) & (offsets <= size - length)
        return is_there


def encode_column(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Texts as numbers, and the text of each number."""
    array = column.combine_chunks().dictionary_encode()
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.indices.to_numpy(), array.dictionary.to_pylist()


def _identity(name: str, file: Path | os.DirEntry[str]) -> tuple[Any, ...]:
    try:
        status = file.stat()
    except OSError:
        return (name,)
    return name, status.st_size, status.st_mtime_ns, status.st_ino
