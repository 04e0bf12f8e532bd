"""The index of a store: parquet files with a row for each tensor, read without trust."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidlit.errors import UserError
from vidlit.io_retry import retry_io
from vidlit.latents.recipe import INGREDIENTS
from vidlit.latents.store_folder import inside, is_part_name
from vidlit.whole_files import write_whole

VERSION = b"1"
MERGED = "index.parquet"
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
    """A file of the index that cannot be read, and which."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} is damaged ({' '.join(why.split())[:200]}). Run `vidlit encode --repair` with the same "
            "configuration: what it named is encoded again."
        )
        self.path = path


def part_names(root: Path) -> list[str]:
    """The index's files that are not merged yet, oldest first."""
    names = [f"index/{path.name}" for path in sorted((root / "index").glob("*.parquet"))]
    return [name for name in names if is_part_name(name)]


def read_all(root: Path, columns: Sequence[str], kind: str | None = None) -> pa.Table:
    """Columns of a whole index, merged or not, oldest rows first.

    Args:
        root: folder of the store.
        columns: names of columns; one that came later is null in an older file.
        kind: rows wanted; ``None`` for all.

    Raises:
        UserError: a file cannot be read, or was written by another version.
    """
    parts = read_index(root, part_names(root), columns, kind)
    # The merged index is read after the parts: a part that vanished meanwhile is in it.
    return pa.concat_tables([read_index(root, [MERGED], columns, kind), parts])


def read_index(root: Path, names: Iterable[str], columns: Sequence[str], kind: str | None = None) -> pa.Table:
    """Columns of some files of an index, one after the other; files that are not there are left out.

    Args:
        root: folder of the store.
        names: of the files.
        columns: as for :func:`read_all`.
        kind: as for :func:`read_all`.

    Raises:
        UserError: as for :func:`read_all`.
    """
    tables = [table for name in names if (table := _read(inside(root, name), columns, kind)) is not None]
    empty = pa.schema([SCHEMA.field(name) for name in columns]).empty_table()
    return pa.concat_tables([empty, *tables])


def write_index(path: Path, table: pa.Table) -> None:
    """Write a file of an index.

    Raises:
        OSError: the disk is full or refuses.
    """
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(SCHEMA.metadata)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_whole(path, memoryview(sink.getvalue()), sync=True)


def has_index(root: Path) -> bool:
    """Does a folder hold an index that a store wrote?"""
    for name in [MERGED, *part_names(root)]:
        with contextlib.suppress(UserError):
            if _read(inside(root, name), ["key"], None) is not None:
                return True
    return False


def name_at(root: Path, shard: str, offset: int) -> str:
    """Whose bytes these are: a clip's name or a caption, for people."""
    table = read_all(root, ["clip_id", "caption", "shard", "offset"])
    table = table.filter(pc.and_(pc.equal(table["shard"], shard), pc.equal(table["offset"], offset)))
    for row in table.slice(0, 1).to_pylist():
        return row["clip_id"] or f"caption {(row['caption'] or '')[:60]!r}"
    return "something"


def _read(path: Path, columns: Sequence[str], kind: str | None) -> pa.Table | None:
    try:
        return retry_io(lambda: _parse(path, columns, kind), f"reading {path}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UserError:
        raise
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        raise DamagedIndexError(path, str(error)) from error


def _parse(path: Path, columns: Sequence[str], kind: str | None) -> pa.Table:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    # Arrow's own file and no threads of its own: one that lets go of a Python file while the interpreter ends takes
    # the process with it ("terminate called without an active exception").
    with pa.OSFile(str(path)) as source:
        metadata = pq.read_metadata(source)
        schema = metadata.schema.to_arrow_schema()
        if (schema.metadata or {}).get(b"vidlit_store") != VERSION:
            raise UserError(f"{path} was written by another version of vidlit: use another store folder")
        limit = max(_FLOOR_BYTES, _EXPANSION * status.st_size)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        # A row holds a key that is like no other: it takes bytes on disk, too.
        if metadata.num_rows > status.st_size or sum(group.total_byte_size for group in groups) > limit:
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
