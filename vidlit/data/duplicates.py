"""The same film at another size or bit rate, found by perceptual hashes of a few frames, tied into one group.

Without it a near-copy of a training video can sit in the validation split and hide overfitting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidlit.data.video import VideoError, VideoInfo, read_clip

NUM_FRAMES = 4
"""Frames hashed of a video, evenly spread over it."""
MAX_DISTANCE = 8.0
"""Bits of 64 that near-duplicates differ by, on average over frames. Unrelated pictures differ by about 32."""
MAX_IMAGE_DISTANCE = 4.0
"""The same for an image, which has one frame only to be sure by."""
_MIN_CONTRAST = 6.0  # standard deviation of grey levels below which a hash sees nothing but noise
_MIN_FRAMES = 2  # informative ones that two videos must have in common
_ONE_PASS_SECONDS = 20.0  # shorter films are decoded in one pass, longer ones sought in


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two files that show the same, and the group both now belong to."""

    first: str
    second: str
    distance: float
    """Mean Hamming distance of 64-bit hashes; 0 for identical files."""
    group: str


def fingerprint(path: Path, info: VideoInfo) -> list[str | None]:
    """Perceptual hashes of evenly spread frames.

    Args:
        path: video or image.
        info: from :func:`vidlit.data.video.probe`.

    Returns:
        64 bits in hexadecimal a frame; ``None`` for a frame too flat or dark to tell from another, or damaged.

    Raises:
        VideoError: not even one frame can be decoded.
    """
    height = 64
    width = int(np.clip(round(height * info.width / info.height), 16, 256))
    if info.kind == "image":
        return [_hash(frame) for frame in read_clip(path, 0.0, 1, 1.0, height, width)]
    step = info.duration / NUM_FRAMES
    if info.duration <= _ONE_PASS_SECONDS:
        try:
            return [_hash(frame) for frame in read_clip(path, step / 2, NUM_FRAMES, 1 / step, height, width)]
        except VideoError:  # damaged somewhere: take what can be had, one by one
            pass
    hashes: list[str | None] = []
    last_error = None
    for index in range(NUM_FRAMES):
        try:
            hashes.append(_hash(read_clip(path, (index + 0.5) * step, 1, info.fps or 24.0, height, width)[0]))
        except VideoError as error:
            hashes.append(None)
            last_error = error
    if last_error is not None and not any(hashes):
        raise last_error
    return hashes


def _hash(frame: NDArray[np.uint8]) -> str | None:
    grey = Image.fromarray(frame).convert("L")
    return str(imagehash.phash(grey)) if float(np.std(np.asarray(grey))) >= _MIN_CONTRAST else None


def find_near_duplicates(fingerprints: Mapping[str, Sequence[str | None]]) -> list[tuple[str, str, float]]:
    """Pairs of videos whose frames look the same at the same places of the film.

    Args:
        fingerprints: those of :func:`fingerprint`, by video.

    Returns:
        (first, second, mean distance in bits), sorted.
    """
    pairs = []
    for length, least, limit in ((NUM_FRAMES, _MIN_FRAMES, MAX_DISTANCE), (1, 1, MAX_IMAGE_DISTANCE)):
        videos = sorted(video for video, hashes in fingerprints.items() if len(hashes) == length)
        rows = [fingerprints[video] for video in videos]
        known = np.array([[h is not None for h in row] for row in rows], bool).reshape(-1, length)
        bits = np.array([[int(h or "0", 16) for h in row] for row in rows], np.uint64).reshape(-1, length)
        for i in range(len(videos) - 1):
            both = known[i] & known[i + 1 :]
            differing = np.bitwise_count(bits[i] ^ bits[i + 1 :]) * both
            shared = both.sum(axis=1)
            distance = differing.sum(axis=1) / np.maximum(shared, 1)
            for j in np.flatnonzero((shared >= least) & (distance <= limit)):
                pairs.append((videos[i], videos[i + 1 + int(j)], float(distance[j])))
    return sorted(pairs)


def tie_groups(groups: Iterable[tuple[str, str]], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Merge the groups of videos that show the same.

    Args:
        groups: (video, group), several a video if its rows disagree.
        pairs: videos that belong together.

    Returns:
        One group a video. A merged group has the smallest of its names, so the order of rows does not matter.
    """
    groups = list(groups)
    parent = {group: group for _, group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    def union(first: str, second: str) -> None:
        low, high = sorted((root(first), root(second)))
        parent[high] = low

    group_of: dict[str, str] = {}
    for video, group in groups:
        union(group_of.setdefault(video, group), group)
    for first, second in pairs:
        union(group_of[first], group_of[second])
    return {video: root(group) for video, group in group_of.items()}
