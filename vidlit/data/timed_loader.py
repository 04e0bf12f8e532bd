"""The DataLoader, with a watch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Self

from torch.utils.data import DataLoader

from vidlit.diffusion.batch import LatentBatch
from vidlit.errors import UserError, own_words


class TimedLoader(DataLoader[LatentBatch]):
    """A DataLoader that knows how long it has kept its caller waiting."""

    seconds_waited = 0.0

    def __iter__(self) -> Any:
        """The batches, timed."""
        return _Timed(self, super().__iter__())


class _Timed:
    """Keeps no batch, unlike a generator: the memory of one that is gone is used again."""

    def __init__(self, loader: TimedLoader, batches: Iterator[LatentBatch]) -> None:
        self._loader = loader
        self._batches = batches

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LatentBatch:
        began = time.monotonic()
        try:
            return next(self._batches)
        except UserError as error:
            raise UserError(own_words(error)) from error
        finally:
            self._loader.seconds_waited += time.monotonic() - began
