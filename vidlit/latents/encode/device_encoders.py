"""Encoders on a device: as many clips of one bucket at once as it has memory for, by measure, and by halves at need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidlit.errors import is_out_of_memory
from vidlit.latents.encoding import Encoding
from vidlit.video.buckets import Bucket

if TYPE_CHECKING:
    from vidlit.latents.encode.work import Encoders

_SHARE = 0.5
"""Of a GPU's memory that what a batch needs may take: the weights of both encoders lie beside it. It is a share of all
memory and not of what is free, so that every process on such a GPU chooses alike, whatever it did before."""


class DeviceEncoders:
    """Encoders, and how many clips of each bucket their device takes at once.

    Args:
        encoders: on the device.
        device: where they are.
        encoding: whose ``batch_size`` is the most that is tried.
    """

    def __init__(self, encoders: Encoders, device: torch.device, encoding: Encoding) -> None:
        self.encoders, self.device, self._encoding = encoders, device, encoding
        self._most: dict[Bucket, int] = {}

    def encode_clips(self, frames: Tensor, sound: Tensor | None) -> Iterator[dict[str, Tensor] | None]:
        """Of each clip the tensors that its encoders give; ``None`` for one that does not fit into memory alone.

        Args:
            frames: (B, F, H, W, 3) uint8.
            sound: (B, 2, n) float32, or ``None``.
        """
        bucket = Bucket(*frames.shape[1:4])
        if bucket not in self._most:
            self._most[bucket] = self._measured(bucket, frames, sound)
        first = 0
        while first < len(frames):
            part = slice(first, min(first + self._most[bucket], len(frames)))
            number = part.stop - part.start
            encoded = self._tried(frames[part], sound[part] if sound is not None else None)
            if encoded is None and number > 1:
                self._most[bucket] = number // 2
                continue
            for place in range(number):
                yield {name: tensor[place] for name, tensor in encoded.items()} if encoded is not None else None
            first += number

    def _measured(self, bucket: Bucket, frames: Tensor, sound: Tensor | None) -> int:
        """The most clips to try: as asked for, or a power of two, by the peak of a black and silent one."""
        on_gpu = self.device.type == "cuda"
        most = self._encoding.clips_of_batch(bucket, on_gpu=on_gpu)
        if self._encoding.batch_size != "auto" or most == 1:
            return most
        black, silent = torch.zeros_like(frames[:1]), torch.zeros_like(sound[:1]) if sound is not None else None
        if not self._most:
            self._tried(black, silent)  # the first one loads the autoencoder, which is to stay
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        if self._tried(black, silent) is None:
            return 1
        needed = torch.cuda.max_memory_allocated(self.device) - before
        room = _SHARE * torch.cuda.get_device_properties(self.device).total_memory
        fitting = max(1, min(most, int(room // max(1, needed))))
        return 1 << (fitting.bit_length() - 1)  # not every other byte makes another number

    def _tried(self, frames: Tensor, sound: Tensor | None) -> dict[str, Tensor] | None:
        """What the encoders give; ``None`` where memory ran out."""
        try:
            return self.encoders.encode_video(frames, sound)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only here is the error gone, and with it what its frames held.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None
