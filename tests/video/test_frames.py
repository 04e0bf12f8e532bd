import itertools
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from PIL import Image

from tests.video.films import (
    BLUE,
    GREEN,
    HEIGHT,
    RED,
    WHITE,
    WIDTH,
    corners,
    hostile_files,
    number_of,
    numbered,
    quadrants,
    write_film,
)
from vidlit.video import stream
from vidlit.video.frames import ClipRequest, VideoError, VideoReader, probe, read_clip
from vidlit.video.mp4 import write_mp4
from vidlit.video.pixels import MAX_PIXELS

TURNED = {0: [RED, GREEN, BLUE, WHITE], 90: [GREEN, WHITE, RED, BLUE]}
TURNED |= {180: TURNED[0][::-1], 270: TURNED[90][::-1]}


@pytest.mark.parametrize(
    ("rotation", "horizontal", "vertical"), itertools.product(TURNED, (False, True), (False, True))
)
def test_display_matrix(tmp_path, rotation, horizontal, vertical):
    path = write_film(tmp_path / "a.mp4", [quadrants()] * 2, rotation=rotation, mirror=(horizontal, vertical))
    info = probe(path)
    assert (info.height, info.width) == ((HEIGHT, WIDTH) if rotation % 180 == 0 else (WIDTH, HEIGHT))
    a, b, c, d = TURNED[rotation]  # counter-clockwise, then mirrored
    if horizontal:
        a, b, c, d = b, a, d, c
    if vertical:
        a, b, c, d = c, d, a, b
    assert corners(read_clip(ClipRequest(path, 0.0, 1, 25.0, info.height, info.width))[0]) == [a, b, c, d]


def test_sample_aspect_ratio(tmp_path):
    path = write_film(tmp_path / "a.mp4", [quadrants()] * 2, sample_aspect=Fraction(2, 1))
    info = probe(path)
    assert (info.height, info.width) == (HEIGHT, 2 * WIDTH)
    # A square taken from the middle of the wide picture shows half of its width.
    square = read_clip(ClipRequest(path, 0.0, 1, 25.0, 64, 64))[0]
    narrow = quadrants()[:, WIDTH // 2 - 16 : WIDTH // 2 + 16]
    assert corners(square) == corners(narrow)
    assert np.abs(square[:, ::2].astype(int) - narrow).mean() < 8


def test_variable_frame_rate_follows_time_stamps(tmp_path):
    for name in ("a.mp4", "a.mkv"):
        path = write_film(tmp_path / name, [numbered(n) for n in range(7)], [0, 40, 80, 500, 540, 1000, 1500])
        clip = read_clip(ClipRequest(path, 0.0, 15, 10.0, HEIGHT, WIDTH))
        assert [number_of(frame) for frame in clip] == [0, 2, 2, 2, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5]


def test_equal_rate_gives_each_frame_once_in_spite_of_rounded_time_stamps(tmp_path):
    path = write_film(tmp_path / "a.mkv", [numbered(n) for n in range(40)], [round(n * 1000 / 24) for n in range(40)])
    assert [number_of(frame) for frame in read_clip(ClipRequest(path, 0.0, 40, 24.0, HEIGHT, WIDTH))] == list(range(40))
    film_rate = [number_of(frame) for frame in read_clip(ClipRequest(path, 0.0, 30, 24000 / 1001, HEIGHT, WIDTH))]
    assert film_rate == list(range(30))


def test_resampling_up_and_down(tmp_path):
    path = write_film(tmp_path / "a.mp4", [numbered(n) for n in range(24)], [n * 125 for n in range(24)], rate=8)
    assert [number_of(f) for f in read_clip(ClipRequest(path, 0.5, 6, 24.0, HEIGHT, WIDTH))] == [4, 4, 4, 5, 5, 5]
    assert [number_of(f) for f in read_clip(ClipRequest(path, 0.5, 6, 4.0, HEIGHT, WIDTH))] == [4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"g": "60", "x264-params": "open-gop=1:bframes=3:scenecut=0"}),
        ("a.mkv", "libx264", {"g": "60", "x264-params": "open-gop=1:bframes=3:scenecut=0"}),
        ("a.ts", "libx264", {"g": "60", "x264-params": "open-gop=1:bframes=3:scenecut=0"}),
        ("a.avi", "libx264", {"g": "60", "x264-params": "bframes=3:scenecut=0"}),
        ("a.avi", "mpeg4", {"g": "60", "b": "2000000"}),
        ("a.webm", "libvpx", {"g": "60", "deadline": "realtime", "cpu-used": "8", "b": "2000000"}),
        ("a.ts", "mpeg2video", {"g": "15", "bf": "2", "b": "2000000"}),
    ],
)
def test_seeking_is_exact_in_every_container(tmp_path, name, codec, options):
    path = write_film(
        tmp_path / name,
        [numbered(n) for n in range(300)],
        range(300),
        time_base=Fraction(1, 25),
        codec=codec,
        codec_options=options,
        pix_fmt="yuv420p",
        container_format="mpegts" if name.endswith("ts") else None,
    )
    assert probe(path).duration == pytest.approx(12.0, abs=0.05)
    for first in (0, 1, 59, 60, 61, 119, 200, 297):
        clip = read_clip(ClipRequest(path, first / 25, 3, 25.0, HEIGHT, WIDTH))
        assert [number_of(frame) for frame in clip] == [first, first + 1, first + 2]


def test_only_the_span_is_decoded(tmp_path, monkeypatch):
    options = {"g": "25", "x264-params": "scenecut=0"}
    path = write_film(tmp_path / "a.mp4", [numbered(n) for n in range(500)], codec_options=options)
    decoded = []

    def counted(container, video_stream):
        for timed in timed_frames(container, video_stream):
            decoded.append(timed[0])
            yield timed

    timed_frames = stream.timed_frames
    monkeypatch.setattr(stream, "timed_frames", counted)
    read_clip(ClipRequest(path, 15.0, 5, 25.0, HEIGHT, WIDTH))
    assert len(decoded) <= 25 + 5 + 1


def test_reading_on_gives_the_same_frames_and_decodes_once(tmp_path, monkeypatch):
    path = write_film(tmp_path / "a.mp4", [numbered(n) for n in range(120)])
    other = write_film(tmp_path / "b.mp4", [numbered(200 + n) for n in range(20)])
    decoded = []
    timed_frames = stream.timed_frames
    monkeypatch.setattr(stream, "timed_frames", lambda c, s: (decoded.append(t) or t for t in timed_frames(c, s)))
    with VideoReader() as reader:
        for first in range(0, 110, 10):
            clip = reader.read_clip(ClipRequest(path, first / 25, 10, 25.0, HEIGHT, WIDTH))
            assert [number_of(frame) for frame in clip] == list(range(first, first + 10))
        assert len(decoded) <= 112
        assert number_of(reader.read_clip(ClipRequest(other, 0.4, 1, 25.0, HEIGHT, WIDTH))[0]) == 210
        assert number_of(reader.read_clip(ClipRequest(path, 0.4, 1, 25.0, HEIGHT, WIDTH))[0]) == 10
        with pytest.raises(VideoError, match="ends at"):
            reader.read_clip(ClipRequest(path, 4.0, 100, 25.0, HEIGHT, WIDTH))
        assert number_of(reader.read_clip(ClipRequest(path, 4.0, 1, 25.0, HEIGHT, WIDTH))[0]) == 100


def test_ten_bit_full_range_and_limited_range_give_the_same_colours(tmp_path):
    grey = [np.full((HEIGHT, WIDTH, 3), value, np.uint8) for value in (16, 40, 128, 235)]
    for name, arguments in {
        "limited": {"color_range": ColorRange.MPEG},
        "full": {"color_range": ColorRange.JPEG},
        "ten_bit": {"pix_fmt": "yuv420p10le", "codec_options": {"crf": "1"}},
    }.items():
        path = write_film(tmp_path / f"{name}.mp4", grey, **arguments)
        clip = read_clip(ClipRequest(path, 0.0, 4, 25.0, HEIGHT, WIDTH))
        assert clip.mean(axis=(1, 2, 3)) == pytest.approx([16, 40, 128, 235], abs=2), name


def pq(nits):
    """SMPTE ST 2084: brightness to code value."""
    power = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(nits):
    """ARIB STD-B67 on a screen of 1,000 nits, for greys."""
    light = (nits / 1000) ** (1 / 1.2)
    bright = 0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-9)) + 0.55991073
    return np.where(light <= 1 / 12, np.sqrt(3 * light), bright)


def write_hdr(path, code, transfer, matrix="bt2020nc"):
    """A row of greys of known brightness, tagged as a camera or a disc would."""
    numbers = {"smpte2084": 16, "arib-std-b67": 18, "bt2020nc": 9, "ictcp": 14}
    values = np.repeat(np.round(64 + code * 876).astype(np.uint16), 16)
    picture = np.full((96, len(values)), 512, np.uint16)
    picture[:64] = values
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25)
        stream.width, stream.height, stream.pix_fmt = len(values), 64, "yuv420p10le"
        screen = "G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(10000000,1)"  # peak: 1,000 nits
        stream.options = {
            # No reordering, one thread: the muxer sometimes refused the last packet for its times.
            "x265-params": f"log-level=none:bframes=0:frame-threads=1:pools=none:qp=4:colorprim=bt2020:"
            f"transfer={transfer}:colormatrix={matrix}:"
            f"master-display={screen}:max-cll=1000,400"
        }
        for index in range(2):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p10le")  # the encoder may still read the last one
            frame.colorspace, frame.color_range = numbers[matrix], int(ColorRange.MPEG)
            frame.color_trc, frame.color_primaries = numbers[transfer], 9
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("transfer", "curve"), [("smpte2084", pq), ("arib-std-b67", hlg)])
def test_hdr_is_mapped_to_the_whole_ordinary_range(tmp_path, transfer, curve):
    nits = np.array([0.001, 1, 10, 50, 100, 203, 400, 1000])
    path = write_hdr(tmp_path / "a.mp4", curve(nits), transfer)
    assert probe(path).width == 128
    clip = read_clip(ClipRequest(path, 0.0, 2, 25.0, 64, 128))
    greys = clip[:, 32, 8::16].astype(int)
    assert (greys.max(axis=2) - greys.min(axis=2)).max() <= 2  # no tint
    assert (greys[0] == greys[1]).all()
    levels = greys[0, :, 0]
    assert levels[0] <= 2
    assert levels[-1] >= 250
    assert (np.diff(levels) >= 10).all()  # nothing is clipped, ...
    assert 160 <= levels[5] <= 215  # ... and paper white, 203 nits by ITU-R BT.2408, stays bright


def test_hdr_that_only_its_own_players_show_is_refused(tmp_path):
    path = write_hdr(tmp_path / "a.mkv", pq(np.array([1.0, 100, 200, 300])), "smpte2084", "ictcp")
    for use in (probe, lambda path: read_clip(ClipRequest(path, 0.0, 1, 25.0, 64, 64))):
        with pytest.raises(VideoError, match=r"HDR video .*convert it"):
            use(path)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.mov", "qtrle", "argb"), ("a.webm", "libvpx-vp9", "yuva420p"), ("a.webm", "libvpx", "yuva420p")],
)
def test_transparency_is_put_on_the_background(tmp_path, name, codec, pix_fmt):
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:, : WIDTH // 2] = 0
    frame = np.concatenate([quadrants(), alpha], axis=2)
    options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
    path = write_film(tmp_path / name, [frame] * 3, codec=codec, pix_fmt=pix_fmt, codec_options=options)
    clip = read_clip(ClipRequest(path, 0.0, 1, 25.0, HEIGHT, WIDTH, (10, 130, 250)))
    assert clip[0, 8, 8].tolist() == pytest.approx([10, 130, 250], abs=3)
    assert clip[0, -8, 8].tolist() == pytest.approx([10, 130, 250], abs=3)
    assert corners(clip[0])[1::2] == [GREEN, WHITE]


def test_gif(tmp_path):
    path = write_film(tmp_path / "a.gif", [quadrants()] * 3, codec="gif", pix_fmt="rgb8", time_base=Fraction(1, 100))
    assert corners(read_clip(ClipRequest(path, 0.0, 2, 20.0, HEIGHT, WIDTH))[1]) == [RED, GREEN, BLUE, WHITE]


def test_edit_lists(tmp_path):
    # Negative times become an edit list that starts playing in the middle of the stored frames.
    cut = write_film(tmp_path / "cut.mp4", [numbered(n) for n in range(20)], [n * 40 - 200 for n in range(20)])
    assert probe(cut).duration == pytest.approx(0.6, abs=0.01)
    assert [number_of(f) for f in read_clip(ClipRequest(cut, 0.0, 3, 25.0, HEIGHT, WIDTH))] == [5, 6, 7]
    late = write_film(tmp_path / "late.mp4", [numbered(n) for n in range(10)], [n * 40 + 2000 for n in range(10)])
    assert probe(late).duration == pytest.approx(0.4, abs=0.01)
    assert [number_of(f) for f in read_clip(ClipRequest(late, 0.2, 3, 25.0, HEIGHT, WIDTH))] == [5, 6, 7]


def test_the_largest_of_several_streams(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        streams = []
        for height, width in ((32, 32), (HEIGHT, WIDTH), (32, 48)):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv444p"
            streams.append(stream)
        for stream in streams:
            frame = av.VideoFrame.from_ndarray(quadrants(stream.height, stream.width), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    assert (probe(path).height, probe(path).width) == (HEIGHT, WIDTH)


@pytest.mark.parametrize(("height", "width"), [(63, 95), (1, 1), (2, 501), (64, 96)])
def test_odd_sizes_and_any_target(tmp_path, height, width):
    path = write_film(tmp_path / "a.mp4", [quadrants(height, width)] * 2)
    info = probe(path)
    assert (info.height, info.width) == (height, width)
    for target in ((48, 80), (17, 31), (96, 64)):
        assert read_clip(ClipRequest(path, 0.0, 2, 25.0, *target)).shape == (2, *target, 3)


def test_cover_and_centre_crop(tmp_path):
    path = write_film(tmp_path / "a.mp4", [quadrants()] * 2)
    clip = read_clip(ClipRequest(path, 0.0, 1, 25.0, 32, 32))
    assert corners(clip[0]) == [RED, GREEN, BLUE, WHITE]
    # 96 wide becomes 48, of which the middle 32 are kept: 8 of each side are gone.
    expected = np.asarray(Image.fromarray(quadrants()).resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40]
    assert np.abs(clip[0].astype(int) - expected).mean() < 6


def test_a_clip_beyond_the_end_is_refused_with_both_times(tmp_path):
    path = write_film(tmp_path / "a.mp4", [numbered(n) for n in range(25)])
    assert len(read_clip(ClipRequest(path, 0.0, 25, 25.0, HEIGHT, WIDTH))) == 25
    with pytest.raises(VideoError, match=r"ends at 1\.000 s, the clip needs a frame at 1\.\d+ s"):
        read_clip(ClipRequest(path, 0.0, 30, 25.0, HEIGHT, WIDTH))
    with pytest.raises(VideoError):
        read_clip(ClipRequest(path, 50.0, 1, 25.0, HEIGHT, WIDTH))


def test_a_cut_off_file_is_as_long_as_what_is_left(tmp_path):
    path = write_film(
        tmp_path / "a.mp4",
        [numbered(n) for n in range(200)],
        codec_options={"qp": "0", "bf": "0"},
        muxer_options={"movflags": "faststart"},
    )
    whole = probe(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    left = probe(path)
    assert whole.duration == pytest.approx(8.0)
    assert 4.0 < left.duration < 7.0
    count = int(left.duration * 25)
    assert [number_of(f) for f in read_clip(ClipRequest(path, 0.0, count, 25.0, HEIGHT, WIDTH))] == list(range(count))
    with pytest.raises(VideoError):
        read_clip(ClipRequest(path, 0.0, 200, 25.0, HEIGHT, WIDTH))


def test_damaged_pixels_are_refused_not_trained_on(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (30, HEIGHT, WIDTH, 3), np.uint8)
    path = write_film(tmp_path / "a.mp4", list(frames), codec_options={"crf": "20", "x264-params": "scenecut=0"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40_000] = np.random.default_rng(1).bytes(40_000)
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"damaged|decoded"):
        read_clip(ClipRequest(path, 0.0, 30, 25.0, HEIGHT, WIDTH))


def test_hostile_content_opens_nothing(tmp_path):
    good = write_film(tmp_path / "good.mp4", [quadrants()] * 2)
    for name, content in hostile_files(good).items():
        path = tmp_path / name
        path.write_bytes(content)
        for use in (probe, lambda path: read_clip(ClipRequest(path, 0.0, 1, 25.0, 64, 64))):
            with pytest.raises(VideoError, match=r"not a video of an accepted format|empty"):
                use(path)


def test_a_name_is_never_a_protocol(tmp_path, monkeypatch):
    good = write_film(tmp_path / "good.mp4", [quadrants()] * 2)
    name = f"concat:{good.name}"
    (tmp_path / name).write_bytes(good.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert probe(tmp_path / name).width == WIDTH


def test_gigantic_pictures_are_refused_before_they_are_decoded(tmp_path):
    gif = write_film(tmp_path / "a.gif", [quadrants()] * 2, codec="gif", pix_fmt="rgb8", time_base=Fraction(1, 100))
    content = bytearray(gif.read_bytes())
    content[6:10] = (60_000).to_bytes(2, "little") * 2
    gif.write_bytes(content)
    with pytest.raises(VideoError):
        probe(gif)
    image = tmp_path / "a.png"
    Image.new("1", (8192, 8192)).save(image)
    assert 8192 * 8192 > MAX_PIXELS
    with pytest.raises(VideoError, match="8192x8192"):
        probe(image)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path, tmp_path / "pipe.mp4"):
        with pytest.raises(VideoError, match="not a regular file"):
            probe(path)
    with pytest.raises(VideoError, match="cannot be opened"):
        read_clip(ClipRequest(tmp_path / "missing.mp4", 0.0, 1, 1.0, 8, 8))


def test_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8  # shown turned counter-clockwise
    Image.fromarray(quadrants()).save(tmp_path / "a.png", exif=exif)
    info = probe(tmp_path / "a.png")
    assert (info.kind, info.height, info.width, info.num_frames) == ("image", WIDTH, HEIGHT, 1)
    assert corners(read_clip(ClipRequest(tmp_path / "a.png", 0.0, 1, 24.0, 96, 64))[0]) == TURNED[90]
    with pytest.raises(VideoError, match="9 frames"):
        read_clip(ClipRequest(tmp_path / "a.png", 0.0, 9, 24.0, 64, 64))
    rgba = np.concatenate([quadrants(), np.zeros((HEIGHT, WIDTH, 1), np.uint8)], axis=2)
    Image.fromarray(rgba).save(tmp_path / "b.webp", lossless=True)
    assert np.all(read_clip(ClipRequest(tmp_path / "b.webp", 0.0, 1, 24.0, 32, 32, (1, 2, 3))) == (1, 2, 3))
    (tmp_path / "c.jpg").write_bytes(b"GIF89a nonsense")
    with pytest.raises(VideoError, match="cannot be decoded"):
        probe(tmp_path / "c.jpg")


@pytest.mark.parametrize(("height", "width"), [(64, 96), (63, 95)])
def test_write_mp4_round_trips(tmp_path, height, width):
    frames = np.stack([quadrants(height, width)] * 6)
    write_mp4(tmp_path / "new" / "a.mp4", frames, 8.0)
    info = probe(tmp_path / "new" / "a.mp4")
    assert (info.height, info.width, info.num_frames, info.fps) == (height + height % 2, width + width % 2, 6, 8.0)
    clip = read_clip(ClipRequest(tmp_path / "new" / "a.mp4", 0.0, 6, 8.0, info.height, info.width))
    assert corners(clip[-1]) == [RED, GREEN, BLUE, WHITE]
    assert np.abs(clip[0, 8, 8].astype(int) - RED).max() <= 6
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]


def test_the_same_frames_are_written_to_the_same_bytes(tmp_path):
    """Or a demo's clips, and all that is trained on them, would differ from machine to machine, and from day to day."""
    coarse = np.random.default_rng(0).integers(0, 255, (17, 8, 8, 3)).astype(np.uint8)
    frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
    written = set()
    for number in range(12):
        write_mp4(tmp_path / f"{number}.mp4", frames, 16.0)
        written.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(written) == 1


def test_write_mp4_leaves_nothing_behind_when_it_fails(tmp_path):
    with pytest.raises(ValueError, match="Unexpected"):
        write_mp4(tmp_path / "a.mp4", np.zeros((2, 64, 64, 2), np.uint8), 8.0)
    assert not list(tmp_path.iterdir())


ODD = {  # name: height, width, frames at 24 a second, or the reason
    "autoeditor__SAR-2by3.mp4": (360, 427, 48),
    "decord__corrupted.mp4": "cannot be decoded|damaged",
    "decord__unordered.mov": (50, 50, 3),
    "decord__video_0.mov": (320, 568, 3),
    "decord__video_90.mov": (568, 320, 3),
    "decord__video_180.mov": (320, 568, 3),
    "decord__video_270.mov": (568, 320, 3),
    "mediabunny__multiple-aac-tracks.mp4": "no video stream",
    "moviepy__bitmap.mp4": (1, 1, 120),
    "moviepy__transparent.webm": (200, 200, 120),
    "torchcodec__h264_10bits.mp4": (200, 200, 24),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_of_other_projects(shared_videos, name):
    path = shared_videos / "odd" / name
    expected = ODD[name]
    if isinstance(expected, str):
        with pytest.raises(VideoError, match=expected):
            read_clip(ClipRequest(path, 0.0, 120, 24.0, 32, 32))
        return
    height, width, num_frames = expected
    info = probe(path)
    assert (info.height, info.width) == (height, width)
    assert read_clip(ClipRequest(path, 0.0, num_frames, 24.0, 32, 32)).shape == (num_frames, 32, 32, 3)


def test_the_part_of_a_damaged_file_that_is_sound_can_be_used(shared_videos):
    assert len(read_clip(ClipRequest(shared_videos / "odd" / "decord__corrupted.mp4", 0.0, 20, 10.0, 32, 32))) == 20


def test_a_clip_is_asked_for_by_its_path_as_well(tmp_path):
    path = write_film(tmp_path / "a.mp4", [quadrants()] * 8)
    request = ClipRequest(path, 0.0, 5, 25.0, 32, 48)
    np.testing.assert_array_equal(read_clip(path, 0.0, 5, 25.0, 32, 48), read_clip(request))
