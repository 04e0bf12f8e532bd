"""Real video files for the tests: small, lossless where colour matters, each frame tells its number."""

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

HEIGHT, WIDTH = 64, 96
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants(height=HEIGHT, width=WIDTH):
    """Red, green over blue, white: shows every rotation and mirroring."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, : width // 2], frame[: height // 2, width // 2 :] = RED, GREEN
    frame[height // 2 :, : width // 2], frame[height // 2 :, width // 2 :] = BLUE, WHITE
    return frame


def corners(frame):
    """The pure colours nearest to the middles of the four quarters, row by row."""
    height, width = frame.shape[:2]
    picked = [frame[y, x] for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return [tuple(int(value > 127) * 255 for value in pixel) for pixel in picked]


def numbered(number):
    """A frame that carries its number as ten bars, bright or dark, and survives compression."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(10):
        frame[: HEIGHT // 2, bit * 9 : bit * 9 + 9] = 255 * (number >> bit & 1)
    frame[HEIGHT // 2 :] = number % 200
    return frame


def number_of(frame):
    return sum(int(frame[HEIGHT // 4, bit * 9 + 4].mean() > 127) << bit for bit in range(10))


def texture(seed, count=12, height=HEIGHT, width=WIDTH):
    """A film of its own: smooth random shapes that drift."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (8, 14, 3))
    rows = np.linspace(0, 7, height).astype(int)
    columns = np.linspace(0, 10, width)
    return [
        coarse[rows][:, (columns + 3 * index / count).astype(int)].astype(np.uint8).copy() for index in range(count)
    ]


def write_film(
    path,
    frames,
    pts=None,
    *,
    time_base=Fraction(1, 1000),
    rate=25,
    codec="libx264",
    pix_fmt="yuv444p",
    container_format=None,
    codec_options=None,
    rotation=None,
    mirror=(False, False),
    sample_aspect=None,
    color_trc=None,
    color_range=None,
    muxer_options=None,
):
    """Write RGB or RGBA frames; ``pts`` in ``time_base``, every 40 ms by default."""
    with av.open(str(path), "w", format=container_format, options=muxer_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.options = {"qp": "0"} if codec_options is None and codec == "libx264" else codec_options or {}
        context = stream.codec_context
        context.time_base = time_base
        if sample_aspect:
            context.sample_aspect_ratio = sample_aspect
        if color_trc:
            context.color_trc = color_trc
        if color_range:
            context.color_range = int(color_range)
        if rotation is not None:
            stream.set_display_rotation(rotation, *mirror)
        reformatter = VideoReformatter()
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24" if array.shape[2] == 3 else "rgba")
            if color_range:
                frame = reformatter.reformat(
                    frame, format=pix_fmt, dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange(color_range)
                )
            frame.pts = pts[index] if pts is not None else index * 40
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def hostile_files(good):
    """Content that FFmpeg would follow to another file, or that is no video at all, called .mp4."""
    return {
        "playlist.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{good}\n#EXT-X-ENDLIST\n".encode(),
        "concat.mp4": f"ffconcat version 1.0\nfile '{good}'\n".encode(),
        "dash.mp4": f"<MPD><Period><AdaptationSet><Representation><BaseURL>{good}</BaseURL>"
        "</Representation></AdaptationSet></Period></MPD>".encode(),
        "script.mp4": b"#!/bin/sh\nexit 1\n",
        "noise.mp4": np.random.default_rng(0).bytes(50_000),
        "empty.mp4": b"",
    }
