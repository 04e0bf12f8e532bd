"""What lies in a source folder: its files, which of them a row may name, and what is left alone and why."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from vidlit.errors import UserError
from vidlit.video.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES

MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES


class SourceFolder:
    """Every file of a folder, in any folder below, that is not hidden.

    Hidden are names that begin with a dot, as ``._a.mp4`` of other systems and ``.cache``. Links to files are files.
    Links to folders are followed where these lie in the source and would else not be seen (a hidden one).

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path.resolve()
        self._located: dict[str, tuple[str | None, Path]] = {}
        self.skipped: dict[str, list[str]] = defaultdict(list)
        """Names of folders that are not looked into, by reason."""
        self.files = tuple(sorted(self._walk()))
        """Posix paths relative to the folder, as the system spells them."""
        self.media = tuple(name for name in self.files if is_media(name))
        """Videos and images among them, by suffix."""

    def _walk(self) -> Iterator[str]:
        folders, seen = [(self.root, "")], set()
        links: list[str] = []
        while folders or links:
            if not folders:  # links last: a folder's own name is the better one
                above = min(links)
                links.remove(above)
                folder = Path(os.path.realpath(self.root / above))
                if not folder.is_relative_to(self.root):
                    self.skipped["links to folders outside of the source"].append(above)
                    continue
                folders.append((folder, f"{above}/"))
            folder, above = folders.pop()
            if folder in seen:
                continue
            seen.add(folder)
            try:
                entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
            except OSError:
                self.skipped["folders that cannot be read"].append(above or ".")
                continue
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                name = above + entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append((folder / entry.name, f"{name}/"))
                elif entry.is_symlink() and os.path.isdir(entry.path):  # entry.is_dir raises on loops of links
                    links.append(name)
                else:
                    yield name

    @cached_property
    def _names(self) -> set[str]:
        return set(self.files)

    @cached_property
    def _spellings(self) -> dict[str, list[str]]:
        spellings = defaultdict(list)
        for name in self.files:
            spellings[unicodedata.normalize("NFC", name)].append(name)
        return spellings

    def has(self, name: Any) -> bool:
        """Whether a file is called exactly so: names may begin with a blank."""
        return isinstance(name, str) and name in self._names

    def find(self, name: str) -> str:
        """The name, as the system spells it, of the file that a row calls so; the row's own where there is none.

        Unicode has two spellings of letters with accents (NFC, NFD), and macOS changes one to the other; a table from
        Windows may have backslashes between folders.
        """
        if name in self._names:
            return name
        for spelling in (name, name.replace("\\", "/")):
            plain = PurePosixPath(spelling).as_posix()
            if plain in self._names:
                return plain
            alike = self._spellings.get(unicodedata.normalize("NFC", plain), [])
            if len(alike) == 1:
                return alike[0]
        return PurePosixPath(name).as_posix()

    def locate(self, name: str) -> tuple[str | None, Path]:
        """Why a path of the folder cannot be a row's video, or ``None``; and where it is, all links followed.

        Nothing outside of the folder is ever touched.
        """
        if name not in self._located:
            path = Path(os.path.realpath(self.root / name))
            self._located[name] = self._refuse(path), path
        return self._located[name]

    def _refuse(self, path: Path) -> str | None:
        if not (path.is_relative_to(self.root) or is_inside(self.root, path)):
            return "is a link that leads out of the folder: copy the file, or use its folder as the source"
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return "does not exist"
        except OSError as error:  # a name too long, a loop of links, no permission
            return f"cannot be opened: {error.strerror}"
        return None if stat.S_ISREG(mode) else "is not a regular file"


def refuse_name(name: str) -> str | None:
    """Why what a row gives as its video is no path within a folder."""
    if "://" in name or "\0" in name:
        return "is not a path: URLs are not fetched"
    if re.match(r"/|\\|[A-Za-z]:[\\/]", name):
        return "is an absolute path: paths are relative to the folder"
    if ".." in re.split(r"[\\/]", name):
        return "leads out of the folder with '..'"
    return None


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path, all links followed, is in a folder, or is a file of the same Hugging Face cache.

    That cache keeps ``datasets--NAME/snapshots/REVISION/a.mp4`` as a link to ``datasets--NAME/blobs/HASH``.
    """
    root, target = (Path(os.path.realpath(each)) for each in (folder, path))  # which takes loops of links, too
    if target.is_relative_to(root):
        return True
    snapshots = [each.parent for each in (root, *root.parents) if each.parent.name == "snapshots"]
    repositories = [each.parent for each in snapshots if re.match(r"(datasets|models|spaces)--", each.parent.name)]
    return any(target.parent == (repository / "blobs").resolve() for repository in repositories)


def refuse_outside(folder: Path, path: Path) -> None:
    """Refuse to read a file of a folder that is a link to another place: a stranger may have made it.

    Raises:
        UserError: it leads out of the folder.
    """
    if not is_inside(folder, path):
        raise UserError(f"{path} is a link that leads out of the folder: put the file itself there")


def is_media(name: str) -> bool:
    """Whether a file is a video or an image by its suffix, in any case."""
    return PurePosixPath(name).suffix.lower() in MEDIA_SUFFIXES


def is_utf8(name: str) -> bool:
    """Whether a name can be written to a file: Python reads bytes that are no UTF-8 as halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
