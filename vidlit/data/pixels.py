"""One decoded frame to the pixels a viewer sees: rotation, pixel aspect, colour, transparency, size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from vidlit.errors import UserError

MAX_PIXELS = 8192 * 4352  # 8K video; a header can claim a thousand times more

_HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}
_UNSPECIFIED_COLORSPACE = 2
_RESIZE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND

Color = tuple[int, int, int]
BLACK: Color = (0, 0, 0)


class VideoError(UserError):
    """A file that cannot be used, and why. Ends in the table of quarantined clips."""


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


def check_transfer(frame: Any) -> None:
    """Refuse HDR, which would come out washed out.

    Raises:
        VideoError: names the transfer function.
    """
    name = _HDR.get(frame.color_trc)
    if name:
        raise VideoError(f"is HDR video ({name}): convert it to SDR first, it would look washed out")


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
            VideoError: HDR, or so thin that covering the target would take too many pixels.
        """
        check_transfer(frame)
        turn = Orientation.of(frame)
        colorspace = _colorspace(frame)
        if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
            frame, colorspace = self._composite(frame, colorspace), None
        height, width = (self.width, self.height) if turn.transpose else (self.height, self.width)
        displayed_width = frame.width * self.sample_aspect
        scale = max(height / frame.height, width / displayed_width)
        rows, columns = max(height, round(frame.height * scale)), max(width, round(displayed_width * scale))
        check_size(columns, rows)
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
        top, left = (rows - height) // 2, (columns - width) // 2
        pixels = np.asarray(resized.to_ndarray(), np.uint8)[top : top + height, left : left + width]
        if turn.transpose:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[:: -1 if turn.mirror_y else 1, :: -1 if turn.mirror_x else 1]

    def _composite(self, frame: Any, colorspace: Colorspace | None) -> Any:
        """Before the resize, which would mix the hidden colour of transparent pixels into the edges."""
        rgba = self._reformatter.reformat(
            frame, format="rgba", src_colorspace=colorspace, dst_color_range=ColorRange.JPEG, threads=1
        ).to_ndarray()
        alpha = rgba[..., 3:].astype(np.float32) / 255
        mixed = rgba[..., :3] * alpha + self.background * (1 - alpha)
        return av.VideoFrame.from_ndarray(np.rint(mixed).astype(np.uint8), format="rgb24")


def _colorspace(frame: Any) -> Colorspace | None:
    """``None`` keeps what the file says; what it does not say is guessed from the size, as players do."""
    if frame.colorspace != _UNSPECIFIED_COLORSPACE or frame.format.is_rgb:
        return None
    return Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601


def read_image(path: Path, background: Color) -> NDArray[np.uint8]:
    """An image, turned as its EXIF tag says and put on the background.

    Returns:
        (H, W, 3) RGB.

    Raises:
        VideoError: not an image of a known format, or too large.
    """
    from PIL import Image, ImageOps  # only folders with images pay for it

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF")) as image:
            check_size(*image.size)
            rgba = ImageOps.exif_transpose(image).convert("RGBA")
    except VideoError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"cannot be decoded: {error}") from error
    canvas = Image.new("RGBA", rgba.size, (*background, 255))
    return np.asarray(Image.alpha_composite(canvas, rgba).convert("RGB"))
