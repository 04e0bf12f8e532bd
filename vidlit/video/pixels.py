"""One decoded frame to the pixels a viewer sees: rotation, pixel aspect, colour, transparency, size."""

from __future__ import annotations

import errno
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import av.filter
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from vidlit.errors import UserError
from vidlit.io_retry import PASSING

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

MAX_PIXELS = 8192 * 4352  # 8K video; a header can claim a thousand times more

_HDR = {int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)}  # PQ and HLG
_HDR_COLORSPACES = {0, 9, 10}  # RGB, BT.2020; Dolby Vision has others of its own
_UNSPECIFIED_COLORSPACE = 2
_RESIZE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND

Color = tuple[int, int, int]
BLACK: Color = (0, 0, 0)


class VideoError(UserError):
    """A file that cannot be used, and why. Ends in the table of quarantined clips."""

    transient: bool = False
    """Whether the system failed rather than the file, so that another try may succeed."""


class TransientVideoError(VideoError):
    """Too little memory, too many open files, a read error, a time-out, a reader that was killed."""

    transient = True


_PASSING = PASSING | {errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC}


def is_transient(error: BaseException) -> bool:
    """Whether an error is the system's, which may be over soon, and not the file's."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _PASSING


def because(reason: str, error: BaseException) -> VideoError:
    """The error to raise for another one."""
    return TransientVideoError(reason) if is_transient(error) else VideoError(reason)


class Orientation(NamedTuple):
    """How stored pixels are turned to be displayed: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: Any) -> Orientation:
        """From the display matrix, whose 16.16 numbers a, b, c, d put pixel (x, y) at (ax + cy, bx + dy)."""
        try:
            a, b, _, c, d = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32)[:5].tolist()
        except KeyError:
            return cls()
        if abs(b) > abs(a):
            return cls(True, mirror_x=c < 0, mirror_y=b < 0)
        return cls(False, mirror_x=a < 0, mirror_y=d < 0)


def check_size(width: int, height: int) -> None:
    """Refuse pictures beyond :data:`MAX_PIXELS`.

    Raises:
        VideoError: with the size.
    """
    if width * height > MAX_PIXELS:
        raise VideoError(f"is {width}x{height} pixels, more than {MAX_PIXELS:,} are refused")


def is_hdr(frame: Any) -> bool:
    """Whether brightness is coded by PQ or HLG, far beyond what a screen's white is.

    Raises:
        VideoError: it is, and in a way that cannot be brought to an ordinary range.
    """
    if frame.color_trc not in _HDR:
        return False
    if frame.colorspace not in {_UNSPECIFIED_COLORSPACE, *_HDR_COLORSPACES}:
        raise VideoError(
            "is HDR video of a kind that only its own players show (Dolby Vision): convert it to SDR first"
        )
    if _has_alpha(frame):
        raise VideoError("is HDR video with transparency: convert it to SDR first")
    return True


def tone_map(frame: Any, rows: int, columns: int) -> NDArray[np.uint8]:
    """An HDR frame to BT.709, resized: FFmpeg's perceptual mapping from the peak that the file names to SDR white.

    Returns:
        (rows, columns, 3) full-range RGB.
    """
    if frame.colorspace == _UNSPECIFIED_COLORSPACE and not frame.format.is_rgb:
        frame.colorspace = int(Colorspace.BT2020)
    graph = _tone_mapping(
        frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, rows, columns
    )
    try:
        graph.push(frame)
        return np.asarray(graph.pull().to_ndarray(), np.uint8)
    except BaseException:
        _tone_mapping.cache_clear()  # a frame left in it would come out for the next one
        raise


@functools.lru_cache(maxsize=4)
def _tone_mapping(
    width: int, height: int, pixel_format: str, colorspace: int, color_range: int, rows: int, columns: int
) -> av.filter.Graph:
    """The filters, kept from clip to clip: their table of colours takes seconds to make, a frame then milliseconds."""
    graph = av.filter.Graph()
    graph.threads = 1
    buffer = graph.add(
        "buffer",
        f"video_size={width}x{height}:pix_fmt={pixel_format}:time_base=1/1000:"
        f"colorspace={colorspace}:range={color_range}",
    )
    scale = graph.add(
        "scale",
        f"w={columns}:h={rows}:flags=bicubic+accurate_rnd:out_range=pc:out_primaries=bt709:out_transfer=bt709:"
        "intent=perceptual",
    )
    graph.link_nodes(buffer, scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    return graph


class Resizer:
    """Frames to (height, width, 3) full-range RGB, covered and cropped at the centre.

    One swscale context for a whole clip: making one takes longer than using it.

    Args:
        height: pixels.
        width: pixels.
        sample_aspect: width over height of a stored pixel.
        background: red, green, blue put behind transparent pixels.
    """

    def __init__(self, height: int, width: int, sample_aspect: float, background: Color) -> None:
        self.height, self.width = height, width
        self.sample_aspect = sample_aspect
        self.background = np.array(background, np.float32)
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        """Convert one frame.

        Raises:
            VideoError: HDR that cannot be tone-mapped, or so thin that covering the target would take too many pixels.
        """
        hdr = is_hdr(frame)
        turn = Orientation.of(frame)
        colorspace = _colorspace(frame)
        if _has_alpha(frame):
            frame, colorspace = self._composite(frame, colorspace), None
        height, width = (self.width, self.height) if turn.transpose else (self.height, self.width)
        displayed_width = frame.width * self.sample_aspect
        scale = max(height / frame.height, width / displayed_width)
        rows, columns = max(height, round(frame.height * scale)), max(width, round(displayed_width * scale))
        check_size(columns, rows)
        resized = tone_map(frame, rows, columns) if hdr else self._resize(frame, rows, columns, colorspace)
        top, left = (rows - height) // 2, (columns - width) // 2
        pixels = resized[top : top + height, left : left + width]
        if turn.transpose:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[:: -1 if turn.mirror_y else 1, :: -1 if turn.mirror_x else 1]

    def _resize(self, frame: Any, rows: int, columns: int, colorspace: Colorspace | None) -> NDArray[np.uint8]:
        resized = self._reformatter.reformat(
            frame,
            columns,
            rows,
            "rgb24",
            src_colorspace=colorspace,
            interpolation=_RESIZE,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        return np.asarray(resized.to_ndarray(), np.uint8)

    def _composite(self, frame: Any, colorspace: Colorspace | None) -> Any:
        """Before the resize, which would mix the hidden colour of transparent pixels into the edges."""
        rgba = self._reformatter.reformat(
            frame, format="rgba", src_colorspace=colorspace, dst_color_range=ColorRange.JPEG, threads=1
        ).to_ndarray()
        alpha = rgba[..., 3:].astype(np.float32) / 255
        mixed = rgba[..., :3] * alpha + self.background * (1 - alpha)
        return av.VideoFrame.from_ndarray(np.rint(mixed).astype(np.uint8), format="rgb24")


def _has_alpha(frame: Any) -> bool:
    return bool(frame.format.has_palette or any(component.is_alpha for component in frame.format.components))


def _colorspace(frame: Any) -> Colorspace | None:
    """``None`` keeps what the file says; what it does not say is guessed from the size, as players do."""
    if frame.colorspace != _UNSPECIFIED_COLORSPACE or frame.format.is_rgb:
        return None
    return Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601


def read_image(path: Path, background: Color) -> NDArray[np.uint8]:
    """An image, turned as its EXIF tag says, brought to 8 bits a channel and put on the background.

    Returns:
        (H, W, 3) RGB.

    Raises:
        VideoError: not an image of a known format, too large, several in one file, or of values without a known range.
    """
    from PIL import Image, ImageOps  # only folders with images pay for it

    try:
        # Pillow maps a file that it knows the path of into memory, and garbles a turned grey TIFF then.
        with path.open("rb") as file, Image.open(file, formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF")) as image:
            check_size(*image.size)
            several = getattr(image, "n_frames", 1) > 1
            if several and image.format in ("PNG", "WEBP"):
                raise VideoError("is an animated image: convert it to a video, such as mp4")
            if several and image.format == "TIFF":
                raise VideoError("holds several pictures: save each as a file of its own")
            rgba = ImageOps.exif_transpose(_to_eight_bits(image)).convert("RGBA")
    except VideoError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise because(f"cannot be decoded: {error}", error) from error
    canvas = Image.new("RGBA", rgba.size, (*background, 255))
    return np.asarray(Image.alpha_composite(canvas, rgba).convert("RGB"))


def _to_eight_bits(image: PillowImage) -> PillowImage:
    """Greys of 16 bits scaled, which Pillow would clip; colours of 16 bits come from it with 8 bits already."""
    if not image.mode.startswith(("I", "F")):
        return image
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # a PNG has 16 at most
        raise VideoError("has 32 bits a channel, whose black and white are nowhere said: save it with 8 or 16")
    from PIL import Image

    image.load()  # which turns a TIFF
    values = np.asarray(image, np.uint32)
    made = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 / 257 = 255
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        made.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    made.getexif().update(image.getexif())
    return made
