"""A folder of encoded clips and captions: safetensors shards and one parquet index.

    index.parquet            one row per tensor: key, ingredients, shard, byte offset, shape, dtype, checksum
    index/<time>-<id>.parquet  rows not yet merged into it
    shards/<bucket>-<time>-<id>.safetensors
    prompts/<time>-<id>.safetensors

Each file is written under another name, synced and renamed. A shard counts once the part of the index that
names it is there, so a process may die at any instant: what it leaves is a whole store, or a whole store and
an orphan that nobody reads. Any number of processes may write at once, because none writes another's files.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vidlit.errors import UserError
from vidlit.latents.recipe import INGREDIENTS, LatentRecipe, PromptRecipe, Recipe, RecipeT
from vidlit.latents.shards import (
    ShardFiles,
    TensorTable,
    as_bytes,
    checksum,
    parse_layout,
    write_atomically,
    write_shard,
)

VERSION = b"1"
_SCHEMA = pa.schema(
    [("kind", pa.string()), ("key", pa.string()), ("clip_id", pa.string()), ("video", pa.string())]
    + [("group", pa.string())]
    + [(name, pa.float64() if kind is float else pa.string()) for name, kind in INGREDIENTS.items()]
    + [("tensor", pa.string()), ("shard", pa.string()), ("offset", pa.int64()), ("layout", pa.string())]
    + [("checksum", pa.uint32()), ("reason", pa.string())],
    metadata={b"vidlit_store": VERSION},
)
_ORPHAN_SECONDS = 3600.0  # a shard without a row is being written, or its writer is dead


@dataclass(frozen=True, slots=True)
class Item:
    """Something to store: a recipe and what came of it.

    Args:
        recipe: what it was made of.
        tensors: by name; at least ``latents`` (C, F, H, W) or ``prompt_embeds`` (L, D).
        clip_id: name of the clip, for people.
        video: name of its video, for people.
        group: videos that must stay on one side of a split.
        reason: why there are no tensors: the item is quarantined.
    """

    recipe: Recipe
    tensors: Mapping[str, Tensor]
    clip_id: str = ""
    video: str = ""
    group: str = ""
    reason: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Damage(NamedTuple):
    """A stored tensor whose bytes are not what was written."""

    kind: str
    name: str
    """Clip or caption."""
    shard: str
    problem: str
    key: str


class LatentStore:
    """Encoded clips and captions on disk, by key.

    Args:
        root: the folder; made when the first item is written.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, items: Sequence[Item]) -> None:
        """Store items for good, all or none of them: one shard per kind and bucket, one part of the index.

        Raises:
            UserError: the disk is full or refuses; what was stored before stays readable.
        """
        if not items:
            return
        shards: dict[str, list[Item]] = {}
        for item in items:
            if item.tensors:
                shards.setdefault(_shard_prefix(item.recipe), []).append(item)
        rows = [_row(item) for item in items if not item.tensors]
        unique = f"{time.time_ns():016x}-{uuid.uuid4().hex[:8]}"
        try:
            for prefix, members in shards.items():
                rows += self._write_shard(f"{prefix}{unique}.safetensors", members)
            self._write_index(self.root / "index" / f"{unique}.parquet", pa.Table.from_pylist(rows, _SCHEMA))
        except OSError as error:
            raise UserError(
                f"cannot write to the latent store {self.root}: {error.strerror or error}. What it held before is "
                "intact; fix the cause (free space, permissions) and run again: encoding continues from there."
            ) from error

    def _write_shard(self, name: str, items: list[Item]) -> list[dict[str, Any]]:
        tensors = {f"{item.recipe.key}.{tensor}": value for item in items for tensor, value in item.tensors.items()}
        places = write_shard(self.root / name, tensors)
        return [
            _row(item) | {"tensor": tensor, "shard": name} | places[f"{item.recipe.key}.{tensor}"]._asdict()
            for item in items
            for tensor in item.tensors
        ]

    def _write_index(self, path: Path, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(_SCHEMA.metadata), sink, compression="zstd")
        write_atomically(path, memoryview(sink.getvalue()))

    def compact(self) -> None:
        """Merge the parts of the index into one file; nothing to do where another process is at it."""
        parts = self._parts()
        if not parts:
            return
        with contextlib.suppress(filelock.Timeout), filelock.FileLock(self.root / ".lock", timeout=0):
            parts = self._parts()
            table = self._read([*self._merged(), *parts], _SCHEMA.names, None)
            self._write_index(self.root / "index.parquet", table)
            for part in parts:
                part.unlink(missing_ok=True)

    def clean(self, older_than_seconds: float = _ORPHAN_SECONDS) -> list[Path]:
        """Delete what dead writers left behind: unfinished files, and shards that no row names."""
        limit = time.time() - older_than_seconds
        # Shards are listed before the index is read: one that is committed in between is then named by it.
        files = [path for pattern in ("shards/*", "prompts/*", "**/*.tmp") for path in self.root.glob(pattern)]
        named = set(pc.unique(self.rows(["shard"])["shard"]).to_pylist())
        gone = []
        for path in dict.fromkeys(files):
            with contextlib.suppress(FileNotFoundError):
                if path.relative_to(self.root).as_posix() not in named and path.stat().st_mtime < limit:
                    path.unlink()
                    gone.append(path)
        return gone

    # -- reading -------------------------------------------------------------------------------------------

    def rows(self, columns: Sequence[str], kind: str | None = None) -> pa.Table:
        """Columns of the index, merged or not. Several rows may have one key: the first counts.

        Raises:
            UserError: the index cannot be read, or was written by a newer version.
        """
        parts = self._read(self._parts(), columns, kind)
        # The merged index is read after the parts: a part that vanished meanwhile is in it.
        return pa.concat_tables([self._read(self._merged(), columns, kind), parts])

    def _parts(self) -> list[Path]:
        return sorted((self.root / "index").glob("*.parquet"))

    def _merged(self) -> list[Path]:
        path = self.root / "index.parquet"
        return [path] if path.exists() else []

    def _read(self, paths: Iterable[Path], columns: Sequence[str], kind: str | None) -> pa.Table:
        tables = []
        for path in paths:
            try:
                with path.open("rb") as file:
                    schema = pq.read_schema(file)
                    if (schema.metadata or {}).get(b"vidlit_store") != VERSION:
                        raise UserError(f"{path} was written by another version of vidlit: use another store folder")
                    filters = None if kind is None else [("kind", "=", kind)]
                    written = [name for name in columns if name in schema.names]
                    table = pq.read_table(file, columns=written, filters=filters)
                    for field in (_SCHEMA.field(name) for name in columns if name not in schema.names):
                        # an ingredient that came later
                        table = table.append_column(field, pa.nulls(len(table), field.type))
                    tables.append(table)
            except FileNotFoundError:
                continue
            except pa.ArrowException as error:
                raise UserError(
                    f"{path} is damaged ({error}). Delete it: what it named is encoded again on the next run."
                ) from error
        empty = pa.schema([_SCHEMA.field(name) for name in columns]).empty_table()
        return pa.concat_tables([empty, *(table.select(list(columns)) for table in tables)])

    def keys(self, kind: str) -> set[str]:
        """Keys of all items of a kind: ``latent``, ``prompt``, or ``quarantined`` for what has a reason instead."""
        rows = self.quarantined() if kind == "quarantined" else self.rows(["key"], kind)
        return set(rows["key"].to_pylist())

    def quarantined(self) -> pa.Table:
        """Clips that could not be encoded, then or since: key, clip_id, video, reason."""
        rows = self.rows(["key", "clip_id", "video", "reason"], "quarantined")
        if not len(rows):
            return rows
        return rows.filter(pc.invert(pc.is_in(rows["key"], value_set=self.rows(["key"], "latent")["key"])))

    def locate(self, kind: str, tensor: str, keys: Sequence[str] | pa.Array) -> TensorTable:
        """Find one tensor of many items.

        Raises:
            KeyError: with the positions of the keys that are not stored, as an array.
        """
        table = self.rows(["key", "tensor", "shard", "offset", "layout"], kind)
        table = table.filter(pc.equal(table["tensor"], tensor))
        keys = keys if isinstance(keys, pa.Array) else pa.array(keys, pa.string())
        rows = pc.index_in(keys, value_set=table["key"])  # the first of several
        if rows.null_count:
            raise KeyError(np.flatnonzero(rows.is_null().to_numpy(zero_copy_only=False)))
        shard_codes, shards = _encode(table["shard"].take(rows))
        layout_codes, layouts = _encode(table["layout"].take(rows))
        places = np.stack([shard_codes, table["offset"].take(rows).to_numpy(), layout_codes], axis=1, dtype=np.int64)
        return TensorTable(self.root, shards, layouts, places)

    def require(self, wanted: Sequence[Recipe]) -> None:
        """Check that everything wanted is stored.

        Raises:
            UserError: with what is missing and how it differs from what is stored, e.g. by another VAE.
        """
        if wanted and (missing := self.missing(wanted)):
            raise UserError(self.explain_missing(missing, len(wanted)))

    def missing(self, wanted: Sequence[RecipeT]) -> list[RecipeT]:
        """The recipes that are not stored, in the order given."""
        stored = self.keys(wanted[0].kind) if wanted else set()
        return [recipe for recipe in wanted if recipe.key not in stored]

    def explain_missing(self, missing: Sequence[Recipe], total: int) -> str:
        """Say for recipes that are not stored how they differ from the nearest that is."""
        recipe = missing[0]
        subject = "content" if isinstance(recipe, LatentRecipe) else "caption"
        stored: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows([*recipe.words], recipe.kind).to_pylist():
            stored.setdefault(row[subject], []).append(row)
        refused = {row["key"]: row["reason"] for row in self.quarantined().to_pylist()}
        reasons: Counter[str] = Counter()
        for recipe in missing:
            differences = [recipe.differences(row) for row in stored.get(getattr(recipe, subject), [])]
            if recipe.key in refused:
                reason = f"could not be encoded: {refused[recipe.key]}"
            else:
                nearest = min(differences, key=len, default=[])
                reason = "; ".join(nearest) or f"nothing stored of this {subject}"
            reasons[reason] += 1
        what = "clips" if isinstance(recipe, LatentRecipe) else "captions"
        lines = [f"  {count} of them: {reason}" for reason, count in reasons.most_common(8)]
        return (
            f"{len(missing)} of {total} {what} are not in the latent store {self.root} as this run needs them:\n"
            + "\n".join(lines)
            + "\nRun `vidlit encode` with the same configuration; what is stored stays as it is."
        )

    def verify(self) -> Iterator[Damage]:
        """Compare every stored tensor with the checksum taken when it was written."""
        columns = ["kind", "key", "clip_id", "caption", "shard", "offset", "layout", "checksum"]
        table = self.rows(columns)
        table = table.filter(pc.is_valid(table["shard"])).sort_by([("shard", "ascending"), ("offset", "ascending")])
        files = ShardFiles(self.root)
        for row in (row for batch in table.to_batches(max_chunksize=4096) for row in batch.to_pylist()):
            try:
                shape, dtype = parse_layout(row["layout"])
                tensor = torch.empty(shape, dtype=dtype)
                files.read_into(row["shard"], row["offset"], as_bytes(tensor))
                problem = "" if checksum(tensor) == row["checksum"] else "its bytes changed since it was written"
            except UserError as error:
                problem = str(error)
            if problem:
                yield Damage(row["kind"], row["clip_id"] or row["caption"], row["shard"], problem, row["key"])


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    array = column.combine_chunks().dictionary_encode()
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.indices.to_numpy(), array.dictionary.to_pylist()


def _shard_prefix(recipe: Recipe) -> str:
    return "prompts/" if isinstance(recipe, PromptRecipe) else f"shards/{recipe.bucket}-"


def _row(item: Item) -> dict[str, Any]:
    return {
        "kind": "quarantined" if item.reason else item.recipe.kind,
        "key": item.recipe.key,
        "clip_id": item.clip_id,
        "video": item.video,
        "group": item.group,
        "reason": item.reason or None,
        **item.recipe.ingredients,
    }
