"""What is stored and no longer what was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import torch

from vidlit.latents.index import read_all
from vidlit.latents.shards import CHANGED, GONE, TRUNCATED, ShardFiles, as_bytes, checksum, layout_bytes, parse_layout
from vidlit.latents.store_folder import is_shard_name, shard_size


class Damage(NamedTuple):
    """A stored tensor whose bytes are not what was written."""

    kind: str
    name: str
    """Clip or caption."""
    shard: str
    problem: str
    key: str


def find_damage(root: Path) -> Iterator[Damage]:
    """Compare every stored tensor with the checksum taken when it was written.

    Args:
        root: folder of the store.

    Raises:
        UserError: the index or a shard cannot be read.
    """
    table = read_all(root, ["kind", "key", "clip_id", "caption", "shard", "offset", "layout", "checksum"])
    table = table.filter(pc.is_valid(table["shard"])).sort_by([("shard", "ascending"), ("offset", "ascending")])
    files = ShardFiles(root)
    for row in (row for batch in table.to_batches(max_chunksize=4096) for row in batch.to_pylist()):
        if problem := _problem(files, row):
            yield Damage(row["kind"], row["clip_id"] or row["caption"] or "", row["shard"], problem, row["key"])


def _problem(files: ShardFiles, row: Mapping[str, Any]) -> str:
    """What is wrong with a row of the index or its bytes."""
    size, length = shard_size(files.root, row["shard"]), layout_bytes(row["layout"] or "")
    if not is_shard_name(row["shard"]):
        return "the index names a file that is no shard of this store"
    if size is None:
        return GONE
    if length < 0 or row["offset"] is None or row["offset"] < 0:
        return "the index does not say where it is"
    if row["offset"] > size - length:
        return TRUNCATED
    shape, dtype = parse_layout(row["layout"])
    tensor = torch.empty(shape, dtype=dtype)
    files.read_into(row["shard"], row["offset"], as_bytes(tensor))
    return "" if checksum(tensor) == row["checksum"] else CHANGED
