"""Which layout a source has: each is asked in turn whether the source is its own."""

from __future__ import annotations

import os
from pathlib import Path

from vidlit.errors import UserError
from vidlit.video.layouts.layout import Layout, Listing
from vidlit.video.layouts.source_folder import SourceFolder
from vidlit.video.layouts.table_files import read_table
from vidlit.video.layouts.tables import AnyTable, Metadata, Table, TrainFolder, tables_in
from vidlit.video.layouts.text_files import CaptionFiles, PromptsAndVideos
from vidlit.video.layouts.trainer_configs import DiffusionPipe, MusubiTuner, SimpleTuner

_OWN: tuple[type[Layout], ...] = (
    MusubiTuner,
    DiffusionPipe,
    SimpleTuner,  # a JSON list, too: asked before tables
    Table,
    Metadata,
    TrainFolder,
    PromptsAndVideos,
    AnyTable,
    CaptionFiles,
)


def known_layouts() -> list[type[Layout]]:
    """Every layout, in the order in which they are asked: those of plugins first."""
    return [layout for layout in _subclasses(Layout) if layout not in _OWN] + list(_OWN)


def find_layout(source: Path) -> Listing:
    """What the first layout reads that a source belongs to.

    Raises:
        UserError: no such folder or table, none or an ambiguous layout, an unreadable table.
    """
    if not source.exists():
        raise UserError(f"{source} is not a folder of clips: no such folder or table")
    if source.is_dir():
        try:
            os.scandir(source).close()
        except OSError as error:
            raise UserError(f"{source} cannot be read: {error.strerror}") from error
    for layout in known_layouts():
        listing = layout.read(source)
        if listing is not None:
            return listing
    if not source.is_dir():
        raise UserError(f"{source} is not a folder of clips, and no table; {_accepted()}")
    count = len(SourceFolder(source).media)
    found = f"{count} videos but no captions" if count else "no videos and no table of them"
    raise UserError(f"{source} holds {found}; {_unreadable_tables(source)}{_accepted()}")


def _subclasses(layout: type[Layout]) -> list[type[Layout]]:
    return [derived for child in layout.__subclasses__() for derived in (child, *_subclasses(child))]


def _unreadable_tables(source: Path) -> str:
    """Tables that list no videos because they cannot be read: the captions may be in one of them."""
    for path in tables_in(source):
        try:
            next(iter(read_table(path)), None)
        except UserError as error:
            return f"{error}; "
    return ""


def _accepted() -> str:
    lines = [f"  {layout.description}".replace("\n", "\n  ") for layout in known_layouts()]
    return "\n".join(["accepted layouts:", *lines, "Images count as clips of one frame."])
