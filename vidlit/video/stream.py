"""The streams of one file: opening it safely, its times, and a place in the pictures that seeks and reads on."""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidlit.video.pixels import MAX_PIXELS, VideoError, because, check_size, is_transient

# FFmpeg looks at the content, not at the name: without these a playlist called .mp4 opens other files.
_OPEN_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,asf,flv,ogg,mxf",
    "protocol_whitelist": "file",
    "max_pixels": str(MAX_PIXELS),
}
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders drop the alpha plane
GUESSED_TIMES = ("mpeg",)  # a seek lands amid a packet, whose time another frame gets then: read from the beginning
_SEEK_BACK = (0.0, 2.0, 20.0)  # seconds: some containers land after the wanted time
_READ_AHEAD = 4.0  # seconds that are decoded and passed over rather than sought over
MOST_SECONDS_OF_A_FRAME = 3600.0
"""A frame displayed for longer has a time stamp that a broken or hostile file made up: slides do not stand so long."""
_MAX_LATE_START = 0.5  # seconds without a picture at a clip's beginning that its first frame may cover


class Cursor:
    """A place in a decoded stream: the frame on display and the one after it."""

    def __init__(self, path: Path, identity: tuple[object, ...]) -> None:
        self.identity = identity
        self._path = path
        self._container, self._stream = open_stream(path)
        self.fps = frame_rate_of(self._stream)
        self.sample_aspect = sample_aspect_of(self._stream)
        self._frames: Iterator[tuple[float, Any]] = iter(())
        self._shown: tuple[float, Any] | None = None
        self._next: tuple[float, Any] | None = None
        self._failure: Exception | None = None

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def is_before(self, start: float) -> bool:
        """Whether to read on to ``start``, rather than to seek there."""
        return self._shown is not None and self._shown[0] <= start <= self._shown[0] + _READ_AHEAD

    def seek(self, start: float) -> None:
        """Go to a key frame at or before ``start``."""
        self._frames = self._frames_from(start)
        self._shown = next(self._frames, None)
        if self._shown is None:
            raise VideoError(f"holds no frame that can be decoded at {start:.3f} s")
        if self._shown[0] > start + _MAX_LATE_START:
            raise VideoError(f"its first frame that can be decoded is at {self._shown[0]:.3f} s")
        self._advance()

    def frame_at(self, time: float, tolerance: float) -> Any:
        """The frame on display at ``time``, or the next one if it is nearer and within ``tolerance``.

        Rounded time stamps (whole milliseconds in Matroska) would else show every other frame twice.
        """
        assert self._shown is not None
        while self._next is not None:
            early = self._next[0] - time
            if early > 0 and (early >= tolerance or early >= time - self._shown[0]):
                break
            self._shown = self._next
            self._advance()
        shown_time, frame = self._shown
        if self._next is None:  # at the end: the last frame is on display for as long as it says
            shown_for = float(frame.duration * frame.time_base) if frame.duration else 1 / (self.fps or 1.0)
            if time >= shown_time + shown_for + tolerance:
                if self._failure is not None:
                    raise self._failure
                raise VideoError(f"ends at {shown_time + shown_for:.3f} s, the clip needs a frame at {time:.3f} s")
        return frame

    def _advance(self) -> None:
        """Look one frame ahead. Damage there ends the video, and is an error only where that frame is needed."""
        assert self._shown is not None
        try:
            self._next = next(self._frames, None)
            while self._next is not None and self._next[0] <= self._shown[0]:  # a broken time stamp
                self._next = next(self._frames, None)
        except (av.FFmpegError, VideoError) as error:
            self._next, self._failure = None, error

    def _frames_from(self, start: float) -> Iterator[tuple[float, Any]]:
        for back in _SEEK_BACK:
            if start - back <= 0 or self._container.format.name in GUESSED_TIMES:
                break
            offset = int((start - back) / self._stream.time_base) + start_of(self._stream)
            try:
                self._container.seek(offset, stream=self._stream)
                frames = timed_frames(self._container, self._stream)
                first = next(frames, None)
            except (av.FFmpegError, VideoError):  # no index to seek in, or a key frame that is none
                continue
            if first is not None and first[0] <= start:
                return chain([first], frames)
        if start > 0:  # from the beginning: opened again, as seeking there may miss it
            self._container.close()
            self._container, self._stream = open_stream(self._path)
        return timed_frames(self._container, self._stream)


def check_regular(path: Path) -> tuple[object, ...]:
    """What tells this file from another one that may take its name."""
    try:
        status = path.stat()
    except OSError as error:
        raise because(f"cannot be opened: {error.strerror}", error) from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
        raise VideoError("is not a regular file")
    if not status.st_size:
        raise VideoError("is empty")
    return (path, status.st_ino, status.st_size, status.st_mtime_ns)


@contextmanager
def ffmpeg_errors(subject: str = "") -> Iterator[None]:
    """Turn what FFmpeg and the system raise into a :class:`VideoError`, whose words begin with a subject."""
    try:
        yield
    except MemoryError as error:  # FFmpeg's own is one, too
        raise because(f"{subject}needs more memory than one clip may have", error) from error
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise because(f"{subject}cannot be decoded: {reason}", error) from error


def open_stream(path: Path) -> tuple[Any, Any]:
    """A container, and its stream with the largest picture. Ties go to the default stream, then the first."""
    # The "file:" prefix keeps a name with a colon from being read as a protocol.
    try:
        container = av.open(f"file:{path}", options=_OPEN_OPTIONS, metadata_errors="replace")
    except (av.InvalidDataError, av.ArgumentError) as error:
        raise VideoError(
            "is not a video of an accepted format (mp4, mov, mkv, webm, avi, gif, ts, mpg, wmv, flv, ogv, mxf), or it "
            "is cut off or damaged"
        ) from error
    try:
        return container, _best_stream(container)
    except BaseException:
        container.close()
        raise


def _best_stream(container: Any) -> Any:
    # Cover art of music is a video stream to FFmpeg, too.
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    streams = [s for s in streams if s.codec_context is not None and s.codec_context.width]
    if not streams:
        raise VideoError("holds no video stream")

    def rank(stream: Any) -> tuple[int, bool, int]:
        area = stream.codec_context.width * stream.codec_context.height
        return (area, bool(stream.disposition & stream.disposition.default), -stream.index)

    best = max(streams, key=rank)
    check_size(best.codec_context.width, best.codec_context.height)
    best.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    best.codec_context.thread_count = 1  # clips are read in several processes: those fill the cores
    return best


def sound_stream(container: Any) -> Any | None:
    """The sound that players choose: the default stream, then the first; ``None`` where there is none.

    Raises:
        VideoError: there is sound, but none that can be decoded.
    """
    known = [stream for stream in container.streams.audio if stream.codec_context is not None]
    if container.streams.audio and not known:
        raise VideoError("its sound is of a kind that cannot be decoded")
    default = (stream for stream in known if stream.disposition & stream.disposition.default)
    return next(default, known[0] if known else None)


def sample_aspect_of(stream: Any) -> float:
    """Width over height of a stored pixel; square if the header says nothing that can be believed."""
    ratio = stream.sample_aspect_ratio
    return float(ratio) if ratio and 1 / 16 <= ratio <= 16 else 1.0


def frame_rate_of(stream: Any) -> float:
    """Frames a second by the header; 0 if it says nothing that can be believed."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 0 < rate < 1000 else 0.0


def start_of(stream: Any) -> int:
    """Time stamp of its first frame, which the times of all are counted from."""
    if stream.start_time is not None:
        return int(stream.start_time)
    entries = stream.index_entries  # FFmpeg is not sure of the start of a few frames: the first key frame knows
    return int(entries[0].timestamp) if len(entries) else 0


def packet_times(container: Any, stream: Any) -> NDArray[np.float64]:
    """Seconds at which each frame appears, then those at which the last one ends: (frames + 1,), as in `timed_frames`.

    Read from the packets to the end of the file, as far as it goes; decodes nothing. What headers and tags say of a
    duration is not asked: they count from elsewhere, are rounded, made up, or those of a file that was cut off.

    Raises:
        VideoError: no packet, or times that no film has.
    """
    ticks = array("q")
    last, last_for = -(2**63), 0  # the frame that appears last, which need not be stored last
    hides_frames = stream.codec_context.name == "vp8"  # its packets of reference only, which are never displayed
    try:
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard or packet.is_corrupt:
                continue
            if hides_frames and not bytes(packet)[0] & 0x10:
                continue
            # AVI stores decoding order only, one tick a frame, and FFmpeg guesses the rest.
            time = packet.dts if packet.pts is None or container.format.name == "avi" else packet.pts
            ticks.append(time if time is not None else len(ticks))
            if ticks[-1] > last:
                last, last_for = ticks[-1], packet.duration or 0
    except av.FFmpegError as error:  # what follows is damaged, or missing
        if is_transient(error):
            raise
    if not ticks:
        raise VideoError("holds no frame")
    seconds = (np.unique(np.frombuffer(ticks, np.int64)).astype(np.float64) - start_of(stream)) * float(
        stream.time_base
    )
    last_seconds = last_for * float(stream.time_base) or 1 / (frame_rate_of(stream) or 1.0)
    times = np.append(seconds, seconds[-1] + last_seconds)
    edges = np.insert(times, 0, 0.0)
    longest = int(np.argmax(np.diff(edges)))
    if edges[longest + 1] - edges[longest] > MOST_SECONDS_OF_A_FRAME:
        raise VideoError(
            f"shows nothing new from {edges[longest]:.0f} s to {edges[longest + 1]:.3g} s: its time stamps are broken"
        )
    return times


def rounding_of(stream: Any) -> float:
    """Seconds by which times of frames may be off, because the file stores them in ticks they do not fit in.

    Matroska's ticks are milliseconds: at 30 frames a second a film of 3.2 s may be one of 3.201 s there.
    """
    tick, rate = float(stream.time_base), frame_rate_of(stream)
    if not rate:
        return tick
    ticks_per_frame = 1 / (rate * tick)
    fits = abs(ticks_per_frame - round(ticks_per_frame)) < 1e-6 * ticks_per_frame
    return 0.0 if fits else min(tick, 0.25 / rate)


def timed_frames(container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    """Frames and their seconds after the first one of the file."""
    if "alpha_mode" in stream.metadata and stream.codec_context.name in _ALPHA_DECODERS:
        decoder = av.CodecContext.create(_ALPHA_DECODERS[stream.codec_context.name], "r")
        decoder.options = {"max_pixels": str(MAX_PIXELS)}
        frames = (frame for packet in container.demux(stream) for frame in decoder.decode(packet))
    else:
        frames = container.decode(stream)
    last: int | None = None
    for number, frame in enumerate(frames):
        ticks = frame.pts if frame.pts is not None else frame.dts
        if container.format.name == "avi":
            # AVI stores decoding order only, one tick a frame: FFmpeg makes up wrong times where B-frames reorder it.
            delayed = (frame.dts or 0) - stream.codec_context.reorder_depth
            ticks = last = delayed if last is None else max(delayed, last + 1)
        if ticks is not None:
            time = float((ticks - start_of(stream)) * stream.time_base)
        else:  # no time stamps at all: count
            time = number / (frame_rate_of(stream) or 1.0)
        if frame.is_corrupt:
            raise VideoError(f"is damaged at {time:.3f} s")
        yield time, frame
