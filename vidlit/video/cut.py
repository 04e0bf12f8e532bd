"""From a folder to the list of clips, before anything is encoded: what is used, and what is not and why."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from vidlit.errors import UserError
from vidlit.video.buckets import Bucket, nearest_bucket
from vidlit.video.companions import inspect_companions
from vidlit.video.frames import VideoInfo
from vidlit.video.inspection import Inspection, Wanted, inspect_files
from vidlit.video.isolation import IsolatedReader
from vidlit.video.repeats.duplicates import NearDuplicate, tie_groups
from vidlit.video.repeats.remembered import near_duplicates
from vidlit.video.scenes import probable_cuts, require_scene_detection
from vidlit.video.sources import Clip, Rejected, SourceVideo, read_sources

ClipMode = Literal["head", "chunk", "slide", "uniform", "scenes"]
MOST_CLIPS = 100_000
"""Clips that one row may give without a limit being set: a day of film, in clips of a second."""


@dataclass(frozen=True)
class Cutting:
    """How videos are cut into clips.

    Args:
        mode: way of cutting: ``head``, the first clip of a video; ``chunk``, clips end to end; ``slide``, overlapping
            clips; ``uniform``, as many as ``chunk`` gives, spread evenly from the first to the last frame; ``scenes``,
            clips end to end within each scene, so that none crosses a cut (needs ``pip install 'vidlit[scenes]'``, and
            decodes every video once).
        max_clips_per_video: largest number of clips cut from one video; ``None`` for no limit.
        overlap: share of a clip that the next one repeats in ``slide`` mode, from 0 to below 1.
        upscale: whether to enlarge videos smaller than every bucket instead of dropping them.

    Raises:
        UserError: an option is out of range.
    """

    mode: ClipMode = "chunk"
    max_clips_per_video: int | None = None
    overlap: float = 0.5
    upscale: bool = False

    def __post_init__(self) -> None:
        if self.mode not in get_args(ClipMode):
            raise UserError(f"data.cutting.mode {self.mode!r} is none of {', '.join(get_args(ClipMode))}")
        if self.max_clips_per_video is not None and self.max_clips_per_video < 1:
            raise UserError(
                f"data.cutting.max_clips_per_video is {self.max_clips_per_video}: it must be at least 1, or null for "
                "no limit."
            )
        if not 0 <= self.overlap < 1:
            raise UserError(f"data.cutting.overlap is {self.overlap}: it must be from 0 to below 1.")


@dataclass(frozen=True, slots=True)
class Shortened:
    """A row of which not all is used: the rest is shorter than a clip, or the clip mode leaves it out."""

    video: str
    used: float
    """Seconds covered by clips."""
    total: float
    """Seconds of the video, or of the span the row names."""


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """Which clips a folder gives. Every row of it is in ``clips``, ``dropped`` or ``quarantined``."""

    folder: Path | str
    """As people call it: a path or a URL."""
    layout: str
    """The file, or the pattern, that was read."""
    fps: float
    buckets: tuple[Bucket, ...]
    clips: tuple[Clip, ...]
    """By video, then by start: a video is decoded through once, and the order is the same everywhere."""
    quarantined: tuple[Rejected, ...]
    """Rows and files that are broken, hostile or of a kind that cannot be read."""
    dropped: tuple[Rejected, ...]
    """Sound videos that fit no bucket, and rows that repeat another one."""
    shortened: tuple[Shortened, ...]
    near_duplicates: tuple[NearDuplicate, ...]
    """Pairs tied into one group."""
    unlisted: tuple[str, ...]
    """Videos in the folder that no row names."""
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of other files and folders that are left alone, by what they are."""
    remarks: tuple[str, ...] = ()
    """What else is not used as it stands in the source, a line each."""
    crossing: tuple[str, ...] = ()
    """Clips that probably cross a hard cut: of the first 20 seconds of each video, where those were hashed."""
    silent: tuple[str, ...] = ()
    """Clips of files without sound, where sound is wanted."""

    def clips_per_bucket(self) -> dict[Bucket, int]:
        """Number of clips of each bucket, in the order of the buckets; 0 for one that no clip fits."""
        counts = Counter(clip.bucket for clip in self.clips)
        return {bucket: counts[bucket] for bucket in self.buckets}


def plan_clips(
    folder: Path,
    buckets: Sequence[Bucket],
    fps: float,
    cutting: Cutting | ClipMode = Cutting(),
    *,
    trigger: str | None = None,
    first_captions: bool = False,
    tie_near_duplicates: bool = True,
    with_sound: bool = False,
    with_references: bool = False,
    cache: Path | None = None,
    reader: Callable[[], IsolatedReader] = IsolatedReader,
    on_progress: Callable[[int, int], None] | None = None,
) -> DatasetPlan:
    """Cut the videos of a folder into clips.

    File contents are read, for their checksum and the times of frames, and some frames decoded, for near-duplicates, in
    child processes, so that no file can stop the run.

    Args:
        folder: in one of the layouts of :func:`~vidlit.video.sources.read_sources`.
        buckets: resolutions clips are brought to.
        fps: frames a second of every clip; time is resampled, never stretched.
        cutting: how each row is cut; or the mode alone, with the other options as they are by default.
        trigger: put before captions that do not have it, see :func:`~vidlit.video.sources.with_trigger`.
        first_captions: leave out the further captions of rows with several.
        tie_near_duplicates: whether to find videos that show the same and tie their groups. Identical files always are.
        with_sound: whether to tell which clips have sound.
        with_references: whether every row needs a reference.
        cache: file that remembers what was read of each file, by path, size and time of change.
        reader: makes the readers that open files.
        on_progress: called with (files done, files in all).

    Returns:
        The same for the same files, whatever the order of rows or the machine.

    Raises:
        UserError: an option out of range, or a folder that cannot be read at all.
    """
    if not buckets:
        raise UserError("no buckets: give at least one, such as 17x48x80")
    if not (math.isfinite(fps) and fps > 0):
        raise UserError(f"fps must be above 0, not {fps}")
    cutting = cutting if isinstance(cutting, Cutting) else Cutting(cutting)
    sources = read_sources(folder, trigger, first_captions=first_captions, with_references=with_references)
    files = {source.video: source.path for source in sources.videos}
    wanted = Wanted(tie_near_duplicates, cutting.mode == "scenes", _frames_asked_for(sources.videos), with_sound)
    if wanted.cuts:
        require_scene_detection()
    inspected = inspect_files(files, wanted, cache, reader, on_progress)
    quarantined = list(sources.quarantined)
    results = [(source.video, inspected[source.video]) for source in sources.videos]
    quarantined += [Rejected(video, result) for video, result in results if isinstance(result, str)]  # one a row
    known = {video: result for video, result in inspected.items() if not isinstance(result, str)}
    rows, bad = inspect_companions([row for row in sources.videos if row.video in known], known, cache, reader)
    quarantined += bad
    groups, tied = _tie(rows, known, tie_near_duplicates, cache)

    clips: list[Clip] = []
    dropped: list[Rejected] = []
    shortened: list[Shortened] = []
    for source in rows:
        grouped = replace(source, group=groups[source.video])
        cut = _cut(grouped, known[source.video], buckets, fps, cutting)
        if isinstance(cut, Rejected):
            dropped.append(cut)
            continue
        clips += cut[0]
        shortened += [cut[1]] if cut[1] is not None else []
    clips, repeated = _distinct(clips)
    return DatasetPlan(
        folder=sources.folder,
        layout=sources.layout,
        fps=fps,
        buckets=tuple(sorted(set(buckets))),
        clips=tuple(clips),
        quarantined=tuple(sorted(quarantined, key=lambda bad: (bad.video, bad.reason))),
        dropped=tuple(sorted(dropped + repeated, key=lambda bad: (bad.video, bad.reason))),
        shortened=tuple(sorted(shortened, key=lambda short: (short.video, short.used, short.total))),
        near_duplicates=tuple(tied),
        unlisted=sources.unlisted,
        skipped=sources.skipped,
        remarks=(*sources.notes, *sources.on_captions(trigger, first_captions)),
        crossing=() if cutting.mode == "scenes" else tuple(_crossing(clips, known)),
        silent=tuple(clip.clip_id for clip in clips if with_sound and not known[clip.source.video].info.has_sound),
    )


def _frames_asked_for(rows: Iterable[SourceVideo]) -> dict[str, frozenset[int]]:
    """Frames by whose numbers rows give their spans."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        numbers[row.video] |= {number for number in row.frame_span or () if number is not None}
    return {video: frozenset(asked) for video, asked in numbers.items() if asked}


def _crossing(clips: Iterable[Clip], known: dict[str, Inspection]) -> list[str]:
    """Names of clips that show frames of both sides of a probable cut."""
    cuts: dict[str, list[tuple[float, float]]] = {}
    found = []
    for clip in clips:
        video, fingerprint = clip.source.video, known[clip.source.video].fingerprint
        if video not in cuts:
            cuts[video] = probable_cuts(fingerprint.timeline) if fingerprint is not None else []
        last = clip.start + (clip.bucket.num_frames - 1) / clip.fps
        if any(clip.start <= before and after <= last for before, after in cuts[video]):
            found.append(clip.clip_id)
    return found


def _tie(
    rows: Iterable[SourceVideo], known: dict[str, Inspection], tie_near: bool, cache: Path | None
) -> tuple[dict[str, str], list[NearDuplicate]]:
    """Groups after identical files, and near-duplicates if wanted, are tied, and the pairs that were."""
    distances = {
        (first, second): distance for first, second, distance in (near_duplicates(known, cache) if tie_near else [])
    }
    same: dict[str, list[str]] = defaultdict(
        list
    )  # videos of one colour have no fingerprint, but equal bytes are equal
    for video in sorted(known):
        same[known[video].content].append(video)
    distances |= {(videos[0], other): 0.0 for videos in same.values() for other in videos[1:]}
    groups = tie_groups(((row.video, row.group) for row in rows), distances)
    return groups, [NearDuplicate(*pair, distance, groups[pair[0]]) for pair, distance in sorted(distances.items())]


class _Span(NamedTuple):
    """Seconds of a video that clips are cut from, after its first frame."""

    start: float
    end: float
    sharp: bool
    """Whether the frame at its end is one of another scene, or one that a row excludes: it must never be shown."""

    def num_frames(self, info: VideoInfo, fps: float) -> int:
        """Frames at a rate: frame ``k`` is taken at ``k / fps``, which must lie before the end.

        By as much as that time may be off, or the reader goes on to a next frame that is nearer. A span without a
        sharp end has one frame at least.
        """
        frames = (self.end - self.start) * fps
        if self.sharp:
            return math.ceil(frames - 0.5 * fps / max(fps, info.fps))
        return max(math.ceil(frames - max(min(info.rounding * fps, 0.5), 1e-3)), int(frames > 0))


def _cut(
    source: SourceVideo, found: Inspection, buckets: Sequence[Bucket], fps: float, cutting: Cutting
) -> tuple[list[Clip], Shortened | None] | Rejected:
    """The clips of one row. All arithmetic is in frames at the wanted rate, so it is exact everywhere."""
    info = found.info
    if info.kind == "image":
        spans, available, seconds = [_Span(0.0, 0.0, False)], [1], 0.0
    else:
        whole = _span(source, found)
        if whole.start >= whole.end:
            return Rejected(
                source.video, f"its span starts at {whole.start:.3f} s, the video ends at {info.duration:.3f} s"
            )
        spans = _scenes(whole, found.cuts or ()) if cutting.mode == "scenes" else [whole]
        available = [span.num_frames(info, fps) for span in spans]
        seconds = whole.end - whole.start
    fitting = [nearest_bucket(frames, info.height, info.width, buckets, cutting.upscale) for frames in available]
    if not any(fitting):
        return Rejected(source.video, _why_no_bucket(info, available, buckets, fps))
    used = [
        (span, frames, bucket)
        for span, frames, bucket in zip(spans, available, fitting, strict=True)
        if bucket is not None
    ]
    limit = cutting.max_clips_per_video
    count = sum(_num_clips(frames, bucket.num_frames, cutting) for _, frames, bucket in used)
    if min(count, limit or count) > MOST_CLIPS:
        return Rejected(
            source.video,
            f"would give {min(count, limit or count):,} clips, more than {MOST_CLIPS:,} of one row are refused: lower "
            "data.cutting.max_clips_per_video, or give spans of it in several rows",
        )
    clips: list[Clip] = []
    covered = 0
    for span, frames, bucket in used:
        length = bucket.num_frames
        offsets = _offsets(frames, length, cutting)[: None if limit is None else limit - len(clips)]
        for offset in offsets:
            begin = round(span.start + offset / fps, 6)
            finish = begin + (0.0 if info.kind == "image" else length / fps)
            clip_id = f"{source.video}@{begin:.3f}-{finish:.3f}"
            clips.append(Clip(clip_id, source, begin, fps, bucket, found.content))
        covered += sum(min(length, after - offset) for offset, after in itertools.pairwise(offsets))
        covered += length if offsets else 0
    if covered == sum(available):
        return clips, None
    return clips, Shortened(source.video, round(covered / fps, 6), round(seconds, 6))


def _span(source: SourceVideo, found: Inspection) -> _Span:
    """Seconds a row asks for, within what the video has."""
    duration = found.info.duration
    if source.frame_span is None:
        return _Span(source.start or 0.0, min(duration, math.inf if source.end is None else source.end), False)
    first, last = source.frame_span
    end = duration if last is None else found.frame_times[last]
    return _Span(found.frame_times[first], end, end < duration)


def _scenes(whole: _Span, cuts: Sequence[float]) -> list[_Span]:
    """A span without the cuts within it."""
    edges = [whole.start, *(cut for cut in cuts if whole.start < cut < whole.end)]
    inner = [_Span(start, end, True) for start, end in itertools.pairwise(edges)]
    return [*inner, _Span(edges[-1], whole.end, whole.sharp)]


def _num_clips(available: int, length: int, cutting: Cutting) -> int:
    """Clips that one span gives."""
    if cutting.mode == "uniform":
        count = available // length
    else:
        count = (available - length) // _step(available, length, cutting) + 1
    return min(count, cutting.max_clips_per_video or count)


def _step(available: int, length: int, cutting: Cutting) -> int:
    """Frames from one clip to the next, where they are not spread."""
    return {"head": available, "slide": max(1, round(length * (1 - cutting.overlap)))}.get(cutting.mode, length)


def _offsets(available: int, length: int, cutting: Cutting) -> list[int]:
    """First frames of the clips of one span."""
    last, count = available - length, _num_clips(available, length, cutting)
    if cutting.mode != "uniform":
        return list(range(0, last + 1, _step(available, length, cutting))[:count])
    if count == 1:
        return [last // 2]
    return [round(index * last / (count - 1)) for index in range(count)]


def _why_no_bucket(info: VideoInfo, scenes: Sequence[int], buckets: Sequence[Bucket], fps: float) -> str:
    shortest, available = min(buckets), max(scenes)
    if available < shortest.num_frames:
        what = (
            "is an image" if info.kind == "image" else f"has {available} frame{'s' * (available != 1)} at {fps:g} fps"
        )
        if len(scenes) > 1:
            what = f"the longest of its {len(scenes)} scenes {what}"
        return f"{what}, the shortest bucket ({shortest}) needs {shortest.num_frames}"
    smallest = min((b for b in buckets if b.num_frames <= available), key=lambda b: (b.height * b.width, b))
    return (
        f"is {info.width}x{info.height} pixels (width x height): smaller than every bucket it is long enough for "
        f"(the smallest is {smallest.width}x{smallest.height}); set data.cutting.upscale to enlarge it"
    )


def _distinct(clips: Iterable[Clip]) -> tuple[list[Clip], list[Rejected]]:
    """Clips in the order they are best read in; several captions or references of one span get names of their own.

    Rows of which no clip is left are rejected; one that repeats a part of another goes on with the rest.
    """
    spans: dict[str, dict[str, Clip]] = defaultdict(dict)
    repeated: dict[int, Rejected] = {}
    for clip in clips:
        reference = clip.source.reference
        given = clip.source.caption if reference is None else f"{clip.source.caption}\n{reference.content}"
        if given in spans[clip.clip_id]:
            reason = f"another row gives the same clip {clip.clip_id}"
            repeated.setdefault(id(clip.source), Rejected(clip.source.video, reason))
        else:
            spans[clip.clip_id][given] = clip
    distinct = []
    for clip_id, alike in spans.items():
        for given, clip in alike.items():
            mark = f"#{hashlib.sha256(given.encode()).hexdigest()[:8]}" if len(alike) > 1 else ""
            distinct.append(replace(clip, clip_id=clip_id + mark))
    used = {id(clip.source) for clip in distinct}
    rejected = [row for source, row in repeated.items() if source not in used]
    return sorted(distinct, key=lambda clip: (clip.source.video, clip.start, clip.clip_id)), rejected
