"""The index of a store: parquet files with a row for each tensor, read without trust."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidlit.errors import UserError
from vidlit.latents.recipe import INGREDIENTS
from vidlit.latents.storage.interface import Storage
from vidlit.latents.store_folder import is_part_name, telling

VERSION = b"1"
FIRST = "index.parquet"
"""What earlier versions merged an index into; its rows are older than all others."""
SCHEMA = pa.schema(
    [("kind", pa.string()), ("key", pa.string()), ("clip_id", pa.string()), ("video", pa.string())]
    + [("group", pa.string())]
    + [(name, pa.float64() if kind is float else pa.string()) for name, kind in INGREDIENTS.items()]
    + [("tensor", pa.string()), ("shard", pa.string()), ("offset", pa.int64()), ("layout", pa.string())]
    + [("checksum", pa.uint32()), ("reason", pa.string()), ("transient", pa.bool_())]
    + [("num_cut_tokens", pa.int64()), ("kept_tokens", pa.string())],
    metadata={b"vidlit_store": VERSION},
)
_EXPANSION, _FLOOR_BYTES = 200, 2**26
"""An index may be this much larger in memory than on disk, or so large anyhow: captions that are nearly alike compress
to a thirtieth."""


class DamagedIndexError(UserError):
    """A file of the index that cannot be read.

    Args:
        where: what people call it.
        name: in the store.
        why: in the words of what refused it.
    """

    def __init__(self, where: str, name: str, why: str) -> None:
        super().__init__(
            f"{where} is damaged ({' '.join(why.split())[:200]}). Run `vidlit encode --repair` with the same "
            "configuration: what it named is encoded again."
        )
        self.name = name


def file_names(storage: Storage) -> list[str]:
    """The files of an index, oldest rows first."""
    with telling(storage):
        names = sorted(f"index/{last}" for last in storage.entries("index"))
        merged = [FIRST] if FIRST in storage.entries("") else []
    return [*merged, *(name for name in names if is_part_name(name))]


def read_all(storage: Storage, columns: Sequence[str], kind: str | None = None) -> pa.Table:
    """Columns of a whole index, oldest rows first.

    Args:
        storage: of the store.
        columns: names of columns; one that came later is null in an older file.
        kind: rows wanted; ``None`` for all.

    Raises:
        UserError: a file cannot be read, or was written by another version.
    """
    return read_with_names(storage, columns, kind)[0]


def read_with_names(storage: Storage, columns: Sequence[str], kind: str | None = None) -> tuple[pa.Table, list[str]]:
    """As :func:`read_all`, and the files that were read."""
    while True:
        names = file_names(storage)
        tables = [read_file(storage, name, columns, kind) for name in names]
        found = [table for table in tables if table is not None]
        if len(found) == len(names):  # else some were merged meanwhile: what they held is in a new one
            return pa.concat_tables([empty_table(columns), *found]), names


def empty_table(columns: Sequence[str]) -> pa.Table:
    """Columns of an index without rows."""
    return pa.schema([SCHEMA.field(name) for name in columns]).empty_table()


def write_index(storage: Storage, name: str, table: pa.Table) -> None:
    """Write a file of an index.

    Raises:
        OSError: there is no room, or the system refuses.
    """
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(SCHEMA.metadata)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    storage.write(name, memoryview(sink.getvalue()))


def has_index(storage: Storage) -> bool:
    """Does a folder hold an index that a store wrote?"""
    for name in file_names(storage):
        with contextlib.suppress(UserError):
            if read_file(storage, name, ["key"]) is not None:
                return True
    return False


def name_at(storage: Storage, shard: str, offset: int) -> str:
    """Whose bytes these are: a clip's name or a caption, for people."""
    table = read_all(storage, ["clip_id", "caption", "shard", "offset"])
    table = table.filter(pc.and_(pc.equal(table["shard"], shard), pc.equal(table["offset"], offset)))
    for row in table.slice(0, 1).to_pylist():
        return row["clip_id"] or f"caption {(row['caption'] or '')[:60]!r}"
    return "something"


def read_file(storage: Storage, name: str, columns: Sequence[str], kind: str | None = None) -> pa.Table | None:
    """Columns of one file of an index, as for :func:`read_all`; ``None`` where it is not there.

    Raises:
        UserError: it cannot be read, or was written by another version.
    """
    where = storage.where(name)
    try:
        return _parse(storage.read(name), where, columns, kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UserError:
        raise
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # which a pipe in its place gives
            raise UserError(f"cannot read {where}: {error.strerror}") from error
        raise DamagedIndexError(where, name, str(error)) from error


def _parse(data: bytes, where: str, columns: Sequence[str], kind: str | None) -> pa.Table:
    # Arrow's own reader and no threads of its own: one that lets go of a Python object while the interpreter ends
    # takes the process with it ("terminate called without an active exception").
    with pa.BufferReader(data) as source:
        metadata = pq.read_metadata(source)
        schema = metadata.schema.to_arrow_schema()
        if (schema.metadata or {}).get(b"vidlit_store") != VERSION:
            raise UserError(f"{where} was written by another version of vidlit: use another store folder")
        limit = max(_FLOOR_BYTES, _EXPANSION * len(data))
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        # A row holds a key that is like no other: it takes bytes on disk, too.
        if metadata.num_rows > len(data) or sum(group.total_byte_size for group in groups) > limit:
            raise ValueError("it holds more than its size allows")
        written = [name for name in columns if name in schema.names]
        wanted = list(dict.fromkeys([*written, *(["kind"] if kind is not None else [])]))
        texts = [name for name in wanted if SCHEMA.field(name).type == pa.string()]
        file = pq.ParquetFile(
            source, metadata=metadata, read_dictionary=texts, pre_buffer=False, page_checksum_verification=True
        )
        table = file.read(wanted, use_threads=False)
    if sum(_decoded_bytes(column) for column in table.columns) > limit:
        raise ValueError("it holds more than its size allows")
    table = table.cast(pa.schema([SCHEMA.field(name) for name in table.column_names]))
    table.validate(full=True)  # names that are no UTF-8
    if kind is not None:
        table = table.filter(pc.equal(table["kind"], kind))
    for name in columns:
        if name not in written:  # an ingredient that came later
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(list(columns))


def _decoded_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a column once every row holds its own text: a few bytes on disk can name one text many times."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    lengths = [pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() for chunk in column.chunks]
    return sum(length or 0 for length in lengths)
