"""Files on object storage and other machines, through fsspec: opened once a process, tried again, with plain errors.

Credentials come from where the file system of an address looks for them: environment variables, its own configuration
files, the machine's role.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from vidlit.errors import UserError
from vidlit.io_retry import NETWORK_PAUSES, retry_io

T = TypeVar("T")

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):[/\\]{1,2}")
"""How a URL begins, also one that was taken for a path, which has one slash of the two. One letter is a drive."""
_LOCAL = {"file", "local"}
"""What a path says better: a local folder is synced, locked and read in place."""
_BUGS = (TypeError, AttributeError, NameError, AssertionError, LookupError)
"""What a network never raises."""


class RemoteFiles:
    """What lies under a URL, by names relative to it. Can be pickled, and used in forked processes.

    Args:
        address: a URL that fsspec knows.

    Raises:
        UserError: fsspec does not know it, or lacks the package that opens it.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._process, self._file_system, self._root = 0, None, ""
        self._opened()

    def __getstate__(self) -> dict[str, Any]:
        """For a process of its own, which connects itself."""
        return {"address": self.address, "_process": 0, "_file_system": None, "_root": ""}

    def _opened(self) -> Any:
        """The file system: one for each process, as connections and their threads do not outlive a fork."""
        if self._process != os.getpid():
            self._file_system, self._root = _open_file_system(self.address)
            self._process = os.getpid()
        return self._file_system

    def path(self, name: str) -> str:
        """What a file is called in its file system."""
        self._opened()
        return f"{self._root}/{name}" if name else self._root

    def where(self, name: str) -> str:
        """What people call a file."""
        return f"{self.address}/{name}" if name else self.address

    def do(self, what: str, name: str, action: Callable[[Any, str], T]) -> T:
        """Do something with a file, again where the network failed.

        Args:
            what: it is, for people: ``"reading"``.
            name: of the file.
            action: is given fsspec's file system and the file's path in it.

        Raises:
            OSError: it failed for good.
        """
        fs, path = self._opened(), self.path(name)
        return retry_io(lambda: _as_os_error(lambda: action(fs, path)), f"{what} {self.where(name)}", NETWORK_PAUSES)


def as_url(option: str, address: str | Path) -> str | None:
    """The URL that an address is, or ``None`` for a path.

    Args:
        option: what has it, for the error.
        address: ``s3://bucket/name``, ``/a/folder``; a URL may have become a path on its way, which costs it a slash.

    Raises:
        UserError: it holds a user or a password, which would be written into config.yaml and logs; or it is a chain of
            file systems, or ``file://``.
    """
    text = str(address)
    found = _ADDRESS.match(text)
    if re.match(r"[\w+.-]+::", text) or (found is not None and found[1].lower() in _LOCAL):
        raise UserError(f"{option}: {text[:80]!r} is neither a path nor the plain URL of a folder.")
    if found is None:
        return None
    url = f"{found[1].lower()}://{text[found.end() :]}"
    if urlsplit(url).username is not None:
        raise UserError(
            f"{option} has a user or password in it: give them as the file system of {found[1]}:// reads them, e.g. by "
            "environment variables, not in the address."
        )
    return url


def modified(found: dict[str, Any]) -> float | None:
    """Seconds since the epoch of a file's last change, by whatever name a file system has for it."""
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        told = found.get(name)
        if isinstance(told, str):
            with contextlib.suppress(ValueError):
                told = datetime.datetime.fromisoformat(told)
        if isinstance(told, datetime.datetime):
            return told.timestamp()
        if isinstance(told, int | float):
            return float(told)
    return None


def _open_file_system(address: str) -> tuple[Any, str]:
    import fsspec

    try:
        # Listings change while others write; an instance that another process opened is of no use here.
        fs, root = fsspec.url_to_fs(address, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise UserError(
            f"cannot open {address}: {_words(error)} (for s3://, pip install 'vidlit[s3]'; for gs://, pip install "
            "'vidlit[gs]')."
        ) from error
    except ValueError as error:
        raise UserError(f"cannot open {address}: {_words(error)}.") from error
    return fs, str(root).rstrip("/")


def _as_os_error(action: Callable[[], T]) -> T:
    """Do something on a network; whatever a client library raises is an :exc:`OSError`.

    Raises:
        OSError: with ``ETIMEDOUT`` where another try may help.
    """
    try:
        return action()
    except (OSError, UserError, *_BUGS) as error:
        if type(error) is OSError and error.errno is None:
            raise OSError(errno.EIO, _words(error)) from error
        raise
    except Exception as error:
        if "credential" in f"{type(error).__name__} {error}".lower():
            raise PermissionError(errno.EACCES, f"{_words(error)}: set them as this file system wants it") from error
        raise OSError(errno.ETIMEDOUT, _words(error)) from error


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
