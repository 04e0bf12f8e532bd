"""The sound of a clip: of exactly its span, at one rate, in two channels; silence where the file has none.

Imports nothing heavy, as :mod:`vidlit.video.frames`: it runs in the same child process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vidlit.video.frames import IMAGE_SUFFIXES, ClipRequest
from vidlit.video.pixels import VideoError, is_transient
from vidlit.video.stream import GUESSED_TIMES, check_regular, ffmpeg_errors, open_stream, sound_stream, start_of

_RUN_IN = 1.0  # seconds decoded before a clip: a codec's first packets after a seek lack what they build on
_SEEK_BACK = (_RUN_IN, 20.0)  # seconds: sound may be stored far from the pictures that go with it
_MOST_JITTER = 0.01  # seconds that time stamps may be off without a gap: Matroska rounds to milliseconds


class Sound(NamedTuple):
    """Sound in two channels."""

    samples: NDArray[np.float32]
    """(2, n), in about [-1, 1]"""
    rate: int
    """Samples a second."""


def num_samples(num_frames: int, fps: float, rate: int) -> int:
    """Samples of the sound that goes with so many frames."""
    return round(num_frames / fps * rate)


def read_sound(request: ClipRequest, rate: int) -> NDArray[np.float32]:
    """Decode what is heard while the frames of a clip are on display.

    One channel is heard on both sides, more than two are mixed down to two.

    Args:
        request: the clip; of an image, or a video without sound, it is silence.
        rate: samples a second to resample to.

    Returns:
        (2, n) with n = round(num_frames / fps * rate), zero where the file has no sound.

    Raises:
        VideoError: the file cannot be opened, or its sound cannot be decoded.
    """
    check_regular(request.path)
    sound = np.zeros((2, num_samples(request.num_frames, request.fps, rate)), np.float32)
    if request.path.suffix.lower() in IMAGE_SUFFIXES:
        return sound
    with ffmpeg_errors("its sound "):
        for begin, frames in _runs(_frames_of(request.path, request.start, sound.shape[1] / rate)):
            piece, at = _resample(frames, rate), round(begin * rate)
            heard = piece[:, max(0, -at) : max(0, sound.shape[1] - at)]
            sound[:, max(0, at) : max(0, at) + heard.shape[1]] = heard
    return sound


def _frames_of(path: Path, start: float, seconds: float) -> Iterator[tuple[float, Any]]:
    """Frames of sound with their seconds after ``start``, from a run-in before it until ``seconds`` after it."""
    for begin in (*(start - back for back in _SEEK_BACK if back < start), 0.0):
        with contextlib.closing(_timed(path, start, begin)) as frames:
            try:
                first = next(frames, None)
            except av.FFmpegError:  # no index to seek in
                if begin == 0:
                    raise
                continue
            if begin > 0 and (first is None or first[0] > 0):  # sought too far, or there is none before
                continue
            for time, frame in chain([] if first is None else [first], frames):
                if time >= seconds:
                    return
                if time >= -2 * _RUN_IN:
                    yield time, frame
            return


def _timed(path: Path, start: float, begin: float) -> Generator[tuple[float, Any]]:
    """Frames of sound from about ``begin`` on, seconds after the first picture, with their seconds after ``start``."""
    container, pictures = open_stream(path)
    with contextlib.closing(container):
        stream = sound_stream(container)
        if stream is None:
            return
        zero = float(start_of(pictures) * pictures.time_base) + start
        if begin > 0 and container.format.name not in GUESSED_TIMES:
            container.seek(int(begin / pictures.time_base) + start_of(pictures), stream=pictures)
        due = -zero
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                early = packet.pts is not None and float(packet.pts * packet.time_base) < zero
                if is_transient(error) or not early:
                    raise
                continue  # of the run-in
            for frame in frames:
                time = due if frame.pts is None else float(frame.pts * frame.time_base) - zero
                if frame.is_corrupt and time >= 0:
                    raise VideoError(f"its sound is damaged at {time + start:.3f} s")
                due = time + frame.samples / frame.sample_rate
                yield time, frame


def _runs(timed: Iterable[tuple[float, Any]]) -> Iterator[tuple[float, list[Any]]]:
    """Frames of one kind without gaps, and the seconds at which the first of them begins."""
    run: list[Any] = []
    begin = due = 0.0
    kind: tuple[Any, ...] = ()
    for time, frame in timed:
        this = (frame.sample_rate, frame.layout.name, frame.format.name)
        if run and (this != kind or abs(time - due) > _MOST_JITTER):
            yield begin, run
            run = []
        if not run:
            begin, kind = time, this
        frame.pts = None  # a run is even, whatever its time stamps are rounded to
        run.append(frame)
        due = time + frame.samples / frame.sample_rate
    if run:
        yield begin, run


def _resample(frames: list[Any], rate: int) -> NDArray[np.float32]:
    """A run at another rate: (2, n), or (1, n) of one channel, which FFmpeg would make fainter as one of two."""
    layout = "mono" if frames[0].layout.nb_channels == 1 else "stereo"
    resampler = av.AudioResampler("fltp", layout, rate)
    pieces = [piece.to_ndarray() for frame in [*frames, None] for piece in resampler.resample(frame)]
    return np.concatenate(pieces, axis=1) if pieces else np.zeros((1, 0), np.float32)
