"""The same video at another size or bit rate, or a part of it, found by perceptual hashes, tied into one group.

Without it a near-copy of a training video can sit in the validation split and hide overfitting.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidlit.video.frames import ClipRequest, VideoError, VideoInfo, read_clip, read_key_frames
from vidlit.video.repeats.excerpts import DENSE_RATE, DENSE_SECONDS, find_excerpts
from vidlit.video.repeats.near_hashes import near_pairs, near_pairs_with

NUM_FRAMES = 4
"""Frames hashed of a video, evenly spread over it."""
MAX_DISTANCE = 8.0
"""Bits of 64 that near-duplicates differ by, on average over frames. Unrelated pictures differ by about 32."""
MAX_IMAGE_DISTANCE = 4.0
"""The same for an image, which has one frame only to be sure by."""
_MIN_CONTRAST = 6.0  # standard deviation of grey levels below which a hash sees nothing but noise
_MIN_FRAMES = 2  # informative ones that two videos must have in common
_MOST_ALIKE = 20  # videos that look alike of which excerpts are looked for
_MOST_KEY_FRAMES = 600  # of one video: a few seconds of decoding


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two files that show the same, and the group both now belong to. Of many that do, not every pair is named."""

    first: str
    second: str
    distance: float
    """Mean Hamming distance of 64-bit hashes; 0 for identical files."""
    group: str


class Fingerprint(NamedTuple):
    """Perceptual hashes of some frames: 64 bits in hexadecimal, ``None`` where they would tell nothing."""

    spread: tuple[str | None, ...]
    """:data:`NUM_FRAMES` evenly spread over a video, one of an image; ``None`` for a flat, dark or damaged frame"""
    timeline: tuple[tuple[float, str | None], ...]
    """See :mod:`vidlit.video.repeats.excerpts`; empty for an image, and for a short video that is damaged"""

    def tells_something(self) -> bool:
        """Whether enough frames have a hash for two videos with the same ones to show the same."""
        spread, timeline = (
            sum(h is not None for h in hashes) for hashes in (self.spread, dict(self.timeline).values())
        )
        return spread >= min(_MIN_FRAMES, len(self.spread)) or timeline >= _MIN_FRAMES


def fingerprint(path: Path, info: VideoInfo) -> Fingerprint:
    """Perceptual hashes of a file.

    Args:
        path: video or image.
        info: from :func:`vidlit.video.frames.probe`.

    Raises:
        VideoError: not even one frame can be decoded.
    """
    size = (64, int(np.clip(round(64 * info.width / info.height), 16, 256)))
    if info.kind == "image":
        return Fingerprint((_hash(read_clip(ClipRequest(path, 0.0, 1, 1.0, *size))[0]),), ())
    if info.duration > DENSE_SECONDS:
        return Fingerprint(_sought(path, info, size), _timeline(path, info, size))
    # An odd number of frames for each quarter: the one in its middle is one of the spread.
    quarter = 2 * round((info.duration * DENSE_RATE / NUM_FRAMES - 1) / 2) + 1 if info.duration > 1 else 1
    step = info.duration / (NUM_FRAMES * quarter)
    try:
        frames = read_clip(ClipRequest(path, step / 2, NUM_FRAMES * quarter, 1 / step, *size))
    except VideoError:  # damaged somewhere: read the frames that can be read, one by one
        return Fingerprint(_sought(path, info, size), ())
    hashes = [_hash(frame) for frame in frames]
    times = [round((number + 0.5) * step, 3) for number in range(len(hashes))]
    return Fingerprint(tuple(hashes[quarter // 2 :: quarter]), tuple(zip(times, hashes, strict=True)))


def _sought(path: Path, info: VideoInfo, size: tuple[int, int]) -> tuple[str | None, ...]:
    hashes: list[str | None] = []
    last_error = None
    for index in range(NUM_FRAMES):
        try:
            time = (index + 0.5) * info.duration / NUM_FRAMES
            hashes.append(_hash(read_clip(ClipRequest(path, time, 1, info.fps or 24.0, *size))[0]))
        except VideoError as error:
            hashes.append(None)
            last_error = error
    if last_error is not None and not any(hashes):
        raise last_error
    return tuple(hashes)


def _timeline(path: Path, info: VideoInfo, size: tuple[int, int]) -> tuple[tuple[float, str | None], ...]:
    """The beginning of a long video frame by frame, the rest at key frames."""
    try:
        opening = read_clip(ClipRequest(path, 0.0, int(DENSE_SECONDS * DENSE_RATE), DENSE_RATE, *size))
        rest = list(read_key_frames(path, DENSE_SECONDS, info.duration / _MOST_KEY_FRAMES, *size))
    except VideoError:
        return ()
    return (
        *((number / DENSE_RATE, _hash(frame)) for number, frame in enumerate(opening)),
        *((round(time, 3), _hash(frame)) for time, frame in rest),
    )


def _hash(frame: NDArray[np.uint8]) -> str | None:
    grey = Image.fromarray(frame).convert("L")
    return str(imagehash.phash(grey)) if float(np.std(np.asarray(grey))) >= _MIN_CONTRAST else None


def find_near_duplicates(
    fingerprints: Mapping[str, Fingerprint],
    kept: Iterable[tuple[str, str, float]] = (),
    new: Set[str] | None = None,
) -> list[tuple[str, str, float]]:
    """Videos whose frames look the same: at the same times of the video, or those of an excerpt.

    Args:
        fingerprints: those of :func:`fingerprint`, by video.
        kept: what an earlier search found among those that are not new.
        new: videos that were not among them; ``None`` for all.

    Returns:
        (first, second, mean distance in bits), sorted: enough pairs to tie each video to all that look like it, fewer
        than there are videos.
    """
    pairs: dict[tuple[str, str], float] = {}
    tied: Ties = Ties()

    def tie(one: str, other: str, distance: float) -> None:
        first, second = sorted((one, other))
        if tied.tie(first, second):
            pairs[first, second] = distance

    for pair in kept:
        tie(*pair)
    first_with: dict[Fingerprint, str] = {}
    for video in sorted(fingerprints):
        first = first_with.setdefault(fingerprints[video], video)
        if first != video and fingerprints[video].tells_something():
            tie(first, video, 0.0)
    videos = sorted(first_with.values())
    for length, least, limit in ((NUM_FRAMES, _MIN_FRAMES, MAX_DISTANCE), (1, 1, MAX_IMAGE_DISTANCE)):
        own = [video for video in videos if len(fingerprints[video].spread) == length]
        spreads = [fingerprints[video].spread for video in own]
        known = np.array([[h is not None for h in spread] for spread in spreads], bool).reshape(-1, length)
        bits = np.array([[int(h or "0", 16) for h in spread] for spread in spreads], np.uint64).reshape(-1, length)
        is_new = np.array([new is None or video in new for video in own], bool)
        for (i, j), distance in sorted(_alike(bits, known, is_new, least, limit).items()):
            tie(own[i], own[j], distance)
    # Of many that look alike, a few show what the others would: each pair of their frames would else be a candidate.
    members: dict[str, list[str]] = defaultdict(list)
    for video in videos:
        members[tied.root(video)].append(video)
    shown = [video for alike in members.values() for video in alike[:_MOST_ALIKE]]
    for found in find_excerpts({video: fingerprints[video].timeline for video in shown}, new):
        tie(*found)
    return sorted((*pair, distance) for pair, distance in pairs.items())


def _alike(
    bits: NDArray[np.uint64], known: NDArray[np.bool_], is_new: NDArray[np.bool_], least: int, limit: float
) -> dict[tuple[int, int], float]:
    """Pairs of rows whose hashes differ by no more than a limit, on average over the frames that both have.

    One of these frames differs by no more than that: only pairs that are near in a frame are looked at.

    Args:
        bits: (N, frames), their hashes.
        known: (N, frames), where there is one.
        is_new: (N,); of each pair one is new at least.
        least: frames that both must have.
        limit: bits, at most :data:`vidlit.video.repeats.near_hashes.MOST_BITS`.
    """
    found: dict[tuple[int, int], float] = {}
    for frame in range(bits.shape[1]):
        rows = np.flatnonzero(known[:, frame])
        hashes, new = bits[rows, frame], is_new[rows]
        for block in near_pairs(hashes) if new.all() else near_pairs_with(hashes, new):
            one, other = rows[block].T
            both = known[one] & known[other]
            shared = both.sum(axis=1)
            distance = (np.bitwise_count(bits[one] ^ bits[other]) * both).sum(axis=1) / np.maximum(shared, 1)
            near = (shared >= least) & (distance <= limit)
            names = zip(one[near].tolist(), other[near].tolist(), strict=True)
            found |= dict(zip(names, distance[near].tolist(), strict=True))
    return found


class Ties:
    """Which of some things are tied, directly or by others; the lowest stands for all that it is tied to."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, one: str) -> str:
        """What stands for one; itself, until it is tied."""
        parent = self._parent
        while (above := parent.get(one, one)) != one:
            parent[one] = parent.get(above, above)
            one = above
        return one

    def tie(self, first: str, second: str) -> bool:
        """Tie two; were they not?"""
        low, high = sorted((self.root(first), self.root(second)))
        if low != high:
            self._parent[high] = low
        return low != high


def tie_groups(groups: Iterable[tuple[str, str]], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Merge the groups of videos that show the same.

    Args:
        groups: (video, group), several a video if its rows disagree.
        pairs: videos that belong together.

    Returns:
        One group a video. A merged group has the smallest of its names, so the order of rows does not matter.
    """
    ties: Ties = Ties()
    group_of: dict[str, str] = {}
    for video, group in groups:
        ties.tie(group_of.setdefault(video, group), group)
    for first, second in pairs:
        ties.tie(group_of[first], group_of[second])
    return {video: ties.root(group) for video, group in group_of.items()}
