"""Layouts whose captions stand in text files."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from vidlit.errors import UserError
from vidlit.video.layouts.layout import COMPANION_COLUMNS, Layout, Listing, Rejected, Row
from vidlit.video.layouts.source_folder import SourceFolder, is_inside, is_utf8, refuse_outside
from vidlit.video.layouts.table_files import read_text_file


class PromptsAndVideos(Layout):
    """Two text files side by side."""

    description = "prompts.txt and videos.txt, one caption and one path a line"

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`."""
        prompts = next((source / name for name in ("prompts.txt", "prompt.txt") if (source / name).is_file()), None)
        videos = source / "videos.txt"
        if prompts is None or not videos.is_file():
            return None
        refuse_outside(source, prompts)
        refuse_outside(source, videos)
        return Listing(f"{prompts.name} + videos.txt", _read_lines(prompts, videos), (prompts.name, videos.name))


class CaptionFiles(Layout):
    """A text file beside each video."""

    description = (
        "a.mp4 beside a.txt or a.mp4.txt, which holds its caption, in any folder below, and a.mask.png or a.mask.mp4, "
        "its mask, and a.reference.png or a.reference.mp4, its reference, if it has any"
    )

    @classmethod
    def read(cls, source: Path) -> Listing | None:
        """See :meth:`Layout.read`."""
        if not source.is_dir():
            return None
        folder = SourceFolder(source)
        captions = caption_files(folder)
        if not captions:
            return None
        companions = companion_files(folder)
        others = {name for files in companions.values() for name in files.values()}
        videos = sorted({name for name in folder.media if is_utf8(name)} - others)
        said = {video: caption_row(folder, video, captions.get(video)) for video in videos}
        rows = [
            (video, row if isinstance(row, Rejected) else {**row, **companions.get(video, {})})
            for video, row in said.items()
        ]
        return Listing("a caption file beside each video", rows, tuple(captions.values()))


def caption_files(folder: SourceFolder, suffix: str = ".txt") -> dict[str, str]:
    """The caption file of each video that has one: ``a.mp4.txt``, or ``a.txt``, the suffix in any case."""
    texts = {}
    for name in folder.files:  # upper case sorts first: a.txt wins over a.TXT
        if name.lower().endswith(suffix.lower()):
            texts[unicodedata.normalize("NFC", name[: -len(suffix)])] = name
    found = {}
    for video in folder.media:
        own = unicodedata.normalize("NFC", video)
        text = texts.get(own) or texts.get(PurePosixPath(own).with_suffix("").as_posix())
        if text is not None:
            found[video] = text
    return found


def companion_files(folder: SourceFolder) -> dict[str, dict[str, str]]:
    """The mask and the reference of each video that has some, by their columns: ``a.mask.png`` beside ``a.mp4``."""
    stems = {name: PurePosixPath(name).with_suffix("") for name in folder.media}
    found: dict[str, dict[str, str]] = {}
    for name, stem in stems.items():
        for what in COMPANION_COLUMNS:
            owner = stem.with_suffix("") if stem.suffix == f".{what}" else None
            if owner is not None:
                found.setdefault(f"{owner}", {})[what] = name
    return {name: found[f"{stem}"] for name, stem in stems.items() if f"{stem}" in found}


def caption_row(
    folder: SourceFolder,
    video: str,
    caption_file: str | None,
    suffix: str = ".txt",
    read: Callable[[str], Any] = lambda text: text,
) -> Row:
    """A video with what its caption file says.

    Args:
        folder: of both.
        video: its name.
        caption_file: name of the file; ``None`` where there is none.
        suffix: that it should have had.
        read: makes a cell of its text.
    """
    if caption_file is None:
        return Rejected(video, f"no caption file {PurePosixPath(video).with_suffix(suffix).name} beside it")
    name, path = PurePosixPath(caption_file).name, folder.root / caption_file
    try:
        if not is_inside(folder.root, path):
            return Rejected(video, f"its caption file {name} is a link that leads out of the folder")
        if not path.is_file():  # opening a pipe would wait forever
            return Rejected(video, f"its caption file {name} is not a regular file")
        return {"file_name": video, "caption": read(read_text_file(path))}
    except (OSError, RuntimeError, UserError) as error:  # a loop of links, no permission, no text
        return Rejected(video, f"its caption file cannot be used: {error}")


def _read_lines(prompts: Path, listed: Path) -> Iterator[tuple[str, Row]]:
    captions, videos = (read_text_file(path).rstrip("\n").split("\n") for path in (prompts, listed))
    if len(captions) != len(videos):
        raise UserError(
            f"{prompts} has {len(captions)} lines and {listed.name} has {len(videos)}: "
            "line N of one must belong to line N of the other"
        )
    for number, (caption, video) in enumerate(zip(captions, videos, strict=True), 1):
        yield f"{listed.name} line {number}", {"file_name": video.strip(), "caption": caption}
