"""How clips and captions are encoded, and what a call of :func:`vidlit.latents.encode_missing.encode` did."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from vidlit.errors import UserError
from vidlit.video.frames import BLACK, Color


@dataclass(frozen=True)
class Encoding:
    """How clips and captions are encoded and stored.

    Args:
        dtype: dtype in which latents and prompts are stored.
        posterior: latents to train on, of the VAE's posterior: its ``mode``, or a ``sample``, drawn anew each time a
            clip is used, for which the store also holds the standard deviation. Everything else uses the mode.
        background: red, green, blue (0-255) behind transparent pixels.
        batch_size: number of clips of one bucket that go through the VAE at once.
        num_workers: number of processes per rank that decode videos; ``None`` shares this machine's cores among its
            ranks.
        shard_bytes: size at which a shard is written.
        shard_seconds: longest time before a shard is written: the most work that a killed run loses.

    Raises:
        UserError: an option is out of range.
    """

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    posterior: Literal["mode", "sample"] = "mode"
    background: Color = BLACK
    batch_size: int = 1
    num_workers: int | None = None
    shard_bytes: int = 2**26
    shard_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not all(0 <= level <= 255 for level in self.background):
            raise UserError(f"data.encoding.background is {list(self.background)}: its levels go from 0 to 255.")
        if self.batch_size < 1:
            raise UserError(f"data.encoding.batch_size is {self.batch_size}: it must be at least 1.")
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(
                f"data.encoding.num_workers is {self.num_workers}: it must be 0 or more, or null for one a core."
            )

    @property
    def with_std(self) -> bool:
        """Is the posterior's standard deviation stored beside the mode?"""
        return self.posterior == "sample"


class QuarantinedClip(NamedTuple):
    """A clip that could not be encoded."""

    clip_id: str
    video: str
    reason: str


@dataclass(frozen=True)
class EncodeReport:
    """What a call of :func:`encode` did."""

    encoded: int = 0
    """Clips encoded now."""
    captions: int = 0
    """Distinct captions encoded now."""
    stored: int = 0
    """Clips that were there already."""
    quarantined: list[QuarantinedClip] = field(default_factory=list)
    """Clips without latents, now or since an earlier run."""
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.encoded} clips and {self.captions} captions encoded in {self.seconds:.0f} s, "
            f"{self.stored} clips were stored before, {len(self.quarantined)} quarantined"
        ]
        return "\n".join(lines + [f"  {clip.clip_id}: {clip.reason}" for clip in self.quarantined])


def num_cores() -> int:
    """Cores that this process may use, which in a container, where the system tells, are not those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
