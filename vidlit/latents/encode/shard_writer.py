"""Items to shards: gathered until a shard is worth writing, and written while the next ones are encoded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidlit.latents.encoding import Encoding
    from vidlit.latents.store import Item, LatentStore


_MERGED_EVERY = 64
"""Shards whose parts of the index become one: of 10,000 parts a reader takes ten seconds to make a table."""


class ShardWriter:
    """Gathers items and commits them shard by shard, in a thread of its own: a disk that syncs holds up no encoder.

    One shard is written at a time; who brings the next one waits for it, so that memory holds two at most.

    Args:
        store: where to.
        encoding: how large a shard is, and how long it may take to fill.
    """

    def __init__(self, store: LatentStore, encoding: Encoding) -> None:
        self.store, self.encoding = store, encoding
        self._items: list[Item] = []
        self._since = 0.0
        self._num_written = 0
        self._writing: Future[None] | None = None

    def add(self, items: Sequence[Item]) -> None:
        """Take items, and begin to commit all that wait where they are enough.

        Raises:
            UserError: the disk was full or refused the shard before.
        """
        if not self._items:
            self._since = time.monotonic()
        self._items += items
        waited = time.monotonic() - self._since
        held = sum(item.nbytes for item in self._items)
        if waited > self.encoding.shard_seconds or held >= self.encoding.shard_bytes:
            self._begin()

    def flush(self) -> None:
        """Commit what waits; it is committed when this returns.

        Raises:
            UserError: the disk is full or refuses.
        """
        self._begin()
        self._end()

    def _begin(self) -> None:
        self._end()
        items, self._items = self._items, []
        if items:
            # A thread for each shard: one that waits for work would outlive a process that forks, or is pickled.
            pool = ThreadPoolExecutor(1, thread_name_prefix="shard")
            self._writing = pool.submit(self._write, items)
            pool.shutdown(wait=False)

    def _write(self, items: list[Item]) -> None:
        self.store.write(items)
        self._num_written += 1
        if self._num_written % _MERGED_EVERY == 0:
            self.store.compact(only_small=True)

    def _end(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
