"""Clips to batches of frames in the workers of a loader; what cannot be read comes with its reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vidlit.errors import UserError
from vidlit.latents.batch_memory import batch_memory
from vidlit.video.frames import ClipRequest, Color

if TYPE_CHECKING:
    from vidlit.video.sources import Clip


class ClipReader(Protocol):
    """What reads clips in a worker: :class:`vidlit.video.isolation.IsolatedReader`, or a stand-in."""

    def read_clip(self, request: ClipRequest) -> NDArray[np.uint8]:
        """Frames (F, H, W, 3) uint8."""


class DecodedClips(NamedTuple):
    """A batch of decoded clips of one bucket; clips by row, because Lightning walks through batches."""

    frames: Tensor
    """(B, F, H, W, 3) uint8, the clips that could be read"""
    rows: list[int]
    failed: dict[int, tuple[str, bool]]
    """Row to the reason, and whether it may be gone at the next try: it is one of time, memory or the system."""


class ClipBatches(Dataset[DecodedClips]):
    """Whole batches as items, because Lightning rebuilds the loaders of predict and fails on a batch sampler.

    Args:
        clips: all clips.
        batches: rows of clips of one bucket.
        open_reader: called once in each worker.
        background: red, green, blue (0-255) behind transparent pixels.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        batches: list[list[int]],
        open_reader: Callable[[], ClipReader],
        background: Color,
    ) -> None:
        self.clips, self.batches = clips, batches
        self.open_reader, self.background = open_reader, background
        self._reader: ClipReader | None = None  # opened in the worker

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> DecodedClips:
        if self._reader is None:
            self._reader = self.open_reader()
        clips = [self.clips[row] for row in self.batches[index]]
        num_frames, height, width = clips[0].bucket
        frames = batch_memory((len(clips), num_frames, height, width, 3), torch.uint8)
        rows: list[int] = []
        failed: dict[int, tuple[str, bool]] = {}
        for row, clip in zip(self.batches[index], clips, strict=True):
            try:
                pixels = self._reader.read_clip(clip.request(self.background))
            except (UserError, OSError, MemoryError) as error:
                transient = getattr(error, "transient", not isinstance(error, UserError))
                failed[row] = " ".join(str(error).split()), transient
            else:
                frames[len(rows)] = torch.from_numpy(pixels)
                rows.append(row)
        return DecodedClips(frames[: len(rows)], rows, failed)
