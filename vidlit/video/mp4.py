"""Frames, with or without sound, to mp4 files that every browser plays, to the same bytes each time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from vidlit.video.sound import Sound
from vidlit.whole_files import replacing

_SOUND_BITS = 320_000  # a second: at the usual 128 000 FFmpeg's own encoder errs by 13 % of a chirp at 48 kHz


def write_mp4(path: Path, frames: NDArray[np.uint8], fps: float, sound: Sound | None = None) -> None:
    """Write H.264 and AAC in an mp4 that every browser plays; an interrupted write leaves no file.

    Args:
        path: where to; replaced if it exists.
        frames: (F, H, W, 3) RGB. Odd sizes grow by one repeated row or column, as 4:2:0 colour needs.
        fps: frames a second.
        sound: what is heard with them, from the first one on; ``None`` for a file without.
    """
    odd_rows, odd_columns = frames.shape[1] % 2, frames.shape[2] % 2
    frames = np.pad(frames, ((0, 0), (0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
    with replacing(path) as unfinished:
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(10_000))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            # Without its macroblock tree x264 writes the same frames to the same bytes; with it, it often does not.
            stream.options = {"crf": "17", "preset": "fast", "x264-params": "mbtree=0"}
            context = stream.codec_context
            # Tagged, so that no player has to guess the matrix from the size.
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = int(ColorRange.MPEG)
            if sound is not None:  # streams are made before anything is written
                heard = container.add_stream("aac", rate=sound.rate, layout="stereo", bit_rate=_SOUND_BITS)
                _write_sound(container, heard, sound)
            reformatter = VideoReformatter()
            for array in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
                picture = reformatter.reformat(
                    frame, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))


def read_mp4(path: Path) -> tuple[NDArray[np.uint8], float]:
    """Read a file that :func:`write_mp4` wrote; what comes from elsewhere is read in a process of its own.

    Returns:
        Frames (F, H, W, 3) RGB, and frames a second.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), float(stream.average_rate or 1)


def _write_sound(container: Any, stream: Any, sound: Sound) -> None:
    """All of it before the pictures, whose packets then go between: the other way round they would wait in memory."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.samples, np.float32), "fltp", "stereo")
    frame.sample_rate, frame.pts, frame.time_base = sound.rate, 0, Fraction(1, sound.rate)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
