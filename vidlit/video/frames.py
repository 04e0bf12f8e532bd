"""One file to frames. Which frame is shown when, as a viewer sees it; nothing is decoded that is not used.

Imports nothing heavy: a child process (:mod:`vidlit.video.isolation`) starts with this module alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray

from vidlit.video.pixels import (
    BLACK,
    Color,
    Orientation,
    Resizer,
    TransientVideoError,
    VideoError,
    is_hdr,
    read_image,
)
from vidlit.video.stream import (
    Cursor,
    check_regular,
    ffmpeg_errors,
    frame_rate_of,
    open_stream,
    packet_times,
    rounding_of,
    sample_aspect_of,
    timed_frames,
)

__all__ = [
    "BLACK",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "ClipRequest",
    "Color",
    "TransientVideoError",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "frame_times",
    "probe",
    "read_clip",
    "read_frames",
    "read_key_frames",
]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .qt .3gp .3g2 .f4v .webm .mkv .avi .gif .ts .mts .m2ts .mpg .mpeg .vob .wmv .asf .flv .ogv "
    ".mxf".split()
)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known of a file without decoding it."""

    kind: Literal["video", "image"]
    width: int
    """Displayed width in pixels: rotation and sample aspect ratio applied."""
    height: int
    """Displayed height in pixels."""
    duration: float
    """Seconds from the first frame to the end of the last; 0 for an image."""
    fps: float
    """Average frames a second, which says little of a variable frame rate; 0 for an image."""
    num_frames: int
    """Frames that are displayed."""
    rounding: float = 0.0
    """Seconds by which times in the file may be off, where its clock is too coarse for its frame rate."""
    has_sound: bool | None = None
    """Whether there is a stream of sound, however silent; ``None`` if nobody looked."""


def probe(path: Path) -> VideoInfo:
    """Read a file's header, its first frame, and the times of all.

    Raises:
        VideoError: not a regular file, not a video or image of a known format, too large, without a frame, or HDR that
            cannot be tone-mapped.
    """
    check_regular(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        height, width = read_image(path, BLACK).shape[:2]
        return VideoInfo("image", width, height, duration=0.0, fps=0.0, num_frames=1, has_sound=False)
    with ffmpeg_errors():
        container, stream = open_stream(path)
        with closing(container):
            _, frame = next(timed_frames(container, stream), (0.0, None))
            if frame is None:
                raise VideoError("holds no frame that can be decoded")
            is_hdr(frame)
            width, height = max(1, round(frame.width * sample_aspect_of(stream))), frame.height
            if Orientation.of(frame).transpose:
                width, height = height, width
            fps, rounding = frame_rate_of(stream), rounding_of(stream)
            has_sound = bool(container.streams.audio)
    times = frame_times(path)
    return VideoInfo("video", width, height, float(times[-1]), fps, len(times) - 1, rounding, has_sound)


def frame_times(path: Path) -> NDArray[np.float64]:
    """Seconds at which each frame of a video appears after the first one, then those at which the last one ends.

    Returns:
        (frames + 1,) ascending.

    Raises:
        VideoError: the file cannot be opened, holds no frame, or has times that no film has.
    """
    check_regular(path)
    with ffmpeg_errors():
        container, stream = open_stream(path)
        with closing(container):
            return packet_times(container, stream)


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """A span of a file, at a frame rate and a size.

    Frame ``k`` is the one on display at ``start + k / fps`` seconds after the first frame of the file, or its
    successor if that is nearer and starts within half a frame.
    """

    path: Path
    """A video, or an image for one frame."""
    start: float
    """Seconds after the first frame."""
    num_frames: int
    fps: float
    """Frames a second."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    background: Color = BLACK
    """Red, green, blue put behind transparent pixels."""


def read_clip(request: ClipRequest | Path, *others: Any) -> NDArray[np.uint8]:
    """Decode one clip as it is displayed: resampled in time, covered and cropped at the centre in space.

    Only the span that is needed is decoded, from the key frame before it, and only frames that are used are kept, at
    their final size.

    Args:
        request: what is asked; or the path of it alone.
        others: then the other fields of a :class:`ClipRequest`, in their order.

    Returns:
        (F, H, W, 3) full-range RGB.

    Raises:
        VideoError: the file cannot be opened, decoded or tone-mapped, or ends before the clip does.
    """
    with VideoReader() as reader:
        return reader.read_clip(request if isinstance(request, ClipRequest) else ClipRequest(request, *others))


def read_key_frames(
    path: Path, start: float, spacing: float, height: int, width: int
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Key frames of a video from a time on, which decode without any other: (seconds, (H, W, 3) full-range RGB).

    Args:
        path: a video.
        start: seconds after the first frame.
        spacing: seconds between two of them at least.
        height: pixels.
        width: pixels.

    Raises:
        VideoError: the file cannot be opened or decoded.
    """
    due = start
    for time, frame, resize in _all_frames(path, height, width, "NONKEY"):
        if time >= due:
            due = time + spacing
            yield time, resize(frame)


def read_frames(path: Path, height: int, width: int) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Every frame of a video: (seconds after the first, (H, W, 3) full-range RGB).

    Args:
        path: a video.
        height: pixels.
        width: pixels.

    Raises:
        VideoError: the file cannot be opened or decoded.
    """
    for time, frame, resize in _all_frames(path, height, width, "DEFAULT"):
        yield time, resize(frame)


def _all_frames(path: Path, height: int, width: int, skip: str) -> Iterator[tuple[float, Any, Resizer]]:
    check_regular(path)
    with ffmpeg_errors():
        container, stream = open_stream(path)
        with closing(container):
            stream.codec_context.skip_frame = skip
            resize = Resizer(height, width, sample_aspect_of(stream), BLACK)
            for time, frame in timed_frames(container, stream):
                yield time, frame, resize


class VideoReader:
    """:func:`read_clip` that keeps its place: the next clip of a video is decoded on from where the last one ended."""

    def __init__(self) -> None:
        self._cursor: Cursor | None = None

    def read_clip(self, request: ClipRequest) -> NDArray[np.uint8]:
        """As :func:`read_clip`, with the same frames whatever was read before."""
        identity = check_regular(request.path)
        if request.path.suffix.lower() in IMAGE_SUFFIXES:
            if request.num_frames != 1:
                raise VideoError(f"is an image, {request.num_frames} frames are asked of it")
            image = av.VideoFrame.from_ndarray(read_image(request.path, request.background), format="rgb24")
            cropped = Resizer(request.height, request.width, 1.0, request.background)(image)
            return np.ascontiguousarray(cropped[None])  # what is cut off its sides leaves gaps
        cursor, self._cursor = self._cursor, None  # a cursor that fails is not used again
        try:
            with ffmpeg_errors():
                if cursor is None or cursor.identity != identity or not cursor.is_before(request.start):
                    if cursor is not None:
                        cursor.close()
                    cursor = Cursor(request.path, identity)
                    cursor.seek(request.start)
                resize = Resizer(request.height, request.width, cursor.sample_aspect, request.background)
                tolerance = 0.5 / max(request.fps, cursor.fps or request.fps) - 1e-6
                clip = np.empty((request.num_frames, request.height, request.width, 3), np.uint8)
                drawn = None
                for index in range(request.num_frames):
                    frame = cursor.frame_at(request.start + index / request.fps, tolerance)
                    clip[index] = clip[index - 1] if frame is drawn else resize(frame)
                    drawn = frame
        except BaseException:
            if cursor is not None:
                cursor.close()
            raise
        self._cursor = cursor
        return clip

    def close(self) -> None:
        """Let go of the file."""
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            cursor.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
