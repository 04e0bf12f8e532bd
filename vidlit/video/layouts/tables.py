"""Layouts whose rows stand in one table."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from vidlit.errors import UserError
from vidlit.video.layouts.layout import PATH_COLUMNS, Layout, Listing, Rejected
from vidlit.video.layouts.source_folder import is_inside, refuse_outside
from vidlit.video.layouts.table_files import TABLE_SUFFIXES, read_table

_METADATA_NAMES = tuple(f"metadata{suffix}" for suffix in (".csv", ".tsv", ".jsonl", ".parquet"))
_OTHER_SPLITS = ("validation", "valid", "val", "dev", "test")
_ROWS_LOOKED_AT = 20  # rows in which a table of videos names one; the first ones may be broken


class Table(Layout):
    """A file that was named itself."""

    description = "the path of a .csv, .tsv, .json, .jsonl or .parquet file with the columns media_path and caption"

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`."""
        is_table = source.is_file() and source.suffix.lower() in TABLE_SUFFIXES
        return Listing(source.name, read_table(source), (source.name,)) if is_table else None


class Metadata(Layout):
    """The table that Hugging Face's video folders have."""

    description = """metadata.csv, .tsv, .jsonl or .parquet with the columns file_name and caption (or text, or
    prompt); optional columns: group, start and end (seconds) or start_frame and end_frame"""

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`."""
        return _read_only_table(source, _metadata_in(source))


class TrainFolder(Layout):
    """The same table in ``train``, of a dataset with splits of its own."""

    description = "train/metadata.csv, .tsv, .jsonl or .parquet, with paths relative to train/"

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`. Validation and test videos are for whoever made the splits: they are left out."""
        listing = _read_only_table(source, _metadata_in(source / "train"))
        others = [name for name in _OTHER_SPLITS if _metadata_in(source / name)]
        if listing is None or not others:
            return listing
        note = f"only train/ is read; {', '.join(f'{name}/' for name in others)} left out"
        return listing._replace(notes=(note,))


class AnyTable(Layout):
    """A table of any other name."""

    description = "any other .csv, .tsv, .json, .jsonl or .parquet file with the columns media_path and caption"

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`. A report or a notebook's JSON that lies in the folder lists no videos."""
        return _read_only_table(source, [path for path in tables_in(source) if _has_path_column(path)])


def tables_in(source: Path) -> list[Path]:
    """Files in a folder, not in those below, that are tables by their suffix and lie in it, all links followed."""
    files = sorted(source.iterdir()) if source.is_dir() else []
    return [
        path
        for path in files
        if path.suffix.lower() in TABLE_SUFFIXES
        and path.is_file()  # opening a pipe would wait forever
        and not path.name.startswith(".")
        and is_inside(source, path)
    ]


def _metadata_in(folder: Path) -> list[Path]:
    return [path for name in _METADATA_NAMES if (path := folder / name).is_file()]


def _read_only_table(folder: Path, tables: list[Path]) -> Listing | None:
    if not tables:
        return None
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables[:3]) + (", ..." if len(tables) > 3 else "")
        raise UserError(f"{folder} holds several tables ({names}): name the one to use instead of the folder")
    (table,) = tables
    name = table.relative_to(folder).as_posix()
    refuse_outside(folder, table)
    base = table.parent.relative_to(folder).as_posix()
    return Listing(name, read_table(table), (name,), "" if base == "." else base)


def _has_path_column(path: Path) -> bool:
    """Whether a table lists videos; a report or a notebook's JSON that lies in the folder does not."""
    try:
        rows = [row for _, row in islice(read_table(path), _ROWS_LOOKED_AT)]
    except UserError:
        return False
    return any(column in row for row in rows if not isinstance(row, Rejected) for column in PATH_COLUMNS)
