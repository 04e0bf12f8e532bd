"""Clips to batches of frames and sound in the workers of a loader; what cannot be read comes with its reason."""

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


BLACKEST = 16
"""Level of 255 up to which a mask is black: what lossy codecs make of it."""


class ClipReader(Protocol):
    """What reads clips in a worker: :class:`vidlit.video.isolation.IsolatedReader`, or a stand-in."""

    def read_clip(self, request: ClipRequest) -> NDArray[np.uint8]:
        """Frames (F, H, W, 3) uint8."""

    def read_sound(self, request: ClipRequest, rate: int) -> NDArray[np.float32]:
        """What is heard with them (2, n), at so many samples a second."""


class DecodedClips(NamedTuple):
    """A batch of decoded clips of one bucket; clips by row, because Lightning walks through batches."""

    frames: Tensor
    """(B, F, H, W, 3) uint8, the clips that could be read"""
    rows: list[int]
    masks: dict[int, Tensor]
    """(F, H, W) uint8, by row, of those that have one; F is 1 where it is the same for all frames"""
    failed: dict[int, tuple[str, bool]]
    """Row to the reason, and whether it may be gone at the next try: it is one of time, memory or the system."""
    sound: Tensor | None = None
    """(B, 2, n) float32, zero where a clip is silent; ``None`` where nobody wants it"""


class Decoding(NamedTuple):
    """How clips are decoded."""

    open_reader: Callable[[], ClipReader]
    """Called once in each worker."""
    background: Color
    """Red, green, blue (0-255) behind transparent pixels."""
    sample_rate: int | None = None
    """Samples a second of their sound; ``None`` to leave it alone."""


class ClipBatches(Dataset[DecodedClips]):
    """Whole batches as items, because Lightning rebuilds the loaders of predict and fails on a batch sampler.

    Args:
        clips: all clips.
        batches: rows of clips of one bucket.
        decoding: how.
    """

    def __init__(self, clips: Sequence[Clip], batches: Sequence[Sequence[int]], decoding: Decoding) -> None:
        self.clips, self.batches, self.decoder = clips, batches, ClipDecoder(decoding)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> DecodedClips:
        rows = self.batches[index]
        return self.decoder.decode(rows, [self.clips[row] for row in rows])


class ClipDecoder:
    """Decodes clips in a worker, with readers of its own.

    Args:
        decoding: how.
    """

    def __init__(self, decoding: Decoding) -> None:
        self.open_reader, self.background, self.sample_rate = decoding
        self._reader: ClipReader | None = None  # opened in the worker
        self._mask_reader: ClipReader | None = None  # each keeps its place in a file

    def decode(self, batch: Sequence[int], clips: Sequence[Clip]) -> DecodedClips:
        """Clips of one bucket, and their rows."""
        if self._reader is None:
            self._reader = self.open_reader()
        num_frames, height, width = clips[0].bucket
        frames = batch_memory((len(clips), num_frames, height, width, 3), torch.uint8)
        sounds: list[Tensor] = []
        rows: list[int] = []
        masks: dict[int, Tensor] = {}
        failed: dict[int, tuple[str, bool]] = {}
        for row, clip in zip(batch, clips, strict=True):
            try:
                request = clip.request(self.background)
                pixels = self._reader.read_clip(request)
                mask = self._read_mask(clip)
                sound = self._read_sound(request)
            except (UserError, OSError, MemoryError) as error:
                transient = getattr(error, "transient", not isinstance(error, UserError))
                failed[row] = " ".join(str(error).split()), transient
            else:
                frames[len(rows)] = torch.from_numpy(pixels)
                rows.append(row)
                masks |= {} if mask is None else {row: mask}
                sounds += [] if sound is None else [sound]
        return DecodedClips(frames[: len(rows)], rows, masks, failed, torch.stack(sounds) if sounds else None)

    def _read_sound(self, request: ClipRequest) -> Tensor | None:
        if self.sample_rate is None:
            return None
        assert self._reader is not None
        return torch.from_numpy(self._reader.read_sound(request, self.sample_rate))

    def _read_mask(self, clip: Clip) -> Tensor | None:
        request, mask = clip.mask_request(), clip.source.mask
        if request is None or mask is None:
            return None
        self._mask_reader = self._mask_reader or self.open_reader()
        try:
            pixels = self._mask_reader.read_clip(request)
        except UserError as error:
            error.args = (f"its mask {mask.name} {error}",)
            raise
        if pixels.max(initial=0) <= BLACKEST:
            raise UserError(f"its mask {mask.name} is black all through this clip: nothing would be learned")
        return torch.from_numpy(pixels[..., 1].copy())  # green, as grey as the others
