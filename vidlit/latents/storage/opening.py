"""From the address of a store to what opens it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from vidlit.errors import UserError
from vidlit.latents.storage.interface import Storage
from vidlit.latents.storage.local_folder import LocalFolder
from vidlit.latents.storage.object_storage import ObjectStorage

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):[/\\]{1,2}")
"""How a URL begins, also one that was taken for a path, which has one slash of the two. One letter is a drive."""


@dataclass(frozen=True)
class StoreCache:
    """Local copies of what is read from a bucket; nothing where the store is a local folder.

    Args:
        folder: where; ``None`` for the user's own folder for caches.
        size_gb: size that all copies may have, in GB; 0 for none. What was not used for longest goes first.

    Raises:
        UserError: the size is negative.
    """

    folder: Path | None = None
    size_gb: float = 50.0

    def __post_init__(self) -> None:
        if self.size_gb < 0:
            raise UserError(f"data.cache.size_gb is {self.size_gb:g}: it must be at least 0.")

    @property
    def path(self) -> Path:
        """Of the folder."""
        return self.folder or platformdirs.user_cache_path("vidlit")


def open_storage(address: str | Path, cache: StoreCache) -> Storage:
    """A local folder, or object storage for a URL.

    Raises:
        UserError: fsspec does not know the URL, or it holds a password.
    """
    url = as_url("data.store", address)
    if url is None:
        return LocalFolder(Path(address))
    return ObjectStorage(url, cache.path, int(cache.size_gb * 1e9))


def as_url(option: str, address: str | Path) -> str | None:
    """The URL that an address is, or ``None`` for a path.

    Args:
        option: what has it, for the error.
        address: ``s3://bucket/name``, ``/a/folder``; a URL may have become a path on its way, which costs it a slash.

    Raises:
        UserError: it holds a user or a password, which would be written into config.yaml and logs.
    """
    found = _ADDRESS.match(str(address))
    if found is None:
        return None
    url = f"{found[1].lower()}://{str(address)[found.end() :]}"
    if urlsplit(url).username is not None:
        raise UserError(
            f"{option} has a user or password in it: give them as the file system of {found[1]}:// reads them, e.g. by "
            "environment variables, not in the address."
        )
    return url
