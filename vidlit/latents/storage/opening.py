"""From the address of a store to what opens it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import platformdirs

from vidlit.errors import UserError
from vidlit.latents.storage.interface import Storage
from vidlit.latents.storage.local_folder import LocalFolder
from vidlit.latents.storage.object_storage import ObjectStorage
from vidlit.remote_files import as_url


@dataclass(frozen=True)
class StoreCache:
    """Local copies of what is read from object storage; nothing where store and source are local folders.

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
