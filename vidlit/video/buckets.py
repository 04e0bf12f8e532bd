"""Buckets: the few (num_frames, height, width) that clips are brought to, so that a batch has one resolution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from vidlit.errors import UserError

ASPECT_RATIOS = (16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)
"""Width over height of the buckets that are derived when none are listed."""


class Bucket(NamedTuple):
    """One resolution: frames and pixels of a clip before it is encoded. Written as ``17x48x80``."""

    num_frames: int
    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """Read ``num_frames x height x width``.

        Raises:
            UserError: the text is not three positive whole numbers joined by ``x``.
        """
        parts = text.lower().replace(" ", "").split("x")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise UserError(f"bucket {text!r} is not of the form FRAMESxHEIGHTxWIDTH, such as 17x48x80")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"

    def tokens(self, temporal: int, spatial: int) -> int:
        """Number of tokens the transformer sees for one clip.

        Args:
            temporal: frames of video per latent frame after the first one.
            spatial: pixels along one side of a token (compression of the VAE times the patch size).
        """
        return ((self.num_frames - 1) // temporal + 1) * (self.height // spatial) * (self.width // spatial)

    def nearest_valid(self, temporal: int, spatial: int) -> Bucket:
        """The closest bucket that the compression factors allow; itself if it is valid."""
        return Bucket(
            round((self.num_frames - 1) / temporal) * temporal + 1,
            max(1, round(self.height / spatial)) * spatial,
            max(1, round(self.width / spatial)) * spatial,
        )

    def check(self, temporal: int, spatial: int) -> None:
        """Refuse a bucket that the model cannot take.

        Args:
            temporal: frames of video per latent frame after the first one.
            spatial: pixels along one side of a token.

        Raises:
            UserError: names the nearest bucket that is valid.
        """
        nearest = self.nearest_valid(temporal, spatial)
        if nearest != self:
            raise UserError(
                f"bucket {self} does not fit the model: frames must be {temporal}k + 1, height and width "
                f"multiples of {spatial}; the nearest that fits is {nearest}"
            )


def nearest_bucket(
    num_frames: int, height: int, width: int, buckets: Iterable[Bucket], upscale: bool = False
) -> Bucket | None:
    """The bucket a video loses least in: closest aspect ratio, then most frames, then largest area.

    A moving picture is not turned into a still while a bucket with more than one frame fits it.

    Args:
        num_frames: frames the video has at the wanted frame rate.
        height: displayed height in pixels.
        width: displayed width in pixels.
        buckets: those to choose from.
        upscale: whether the picture may be enlarged. Time is never stretched.

    Returns:
        ``None`` if every bucket would need more frames, or more pixels, than there are.
    """
    fitting = [
        bucket
        for bucket in buckets
        if bucket.num_frames <= num_frames and (upscale or (bucket.height <= height and bucket.width <= width))
    ]

    def loss(bucket: Bucket) -> tuple[bool, float, int, int, Bucket]:
        distortion = abs(math.log(bucket.width / bucket.height) - math.log(width / height))
        # Rounded, so that 48x80 and 96x160 tie and the larger one wins.
        return (bucket.num_frames == 1, round(distortion, 6), -bucket.num_frames, -bucket.height * bucket.width, bucket)

    return min(fitting, key=loss, default=None)


class BucketPolicy(ABC):
    """Chooses the resolutions that clips are brought to; named by its class in ``data.buckets``."""

    @abstractmethod
    def buckets(self, temporal: int, spatial: int) -> list[Bucket]:
        """The resolutions for a model.

        Args:
            temporal: frames of video per latent frame after the first one; a bucket has ``temporal * k + 1`` frames.
            spatial: pixels along one side of a token; heights and widths are multiples of it.

        Raises:
            UserError: there are none that fit.
        """


@dataclass(frozen=True)
class BucketBudget(BucketPolicy):
    """Resolutions as large as a budget allows, one for each length and aspect ratio.

    Args:
        num_frames: lengths of clips, in frames.
        max_tokens: largest number of latent positions of one clip; longer buckets get smaller frames.
        max_pixels: largest number of pixels of one frame.
        aspect_ratios: aspect ratios, width over height.
    """

    num_frames: list[int]
    max_tokens: int | None = None
    max_pixels: int | None = None
    aspect_ratios: list[float] = field(default_factory=lambda: list(ASPECT_RATIOS))

    def buckets(self, temporal: int, spatial: int) -> list[Bucket]:
        """See :meth:`BucketPolicy.buckets`; sorted, without doubles.

        Raises:
            UserError: no budget is given, or one that not even a single token fits.
        """
        if self.max_tokens is None and self.max_pixels is None:
            raise UserError("buckets are derived from a budget: give max_tokens, max_pixels or both")
        derived = set()
        for frames in self.num_frames:
            Bucket(frames, spatial, spatial).check(temporal, spatial)
            budgets = []
            if self.max_tokens is not None:
                budgets.append(self.max_tokens // Bucket(frames, spatial, spatial).tokens(temporal, spatial))
            if self.max_pixels is not None:
                budgets.append(self.max_pixels // spatial**2)
            per_frame = min(budgets)  # tokens of one latent frame
            if per_frame < 1:
                raise UserError(
                    f"the budget (max_tokens={self.max_tokens}, max_pixels={self.max_pixels}) leaves no token "
                    f"of {spatial}x{spatial} pixels for clips of {frames} frames: raise it or shorten the clips"
                )
            for ratio in self.aspect_ratios:
                rows, columns = _largest_grid(per_frame, ratio)
                derived.add(Bucket(frames, rows * spatial, columns * spatial))
        return sorted(derived)


def _largest_grid(budget: int, ratio: float) -> tuple[int, int]:
    """Rows and columns of tokens, at most ``budget`` of them, near an aspect ratio.

    Area and shape pull apart on a coarse grid: the grid with the least loss of both, in logarithms, is taken.
    """
    ideal = math.sqrt(budget / ratio)
    candidates = {max(1, min(budget, rows)) for rows in (math.floor(ideal), math.ceil(ideal))}
    grids = []
    for rows in candidates:
        for columns in {max(1, min(round(rows * ratio), budget // rows)), budget // rows}:
            loss = 2 * abs(math.log(columns / rows / ratio)) + math.log(budget / (rows * columns))
            grids.append((round(loss, 9), rows, columns))
    _, rows, columns = min(grids)
    return rows, columns
