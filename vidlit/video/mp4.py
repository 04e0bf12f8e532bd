"""Frames to mp4 files that every browser plays, to the same bytes each time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from vidlit.whole_files import replacing


def write_mp4(path: Path, frames: NDArray[np.uint8], fps: float) -> None:
    """Write frames as H.264 in an mp4 that every browser plays; an interrupted write leaves no file.

    Args:
        path: where to; replaced if it exists.
        frames: (F, H, W, 3) RGB. Odd sizes grow by one repeated row or column, as 4:2:0 colour needs.
        fps: frames a second.
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
            reformatter = VideoReformatter()
            for array in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
                picture = reformatter.reformat(
                    frame, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
