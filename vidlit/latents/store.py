"""Encoded clips and captions: safetensors shards and a parquet index, in a local folder or on object storage.

    vidlit_store.json          marks the folder as a store
    index/<time>-<id>.parquet  a part of the index, with one row per tensor: key, ingredients, shard, byte offset,
                               shape, dtype, checksum
    shards/<bucket>-<time>-<id>.safetensors
    prompts/<time>-<id>.safetensors

Each file is there whole or not at all. A shard counts once the part of the index that names it is there, so a process
may die at any instant: what it leaves is a whole store, or a whole store and an orphan that nobody reads. Any number of
processes may write at once, because none writes another's files. Parts are merged by writing a new one with all that
they hold, and then deleting them: whoever does so at the same time writes the same rows once more, and the first of
equal rows counts. An item whose shard is gone or too short does not count as stored: it is encoded again.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from vidlit.errors import UserError
from vidlit.latents.damage import Damage, find_damage
from vidlit.latents.encoding import QuarantinedClip
from vidlit.latents.index import (
    SCHEMA,
    DamagedIndexError,
    file_names,
    has_index,
    read_file,
    read_with_names,
    write_index,
)
from vidlit.latents.index_reader import IndexReader, encode_column
from vidlit.latents.recipe import LatentRecipe, PromptRecipe, Recipe, RecipeT
from vidlit.latents.shards import TensorTable, write_shard
from vidlit.latents.storage.opening import StoreCache, open_storage
from vidlit.latents.store_folder import foreign_names, is_marked, mark, own_files, time_of_name, unique_name

_ORPHAN_SECONDS = 3600.0  # a shard without a row is being written, or its writer is dead
_LARGE_PART_BYTES = 2**20
"""A part of the index that is merged no more while encoding: a million clips make about a hundred of them."""


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
        transient: the reason is one of time, memory or the system, and may be gone at the next try.
        num_cut_tokens: tokens of a caption that the text encoder does not read; ``None`` where that is not known.
        kept_tokens: what names the tokens of a caption that it does read.
    """

    recipe: Recipe
    tensors: Mapping[str, Tensor]
    clip_id: str = ""
    video: str = ""
    group: str = ""
    reason: str = ""
    transient: bool = False
    num_cut_tokens: int | None = None
    kept_tokens: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class LatentStore:
    """Encoded clips and captions by key.

    Args:
        root: the folder, or the URL of one that fsspec knows; made when the first item is written.
        cache: of what is read from object storage.
    """

    def __init__(self, root: Path | str, cache: StoreCache = StoreCache()) -> None:  # noqa: B008 - frozen
        self.storage = open_storage(root, cache)
        self._index = IndexReader(self.storage)

    # -- the folder ----------------------------------------------------------------------------------------

    def check_folder(self) -> None:
        """Refuse a folder that holds other things and is no store, or one of another version, with a UserError."""
        try:
            if is_marked(self.storage):
                return
            foreign = foreign_names(self.storage)
        except OSError as error:
            raise UserError(f"cannot use {self.storage} as the latent store: {error.strerror or error}") from error
        if foreign and not has_index(self.storage):
            raise UserError(
                f"{self.storage} is no latent store, and it holds other things ({', '.join(foreign)}): set data.store "
                "to a new or empty folder."
            )

    @contextlib.contextmanager
    def encoding(self) -> Iterator[None]:
        """Mark the folder as a store, clean it, and keep others from encoding into it meanwhile.

        Raises:
            UserError: it holds other things, or cannot be written to.
        """
        with contextlib.ExitStack() as held:
            with self._writing():
                self._claim()
                held.enter_context(self.storage.encoding_lock())
                self.clean()
            yield

    def _claim(self) -> None:
        self.check_folder()
        if not is_marked(self.storage):
            mark(self.storage)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write to the latent store {self.storage}: {error.strerror or error}. What it held before is "
                "intact; fix the cause (free space, permissions) and run again: encoding continues from there."
            ) from error

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, items: Sequence[Item]) -> None:
        """Store items for good, all or none of them: one shard per kind and bucket, one part of the index.

        Raises:
            UserError: the disk is full or refuses, or the folder is no store; what was stored before stays readable.
        """
        if not items:
            return
        shards: dict[str, list[Item]] = {}
        for item in items:
            if item.tensors:
                shards.setdefault(_shard_prefix(item.recipe), []).append(item)
        rows = [_row(item) for item in items if not item.tensors]
        unique = unique_name()
        part = f"index/{unique}.parquet"
        with self._writing():
            self._claim()
            try:
                for prefix, members in shards.items():
                    rows += self._write_shard(f"{prefix}{unique}.safetensors", members)
                write_index(self.storage, part, pa.Table.from_pylist(rows, SCHEMA))
            except OSError:  # a full disk stays full of what nobody reads; the part goes first, for it names the rest
                with contextlib.suppress(OSError):
                    for name in (part, *(f"{prefix}{unique}.safetensors" for prefix in shards)):
                        self.storage.remove(name)
                raise

    def _write_shard(self, name: str, items: list[Item]) -> list[dict[str, Any]]:
        tensors = {f"{item.recipe.key}.{tensor}": value for item in items for tensor, value in item.tensors.items()}
        places = write_shard(self.storage, name, tensors)
        return [
            _row(item) | {"tensor": tensor, "shard": name} | places[f"{item.recipe.key}.{tensor}"]._asdict()
            for item in items
            for tensor in item.tensors
        ]

    def compact(self, *, only_small: bool = False) -> None:
        """Merge the parts of the index.

        Args:
            only_small: only those behind the last large one, so that merging often costs little and keeps their order.
        """
        names = file_names(self.storage)
        if only_small:
            parts = self.storage.entries("index").items()
            small = {f"index/{last}" for last, entry in parts if (entry.size or 0) < _LARGE_PART_BYTES}
            names = list(itertools.takewhile(small.__contains__, reversed(names)))[::-1]
        if len(names) > 1:
            with self._writing():
                self._merge(names)

    def repair(self) -> list[Damage]:
        """Forget all that is damaged or gone, so that it counts as not stored and is encoded again.

        Returns:
            What was forgotten.

        Raises:
            UserError: the disk is full or refuses.
        """
        damaged = []
        with self._writing():
            for name in file_names(self.storage):
                try:
                    read_file(self.storage, name, SCHEMA.names)
                except DamagedIndexError as error:
                    self.storage.remove(error.name)
                    damaged.append(Damage("index", name, name, "it could not be read", ""))
            found = list(self.verify())
            if found:
                self._merge(without={(damage.key, damage.shard) for damage in found})
        return damaged + found

    def _merge(self, names: Sequence[str] | None = None, without: Collection[tuple[str, str]] = ()) -> None:
        """Write a new part with what others hold, and delete them.

        Args:
            names: of the others; all if ``None``.
            without: key and shard of rows that are left out.
        """
        if names is None:
            table, names = read_with_names(self.storage, SCHEMA.names)
        else:
            tables = [read_file(self.storage, name, SCHEMA.names) for name in names]
            if any(table is None for table in tables):  # another process merges them
                return
            table = pa.concat_tables(tables)
        keep = _first_of_equal(table) & _latest_quarantines(table)
        if without:
            pairs = zip(table["key"].to_pylist(), table["shard"].to_pylist(), strict=True)
            keep &= np.fromiter((pair not in without for pair in pairs), bool, len(table))
        # Its rows stay where the last of them stood, before those of parts that were written meanwhile.
        at = max((time_of_name(name) for name in names if name.startswith("index/")), default=0)
        write_index(self.storage, f"index/{unique_name(at)}.parquet", table.filter(pa.array(keep)))
        for name in names:
            self.storage.remove(name)

    def clean(self, older_than_seconds: float = _ORPHAN_SECONDS) -> list[str]:
        """Delete what dead writers left behind: unfinished files, and shards that no row names.

        Only files whose names a store gives, in the folders where it puts them, are ever deleted.

        Returns:
            Names of what was deleted.
        """
        # Shards are listed before the index is read: one that is committed in between is then named by it.
        files = own_files(self.storage, older_than=time.time() - older_than_seconds)
        self.storage.refresh()
        try:
            named = set(pc.unique(self.rows(["shard"])["shard"]).to_pylist()) if files else set()
        except DamagedIndexError:  # which shards it named is not known
            return []
        gone = [name for name in files if name not in named]
        for name in gone:
            self.storage.remove(name)
        return gone

    # -- reading -------------------------------------------------------------------------------------------

    def rows(self, columns: Sequence[str], kind: str | None = None) -> pa.Table:
        """Columns of the index, merged or not. Several rows may have one key: the first counts.

        Raises:
            UserError: the index cannot be read, or was written by a newer version.
        """
        return self._index.rows(columns, kind)

    def keys(self, kind: str) -> Set[str]:
        """Keys of all items of a kind: ``latent``, ``prompt``, or ``quarantined`` for what has a reason instead.

        Raises:
            UserError: the index or a shard cannot be read.
        """
        return set(self.quarantined()) if kind == "quarantined" else self._index.keys(kind)

    def quarantined(self) -> dict[str, QuarantinedClip]:
        """Clips that could not be encoded, then or since, by key, as their last try ended."""
        rows = self.rows(["key", "clip_id", "video", "reason", "transient"], "quarantined").to_pylist()
        found = {row.pop("key"): QuarantinedClip(**row | {"transient": bool(row["transient"])}) for row in rows}
        if found:
            for key in found.keys() & self.keys("latent"):
                del found[key]
        return found

    def read_tokens(self) -> dict[str, tuple[int, str]]:
        """How much the text encoder reads of captions, by key: tokens that it does not, and what names the others."""
        rows = self.rows(["key", "num_cut_tokens", "kept_tokens"], "prompt")
        rows = rows.filter(pc.is_valid(rows["num_cut_tokens"]))
        keys, num_cut, kept = (rows[name].to_pylist() for name in rows.column_names)
        return {key: (number, name or "") for key, number, name in zip(keys, num_cut, kept, strict=True)}

    def locate(self, kind: str, tensor: str, keys: Sequence[str] | pa.Array) -> TensorTable:
        """Find one tensor of many items.

        Raises:
            KeyError: with the positions of the keys that are not stored, as an array.
        """
        table, keys = self._index.stored(kind), keys if isinstance(keys, pa.Array) else pa.array(keys, pa.string())
        # Keys first: of a few, and a table of them is asked for often, the rest of a large index is looked at once.
        table = table.filter(pc.and_(pc.is_in(table["key"], value_set=keys), pc.equal(table["tensor"], tensor)))
        rows = pc.index_in(keys, value_set=table["key"])  # the first of several
        if rows.null_count:
            raise KeyError(np.flatnonzero(rows.is_null().to_numpy(zero_copy_only=False)))
        shard_codes, shards = encode_column(table["shard"].take(rows))
        layout_codes, layouts = encode_column(table["layout"].take(rows))
        numbers = [table[column].take(rows).to_numpy() for column in ("offset", "checksum")]
        places = np.stack([shard_codes, numbers[0], layout_codes, numbers[1]], axis=1, dtype=np.int64)
        return TensorTable(self.storage, shards, layouts, places)

    def require(self, wanted: Sequence[Recipe]) -> None:
        """Check that everything wanted is stored.

        Raises:
            UserError: with what is missing and how it differs from what is stored, e.g. by another VAE.
        """
        if wanted and (missing := self.missing(wanted)):
            raise UserError(self.explain_missing(missing, len(wanted)))

    def missing(self, wanted: Sequence[RecipeT]) -> list[RecipeT]:
        """The recipes that are not stored, in the order given."""
        stored: Set[str] = self.keys(wanted[0].kind) if wanted else set()
        return [recipe for recipe in wanted if recipe.key not in stored]

    def explain_missing(self, missing: Sequence[Recipe], total: int) -> str:
        """Say for recipes that are not stored how they differ from the nearest that is."""
        recipe = missing[0]
        subject = "content" if isinstance(recipe, LatentRecipe) else "caption"
        stored: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows([*recipe.words], recipe.kind).to_pylist():
            stored.setdefault(row[subject], []).append(row)
        refused = self.quarantined()
        reasons: Counter[str] = Counter()
        for recipe in missing:
            differences: list[list[str]] = [recipe.differences(row) for row in stored.get(getattr(recipe, subject), [])]
            if recipe.key in refused:
                reason = f"could not be encoded: {refused[recipe.key].reason}"
            elif not differences:
                reason = f"nothing stored of this {subject}"
            else:
                nearest = min(differences, key=len)
                reason = "; ".join(nearest) or "its shard is damaged or gone"
            reasons[reason] += 1
        what = "clips" if isinstance(recipe, LatentRecipe) else "captions"
        lines = [f"  {count} of them: {reason}" for reason, count in reasons.most_common(8)]
        return (
            f"{len(missing)} of {total} {what} are not in the latent store {self.storage} as this run needs them:\n"
            + "\n".join(lines)
            + "\nRun `vidlit encode` with the same configuration; what is stored stays as it is."
        )

    def verify(self) -> Iterator[Damage]:
        """Compare every stored tensor with the checksum taken when it was written."""
        return find_damage(self.storage)


def _first_of_equal(table: pa.Table) -> NDArray[np.bool_]:
    """All rows but those that two merges at the same time wrote twice."""
    combined = np.zeros(len(table), np.int64)
    for name in ("kind", "key", "tensor", "shard"):
        codes, texts = encode_column(table[name].fill_null(""))
        combined = combined * len(texts) + codes  # 3 kinds x keys x 9 tensors x shards: below 2**63 up to 1e17 pairs
    keep = np.zeros(len(table), bool)
    keep[np.unique(combined, return_index=True)[1]] = True
    keep |= pc.equal(table["kind"], "quarantined").fill_null(True).to_numpy()  # of these the last counts
    return keep


def _latest_quarantines(table: pa.Table) -> NDArray[np.bool_]:
    """All rows but quarantines that a later try of the same clip replaced."""
    rows = np.flatnonzero(pc.equal(table["kind"], "quarantined").fill_null(False).to_numpy())
    last = dict(zip(table["key"].take(pa.array(rows)).to_pylist(), rows.tolist(), strict=True))
    keep = np.ones(len(table), bool)
    keep[rows] = False
    keep[list(last.values())] = True
    return keep


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
        "transient": item.transient or None,
        "num_cut_tokens": item.num_cut_tokens,
        "kept_tokens": item.kept_tokens or None,
        **item.recipe.ingredients,
    }
