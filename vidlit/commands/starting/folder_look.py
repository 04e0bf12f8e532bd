"""A first look at a folder of clips: quick, whatever its size; and the buckets that suit what was seen."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vidlit.errors import UserError
from vidlit.latents.storage.opening import StoreCache
from vidlit.remote_files import as_url
from vidlit.video.buckets import ASPECT_RATIOS, Bucket, BucketBudget, nearest_bucket
from vidlit.video.isolation import IsolatedReader
from vidlit.video.remote_source import RemoteSource
from vidlit.video.sources import Sources, SourceVideo, read_sources

_MOST_FILES, _MOST_FETCHED = 40, 8
"""Files that are opened, here and where each is fetched from object storage first."""
_SECONDS = 10.0
"""After which no further file is opened."""
_FEW = 0.1
"""Share of the clips that a bucket may leave out, or a length or shape must have to get a bucket."""
_SAME_SHAPE = 0.1
"""Difference of two aspect ratios, in logarithms, up to which the size that the model was trained at is taken."""


@dataclass(frozen=True)
class SeenClip:
    """A row whose file was opened.

    Args:
        height: displayed, in pixels.
        width: the same.
        seconds: that the row names, or all of the file; 0 for an image.
        fps: of the file; 0 for an image.
        has_sound: whether there is a stream of it.
    """

    height: int
    width: int
    seconds: float
    fps: float
    has_sound: bool

    def num_frames(self, fps: float) -> int:
        """At another rate."""
        return max(1, math.ceil(self.seconds * fps - 1e-3))


@dataclass(frozen=True)
class FolderLook:
    """What was found.

    Args:
        sources: every row, with its caption.
        seen: some of them, spread over all, whose files were opened.
        unreadable: files that could not be read, with the reason, of those that were opened.
    """

    sources: Sources
    seen: list[SeenClip]
    unreadable: list[str]

    @property
    def recordings(self) -> int:
        """Distinct groups."""
        return len({row.group for row in self.sources.videos})

    @property
    def videos(self) -> list[SeenClip]:
        """Those seen that are no images."""
        return [clip for clip in self.seen if clip.seconds]

    def lines(self) -> list[str]:
        """In words."""
        rows, videos = self.sources.videos, self.videos
        said = [f"{len(rows):,} clips with captions in {self.recordings:,} recordings ({self.sources.layout})"]
        if videos:
            shapes = Counter(f"{clip.width}x{clip.height}" for clip in videos).most_common()
            sizes = ", ".join(shape for shape, _ in shapes[:3]) + (", ..." if len(shapes) > 3 else "")
            lengths, rates = [clip.seconds for clip in videos], [clip.fps for clip in videos]
            sound = sum(clip.has_sound for clip in videos)
            said.append(
                f"looked at {len(self.seen)}: {sizes}; {_span(rates)} frames a second; {_span(lengths)} s (median "
                f"{statistics.median(lengths):.3g}); {sound or 'none'} with sound"
            )
        if images := len(self.seen) - len(videos):
            said.append(f"{images} of those looked at are images")
        left_out = [f"{bad.video}: {bad.reason}" for bad in self.sources.quarantined] + self.unreadable
        if left_out:
            said.append(f"{len(left_out)} cannot be used, such as {left_out[0]}")
        if self.sources.unlisted:
            said.append(f"{len(self.sources.unlisted)} videos are in no row of {self.sources.layout}")
        return said


def look_at(source: str) -> FolderLook:
    """Read the rows of a folder and open some of its files, in a child process.

    Args:
        source: folder, table, or URL on object storage, as ``data.source``.

    Raises:
        UserError: it cannot be read as a folder of clips, or none of the files that were opened is a video.
    """
    url = as_url("data.source", source)
    remote = None if url is None else RemoteSource(url, StoreCache().path)
    sources = read_sources(Path(source) if remote is None else remote.refresh())
    reader: Callable[[], IsolatedReader] = IsolatedReader if remote is None else remote.open_reader
    rows = _spread(sources.videos, _MOST_FILES if remote is None else _MOST_FETCHED)
    seen, unreadable, began = [], [], time.monotonic()
    with reader() as opened:
        for row in rows:
            try:
                seen.append(_see(opened, row))
            except UserError as error:
                unreadable.append(f"{row.video}: {error}")
            if time.monotonic() - began > _SECONDS:
                break
    if not seen:
        raise UserError(f"none of {len(unreadable)} files of {source} can be read. {unreadable[0]}")
    return FolderLook(sources, seen, unreadable)


def _spread(rows: Sequence[SourceVideo], most: int) -> list[SourceVideo]:
    count = min(most, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def _see(reader: IsolatedReader, row: SourceVideo) -> SeenClip:
    info, _ = reader.inspect(row.path, fingerprint=False)
    start, end = row.start or 0.0, row.end
    if row.frame_span is not None and info.fps:
        first, last = row.frame_span
        start, end = first / info.fps, None if last is None else last / info.fps
    seconds = max(0.0, min(info.duration, math.inf if end is None else end) - start)
    if info.kind == "video" and not seconds:
        raise UserError("its span begins after the end of the video")
    return SeenClip(info.height, info.width, seconds, info.fps, bool(info.has_sound))


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def suited_buckets(
    clips: Sequence[SeenClip], shipped: Sequence[Bucket], fps: float, multiples: tuple[int, int]
) -> list[Bucket]:
    """Buckets that use most of the clips, none larger than those that the model's config lists.

    Lengths are those of the config which enough clips have, and a shorter one where many clips are shorter. For each
    shape that enough clips have there is the config's size, or one of that area and the clips' own shape, for clips as
    large; and the largest one that the others have.

    Args:
        clips: that were seen.
        shipped: of the model's config.
        fps: rate that clips are resampled to.
        multiples: of the frames of a bucket, less one, and of its height and width.

    Returns:
        Sorted; each is the nearest one of several clips.

    Raises:
        UserError: the clips are smaller or shorter than anything that the model takes.
    """
    lengths = sorted({bucket.num_frames for bucket in shipped if bucket.num_frames > 1})
    found: set[Bucket] = set()
    for kind in ([clip for clip in clips if clip.seconds], [clip for clip in clips if not clip.seconds]):
        frames = [clip.num_frames(fps) for clip in kind]
        sizes = _sizes(kind, shipped, multiples[1])
        found |= {Bucket(length, *size) for length in _lengths(frames, lengths, multiples[0]) for size in sizes}
    used = Counter(filter(None, (nearest_bucket(c.num_frames(fps), c.height, c.width, found) for c in clips)))
    if not used:
        raise UserError(
            f"the clips are smaller or shorter than any bucket of this model: {multiples[1]} pixels a side and "
            f"{multiples[0] + 1} frames at {fps:g} a second are the least."
        )
    enough = {bucket for bucket, count in used.items() if count >= _FEW / 2 * len(clips)}
    return sorted(enough or used)


def _lengths(frames: list[int], wanted: list[int], multiple: int) -> list[int]:
    if not frames:
        return []
    kept = [length for length in wanted if sum(count >= length for count in frames) >= _FEW * len(frames)]
    if max(frames) == 1:
        return [1]
    # What nine in ten have; where that is a still, which no moving picture is made, what half have, or any.
    reached = (_low(frames), int(statistics.median(frames)), max(frames))
    short = next((s for count in reached if (s := (count - 1) // multiple * multiple + 1) > 1), max(wanted))
    return sorted({*kept, *([short] if short < min(wanted) else [])})


def _sizes(clips: Sequence[SeenClip], shipped: Sequence[Bucket], multiple: int) -> list[tuple[int, int]]:
    area = max(bucket.height * bucket.width for bucket in shipped)
    shapes: dict[float, list[SeenClip]] = defaultdict(list)
    for clip in clips:
        shapes[min(ASPECT_RATIOS, key=partial(_distortion, (clip.height, clip.width)))].append(clip)
    sizes = []
    for same in shapes.values():
        ratio = statistics.median(clip.width / clip.height for clip in same)
        full = _full_size(ratio, shipped, area, multiple)
        large = [clip for clip in same if clip.height >= full[0] and clip.width >= full[1]]
        small = [clip for clip in same if clip not in large]
        sizes += [full] if len(large) >= _FEW * len(clips) else []
        # Clips go to the nearest shape first: a small size of a nearer one would take the large clips, too.
        least = _distortion(full, ratio) if full in sizes else 0.0
        sizes += [_own_size(small, area, multiple, least)] if len(small) >= _FEW * len(clips) else []
    return sizes


def _full_size(ratio: float, shipped: Sequence[Bucket], area: int, multiple: int) -> tuple[int, int]:
    """The config's size of a shape, or one of its area."""
    sizes = {(bucket.height, bucket.width) for bucket in shipped}
    near = [size for size in sizes if _distortion(size, ratio) < _SAME_SHAPE]
    if near:
        return max(near, key=math.prod)
    (bucket,) = BucketBudget([1], max_pixels=area, aspect_ratios=[ratio]).buckets(1, multiple)
    return bucket.height, bucket.width


def _own_size(clips: Sequence[SeenClip], area: int, multiple: int, least: float) -> tuple[int, int]:
    """The largest size of the clips' shape, at most an area and distorted so much, that most of them have."""
    ratio = statistics.median(clip.width / clip.height for clip in clips)
    pixels = float(min(area, _low([clip.height * clip.width for clip in clips])))
    found = []
    while pixels > multiple**2:
        (bucket,) = BucketBudget([1], max_pixels=int(pixels), aspect_ratios=[ratio]).buckets(1, multiple)
        size = bucket.height, bucket.width
        if sum(clip.height >= size[0] and clip.width >= size[1] for clip in clips) >= (1 - _FEW) * len(clips):
            found.append(size)
            if _distortion(size, ratio) >= least or math.prod(size) < math.prod(found[0]) / 2:
                break
        pixels *= 0.97
    return next((size for size in found if _distortion(size, ratio) >= least), [*found, (multiple, multiple)][0])


def _distortion(size: tuple[int, int], ratio: float) -> float:
    """Between a height and width and an aspect ratio, in logarithms."""
    return abs(math.log(ratio * size[0] / size[1]))


def _low(values: list[int]) -> int:
    """What nine in ten reach."""
    return sorted(values)[math.floor(_FEW * len(values))]
