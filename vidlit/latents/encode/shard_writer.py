"""Items to shards: gathered until a shard is worth writing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidlit.latents.encoding import Encoding
    from vidlit.latents.store import Item, LatentStore


class ShardWriter:
    """Gathers items and commits them shard by shard.

    Args:
        store: where to.
        encoding: how large a shard is, and how long it may take to fill.
    """

    def __init__(self, store: LatentStore, encoding: Encoding) -> None:
        self.store, self.encoding = store, encoding
        self.items: list[Item] = []
        self.since = 0.0

    def add(self, items: Sequence[Item]) -> None:
        """Take items, and commit all that wait where they are enough.

        Raises:
            UserError: as for :meth:`flush`.
        """
        if not self.items:
            self.since = time.monotonic()
        self.items += items
        waited = time.monotonic() - self.since
        held = sum(item.nbytes for item in self.items)
        if waited > self.encoding.shard_seconds or held >= self.encoding.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Commit what waits.

        Raises:
            UserError: the disk is full or refuses.
        """
        items, self.items = self.items, []
        self.store.write(items)
