"""How clips and captions are encoded, and what a call of :func:`vidlit.latents.encode.missing.encode` did."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from vidlit.errors import UserError
from vidlit.video.buckets import Bucket
from vidlit.video.frames import BLACK, Color

SHOWN = 3
"""Names, or reasons, in a message of as many as there may be."""
_MOST_CLIPS = 8  # one worker decodes a batch: of larger ones a small folder would not give every worker one
_MOST_FRAME_BYTES = 2**26  # what a clip of 65x480x704 has: workers hold no more of small clips than of such


@dataclass(frozen=True)
class Encoding:
    """How clips and captions are encoded and stored.

    Args:
        dtype: dtype in which latents and prompts are stored.
        posterior: latents to train on, of the VAE's posterior: its ``mode``, or a ``sample``, drawn anew each time a
            clip is used, for which the store also holds the standard deviation. Everything else uses the mode.
        tiled: whether the VAE encodes clips that are larger than its tiles piece by piece, which takes less memory.
            Where pieces meet, latents differ a little: clips are encoded again when it changes.
        background: red, green, blue (0-255) behind transparent pixels.
        batch_size: number of clips of one bucket that go through the VAE at once. ``auto`` measures on a GPU how many
            have room in its memory, up to 8, and takes one by one on a CPU, where several change the last bits and are
            faster for tiny clips alone. Where memory runs out, half as many are tried.
        num_workers: number of processes per rank that decode videos; ``None`` shares this machine's cores among its
            ranks.
        shard_bytes: size at which a shard is written.
        shard_seconds: longest time before a shard is written: a killed run loses twice as much work at most.

    Raises:
        UserError: an option is out of range.
    """

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    posterior: Literal["mode", "sample"] = "mode"
    tiled: bool = False
    background: Color = BLACK
    batch_size: int | Literal["auto"] = "auto"
    num_workers: int | None = None
    shard_bytes: int = 2**26
    shard_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not all(0 <= level <= 255 for level in self.background):
            raise UserError(f"data.encoding.background is {list(self.background)}: its levels go from 0 to 255.")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise UserError(f"data.encoding.batch_size is {self.batch_size}: it must be at least 1, or auto.")
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(
                f"data.encoding.num_workers is {self.num_workers}: it must be 0 or more, or null for one a core."
            )

    @property
    def with_std(self) -> bool:
        """Is the posterior's standard deviation stored beside the mode?"""
        return self.posterior == "sample"

    def clips_of_batch(self, bucket: Bucket, *, on_gpu: bool) -> int:
        """Clips that are decoded and handed on together; by numbers that are the same for every engine and machine.

        Args:
            bucket: of the clips.
            on_gpu: is that where they are encoded?
        """
        if self.batch_size != "auto":
            return self.batch_size
        if not on_gpu:
            return 1
        clip_bytes = 3 * bucket.num_frames * bucket.height * bucket.width
        return max(1, min(_MOST_CLIPS, _MOST_FRAME_BYTES // clip_bytes))


class QuarantinedClip(NamedTuple):
    """A clip that could not be encoded."""

    clip_id: str
    video: str
    reason: str
    transient: bool = False
    """For a reason of time, memory or the system: the next run tries it again."""

    @property
    def words(self) -> str:
        """The reason, and whether it stands."""
        return f"{self.reason} (the next run tries it again)" if self.transient else self.reason


@dataclass(frozen=True)
class CutCaptions:
    """Captions that the text encoder does not read to their ends."""

    cut: list[tuple[str, int]] = field(default_factory=list)
    """The first clip that has it, and tokens that are not read."""
    num_captions: int = 0
    """Distinct captions in all."""
    alike: list[list[str]] = field(default_factory=list)
    """Clips whose captions are the same once they are cut."""

    def __str__(self) -> str:
        if not self.cut:
            return ""
        longest = [f"{name} ({number} tokens too many)" for name, number in self.cut]
        lines = [
            f"{len(self.cut)} of {self.num_captions} captions are longer than the text encoder reads, and cut off: "
            + first_three(longest)
        ]
        if self.alike:
            lines.append(f"  the same once cut: {first_three([first_three(names, ' = ') for names in self.alike])}")
        return "\n".join(lines)


@dataclass(frozen=True)
class EncodeReport:
    """What a call of :func:`encode` did."""

    encoded: int = 0
    """Clips encoded now."""
    captions: int = 0
    """Distinct captions encoded now."""
    stored: int = 0
    """Clips that were there already."""
    damaged: int = 0
    """Stored tensors that were damaged or gone, and are forgotten."""
    quarantined: list[QuarantinedClip] = field(default_factory=list)
    """Clips without latents, now or since an earlier run."""
    cut: CutCaptions = CutCaptions()
    """Captions that are not read to their ends."""
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.encoded} clips and {self.captions} captions encoded in {self.seconds:.0f} s, "
            f"{self.stored} clips were stored before, {len(self.quarantined)} quarantined"
        ]
        if self.damaged:
            lines.append(
                f"{self.damaged} stored tensors were damaged or gone; of these, what is needed is encoded again"
            )
        lines += [f"  {clip.clip_id}: {clip.words}" for clip in self.quarantined[:SHOWN]]
        if len(self.quarantined) > SHOWN:
            lines.append(f"  ... {len(self.quarantined) - SHOWN} more (`vidlit plan` lists all)")
        return "\n".join([*lines, *([str(self.cut)] if self.cut.cut else [])])


def first_three(texts: Sequence[str], separator: str = ", ") -> str:
    """Some of many, for a message that must not grow with the data: ``"a, b, c and 4 more"``."""
    more = len(texts) - SHOWN
    return separator.join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def num_cores() -> int:
    """Cores that this process may use, which in a container, where the system tells, are not those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
