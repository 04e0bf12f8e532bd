"""What is stored and no longer what was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.compute as pc
import torch
from torch import Tensor

from vidlit.latents.index import read_all
from vidlit.latents.shards import as_bytes, checksum, layout_bytes, parse_layout
from vidlit.latents.storage.interface import CHANGED, GONE, TRUNCATED, Range, ShardError, Storage
from vidlit.latents.store_folder import is_shard_name, shard_sizes

_BYTES_AT_ONCE, _ROWS_AT_ONCE = 2**26, 256
"""Read together: what memory does not notice, and enough requests to a network at a time."""


class Damage(NamedTuple):
    """A stored tensor whose bytes are not what was written."""

    kind: str
    name: str
    """Clip or caption."""
    shard: str
    problem: str
    key: str


def find_damage(storage: Storage) -> Iterator[Damage]:
    """Compare every stored tensor with the checksum taken when it was written.

    Args:
        storage: of the store.

    Raises:
        UserError: the index or a shard cannot be read.
    """
    table = read_all(storage, ["kind", "key", "clip_id", "caption", "shard", "offset", "layout", "checksum"])
    table = table.filter(pc.is_valid(table["shard"])).sort_by([("shard", "ascending"), ("offset", "ascending")])
    names = pc.unique(table["shard"]).to_pylist()
    sizes = dict(zip(names, shard_sizes(storage, names), strict=True))
    waiting: list[tuple[dict[str, Any], Tensor]] = []
    num_bytes = 0
    for row in (row for batch in table.to_batches(max_chunksize=4096) for row in batch.to_pylist()):
        if problem := _misplaced(row, sizes[row["shard"]]):
            yield _damage(row, problem)
            continue
        shape, dtype = parse_layout(row["layout"])
        waiting.append((row, torch.empty(shape, dtype=dtype)))
        num_bytes += layout_bytes(row["layout"])
        if num_bytes >= _BYTES_AT_ONCE or len(waiting) >= _ROWS_AT_ONCE:
            yield from _changed(storage, waiting)
            waiting, num_bytes = [], 0
    yield from _changed(storage, waiting)


def _misplaced(row: Mapping[str, Any], size: int | None) -> str:
    """What is wrong with a row of the index, as far as the size of its shard tells."""
    length = layout_bytes(row["layout"] or "")
    if not is_shard_name(row["shard"]):
        return "the index names a file that is no shard of this store"
    if size is None:
        return GONE
    if length < 0 or row["offset"] is None or row["offset"] < 0:
        return "the index does not say where it is"
    return TRUNCATED if row["offset"] > size - length else ""


def _changed(storage: Storage, rows: Sequence[tuple[dict[str, Any], Tensor]]) -> Iterator[Damage]:
    """Which of some tensors are not what was written; they are filled."""
    ranges = [Range(row["shard"], row["offset"], as_bytes(tensor)) for row, tensor in rows]
    for each in ranges:
        storage.forget(each)  # what is asked for is the store's, not a copy's
    try:
        storage.fetch(ranges)
        problems = [""] * len(ranges)
    except ShardError:
        problems = [_problem(storage, each) for each in ranges]
    for (row, tensor), problem in zip(rows, problems, strict=True):
        problem = problem or ("" if checksum(tensor) == row["checksum"] else CHANGED)
        if problem:
            yield _damage(row, problem)


def _problem(storage: Storage, wanted: Range) -> str:
    try:
        storage.fetch([wanted])
    except ShardError as error:
        return str(error)
    return ""


def _damage(row: Mapping[str, Any], problem: str) -> Damage:
    return Damage(row["kind"], row["clip_id"] or row["caption"] or "", row["shard"], problem, row["key"])
