"""Images of every depth, and those that hold more than one picture."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.video.films import quadrants
from vidlit.video.frames import ClipRequest, VideoError, probe, read_clip
from vidlit.video.pixels import BLACK, read_image

GREY, RGB, GREY_ALPHA, RGB_ALPHA = 0, 2, 4, 6  # of PNG


def write_png(path, values, kind, transparent=None):
    """A PNG of 16 bits a channel, which Pillow does not write in colour."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
        + (chunk(b"tRNS", struct.pack(">H", transparent)) if transparent is not None else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from([GREY, RGB, GREY_ALPHA, RGB_ALPHA, "tiff"]), seed=st.integers(0, 1000))
def test_sixteen_bits_are_scaled_to_eight(kind, seed, tmp_path_factory):
    channels = {GREY: 1, RGB: 3, GREY_ALPHA: 2, RGB_ALPHA: 4, "tiff": 1}[kind]
    values = np.random.default_rng(seed).integers(0, 2**16, (9, 12, channels)).astype(np.uint16)
    expected = values[..., : 1 if channels < 3 else 3] / 257
    if channels in (2, 4):
        values[..., -1] = 0xFFFF
    path = tmp_path_factory.mktemp("image") / ("a.tif" if kind == "tiff" else "a.png")
    if kind == "tiff":
        Image.fromarray(values[..., 0]).save(path)
    else:
        write_png(path, values, kind)
    assert np.abs(read_image(path, BLACK) - expected).max() <= 1


def test_grey_of_sixteen_bits_keeps_transparency_and_orientation(tmp_path):
    values = np.full((4, 6), 40_000, np.uint16)
    values[:, :3] = 123
    seen = read_image(write_png(tmp_path / "a.png", values, GREY, transparent=123), (9, 8, 7))
    assert seen[0, 0].tolist() == [9, 8, 7]
    assert seen[0, 5].tolist() == [156] * 3
    exif = Image.Exif()
    exif[0x0112] = 8  # shown turned counter-clockwise
    Image.fromarray(values).save(tmp_path / "b.tif", exif=exif)
    assert read_image(tmp_path / "b.tif", BLACK)[:, 0, 0].tolist() == [156] * 3 + [0] * 3


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_turned_tiff_is_turned_once(tmp_path, mode, compression):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    values = np.asarray(Image.fromarray(quadrants()).convert("RGB" if mode == "RGB" else "L"))
    picture = Image.fromarray(values.astype(np.uint16) * 257 if mode == "I;16" else values)
    picture.save(tmp_path / "a.tif", exif=exif, compression=compression)
    seen = read_image(tmp_path / "a.tif", BLACK)
    expected = np.rot90(values if mode == "RGB" else values[..., None].repeat(3, axis=2), -1)
    assert np.abs(seen - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_eight_bits_shows_its_colours(tmp_path, mode):
    picture = Image.fromarray(quadrants()).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    picture.save(path)
    expected = np.asarray(picture.convert("RGB"), int)
    assert np.abs(read_image(path, BLACK) - expected).max() <= 1


def test_a_transparent_colour_of_a_palette_is_put_on_the_background(tmp_path):
    picture = Image.fromarray(quadrants()).quantize(4)
    picture.save(tmp_path / "a.png", transparency=picture.getpixel((0, 0)))
    assert read_image(tmp_path / "a.png", (1, 2, 3))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_known_range_are_refused_by_name(tmp_path, dtype):
    Image.fromarray(np.linspace(0, 1, 64, dtype=dtype).reshape(8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(VideoError, match="32 bits a channel"):
        probe(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "reason"), [("a.webp", "animated image"), ("a.png", "animated image"), ("a.tif", "several pictures")]
)
def test_animations_are_told_not_read_as_stills(tmp_path, name, reason):
    frames = [Image.fromarray(np.roll(quadrants(), 8 * shift, axis=1)) for shift in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    for use in (probe, lambda path: read_clip(ClipRequest(path, 0.0, 1, 25.0, 32, 32))):
        with pytest.raises(VideoError, match=reason):
            use(tmp_path / name)


def test_a_photo_with_its_preview_is_one_picture(tmp_path):
    """Phones write JPEG of several pictures (MPO), of which the first is meant."""
    frames = [Image.fromarray(quadrants()), Image.fromarray(quadrants()[::4, ::4])]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert (probe(tmp_path / "a.jpg").height, probe(tmp_path / "a.jpg").width) == quadrants().shape[:2]
