"""Clips to a store of latents and back to batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.latents.encoding import Encoding as Encoding
    from vidlit.latents.store import LatentStore as LatentStore

__getattr__, __dir__, __all__ = attach(__name__, __file__)
