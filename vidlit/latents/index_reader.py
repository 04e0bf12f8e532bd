"""The index of a store, read once: until a file comes or goes, what was read stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vidlit.latents.index import read_all
from vidlit.latents.shards import layout_bytes
from vidlit.latents.storage.interface import Storage
from vidlit.latents.store_folder import shard_sizes, telling

_Read = TypeVar("_Read")
_PLACES = ("key", "tensor", "shard", "offset", "layout", "checksum")


class IndexReader:
    """Columns of an index, and which of its items are stored.

    Args:
        storage: of the store.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._known: dict[Any, tuple[Any, Any]] = {}  # what was asked -> the store as it was, and what was read

    def rows(self, columns: Sequence[str], kind: str | None = None) -> pa.Table:
        """As :func:`vidlit.latents.index.read_all`."""
        return self._once((tuple(columns), kind), lambda: read_all(self.storage, columns, kind))

    def stored(self, kind: str) -> pa.Table:
        """Key, tensor, shard, offset, layout and checksum of items all of whose bytes are where the index says.

        As far as the sizes of shards tell.

        Raises:
            UserError: the index or a shard cannot be read.
        """
        return self._once(("stored", kind), lambda: self._stored(kind))

    def keys(self, kind: str) -> frozenset[str]:
        """Keys of :meth:`stored` items."""
        return self._once(("keys", kind), lambda: frozenset(self.stored(kind)["key"].to_pylist()))

    def __getstate__(self) -> dict[str, Any]:
        """For a process of its own, which reads what it needs itself."""
        return {"storage": self.storage, "_known": {}}

    def _once(self, what: Any, read: Callable[[], _Read]) -> _Read:
        with telling(self.storage):
            version = self.storage.version()
        known = self._known.get(what)
        if known is not None and known[0] == version:
            return known[1]  # type: ignore[no-any-return]  # what the same call read
        found = read()
        self._known[what] = version, found
        return found

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
        sizes = np.array([-1 if size is None else size for size in shard_sizes(self.storage, shards)], np.int64)
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
