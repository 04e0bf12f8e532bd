"""The sound of a clip: its span to the sample, whatever the file, and silence where there is none."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.video.films import HEIGHT, WIDTH, numbered, write_film
from vidlit.video.frames import ClipRequest, VideoError, VideoReader, probe
from vidlit.video.isolation import IsolatedReader
from vidlit.video.mp4 import write_mp4
from vidlit.video.sound import Sound, num_samples, read_sound

RATE = 16_000
SECONDS = 6


def tone(time):
    """A chirp, which is at no two moments the same."""
    return 0.5 * np.sin(2 * np.pi * (200 * time + 40 * time**2))


def write_sounding(
    path, *, codec="aac", rate=48_000, layout="stereo", gains=(1.0, 0.5), begin=0.0, sample="fltp", gap=()
):
    """A film of 25 frames a second with a chirp, louder on the left; ``gap`` is in seconds."""
    time = np.arange(round(SECONDS * rate)) / rate
    channels = np.stack([gain * tone(time) for gain in gains]).astype(np.float32)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=25)
        pictures.height, pictures.width, pictures.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        pictures.options = {"g": "50"}
        sounds = container.add_stream(codec, rate=rate, layout=layout, bit_rate=320_000)
        for first in range(0, len(time), 1024):
            if gap and gap[0] <= first / rate < gap[1]:
                continue
            part = np.ascontiguousarray(channels[:, first : first + 1024])
            if sample == "s16":
                part = np.ascontiguousarray((part.T * 32767).round().astype(np.int16).reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(part, sample, layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = first + round(begin * rate)
            container.mux(sounds.encode(frame))
        container.mux(sounds.encode(None))
        for number in range(25 * SECONDS):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
    return path


def clip(path, start=0.0, num_frames=25, fps=25.0):
    return ClipRequest(path, start, num_frames, fps, HEIGHT, WIDTH)


def lag(sound, start, gain=1.0):
    """Samples by which a chirp comes late, after making sure that it is one: a codec's first frame is left out."""
    used = slice(1000, -200)

    def mistake(late):
        return np.abs(sound - gain * tone(start + (np.arange(len(sound)) - late) / RATE))[used].max()

    late = min(np.arange(-64, 64.5, 0.5), key=mistake)
    assert mistake(late) < 0.05
    return late


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_sounding(tmp_path_factory.mktemp("films") / "a.mp4")


@pytest.mark.parametrize(("start", "num_frames", "fps"), [(0.0, 25, 25.0), (0.4, 33, 24.0), (4.96, 26, 25.0)])
def test_the_sound_is_that_of_the_span(film, start, num_frames, fps):
    sound = read_sound(clip(film, start, num_frames, fps), RATE)
    assert sound.shape == (2, round(num_frames / fps * RATE)) == (2, num_samples(num_frames, fps, RATE))
    assert sound.dtype == np.float32
    assert abs(lag(sound[0], start)) <= 1
    assert abs(lag(sound[1], start, 0.5)) <= 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", {"codec": "libopus"}),
        ("a.mkv", {"codec": "libmp3lame", "rate": 44_100}),
        ("a.mov", {"codec": "pcm_s16le", "sample": "s16", "rate": 22_050}),
        ("a.avi", {"codec": "pcm_s16le", "sample": "s16"}),
        ("a.ts", {"rate": 44_100}),
    ],
)
def test_other_containers_and_codecs(tmp_path, name, options):
    path = write_sounding(tmp_path / name, **options)
    for start in (0.0, 3.6):
        sound = read_sound(clip(path, start), RATE)
        assert abs(lag(sound[0], start)) <= 16, "a millisecond, as Matroska rounds"
        assert abs(lag(sound[1], start, 0.5)) <= 16


def test_one_channel_is_heard_on_both_sides_and_six_are_mixed_down(tmp_path):
    mono = read_sound(clip(write_sounding(tmp_path / "mono.mp4", layout="mono", gains=(1.0,)), 1.0), RATE)
    assert abs(lag(mono[0], 1.0)) <= 1
    np.testing.assert_array_equal(mono[0], mono[1])
    gains = (0.3, 0.1, 0.2, 0.0, 0.0, 0.0)  # left, right, centre, ...
    six = write_sounding(tmp_path / "six.mov", codec="pcm_s16le", sample="s16", layout="5.1", gains=gains)
    sound = read_sound(clip(six, 1.0), RATE)
    assert abs(lag(sound[0], 1.0, 0.3 + 0.2 / np.sqrt(2))) <= 1
    assert abs(lag(sound[1], 1.0, 0.1 + 0.2 / np.sqrt(2))) <= 1


def test_channels_that_the_file_does_not_name_are_mixed(tmp_path):
    path = write_sounding(
        tmp_path / "a.mov", codec="pcm_s16le", sample="s16", layout="4 channels", gains=(0.4, 0.2, 0.0, 0.0)
    )
    assert np.abs(read_sound(clip(path, 1.0), RATE)).max(axis=1) == pytest.approx((0.2, 0.1), rel=0.02)


def test_sound_that_begins_late_pauses_and_ends_early_is_silent_there(tmp_path):
    path = write_sounding(tmp_path / "a.mkv", codec="pcm_s16le", sample="s16", begin=1.5, gap=(2.0, 3.0))
    sound = read_sound(clip(path, 1.0, 125), RATE)[0]
    assert not sound[: RATE // 2 - 20].any()
    assert abs(lag(sound[RATE // 2 :][: 2 * RATE - 800], 0.0)) <= 16
    assert not sound[round(2.55 * RATE) : round(3.45 * RATE)].any()
    assert abs(lag(sound[round(3.55 * RATE) :], 3.05)) <= 16
    assert not read_sound(clip(path, 0.0, 25), RATE).any()


def test_where_there_is_no_sound_it_is_silent(tmp_path):
    silent = write_film(tmp_path / "a.mp4", [numbered(number) for number in range(25)])
    assert probe(silent).has_sound is False
    sound = read_sound(clip(silent, 0.2, 9), RATE)
    assert sound.shape == (2, 5760)
    assert not sound.any()
    image = tmp_path / "a.png"
    av.VideoFrame.from_ndarray(numbered(1), format="rgb24").to_image().save(image)
    assert probe(image).has_sound is False
    assert not read_sound(clip(image, 0.0, 1), RATE).any()


def test_damaged_sound_is_an_error_where_it_is_heard(film, tmp_path):
    broken = tmp_path / "a.mp4"
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size and 2.0 < packet.pts / RATE / 3 < 2.2]
        places = [(packet.pos, packet.size) for packet in packets]
    for position, size in places:
        data[position : position + size] = b"\xff" * size
    broken.write_bytes(data)
    assert probe(broken).has_sound is True
    assert VideoReader().read_clip(clip(broken, 1.6)).any()
    with IsolatedReader() as reader:
        with pytest.raises(VideoError, match="its sound cannot be decoded"):
            reader.read_sound(clip(broken, 1.6), RATE)
        for start in (0.4, 3.0):  # before it, and within the run-in
            assert abs(lag(reader.read_sound(clip(broken, start), RATE)[0], start)) <= 1
        again = reader.read_sound(clip(film, 3.0), RATE)
        np.testing.assert_array_equal(again, read_sound(clip(film, 3.0), RATE))
        with pytest.raises(VideoError, match="cannot be opened"):
            reader.read_sound(replace(clip(broken), path=tmp_path / "none.mp4"), RATE)


@pytest.mark.parametrize("rate", [24_000, 48_000])
def test_written_sound_comes_back_with_its_frames(tmp_path, rate):
    time = np.arange(round(17 / 24 * rate)) / rate
    sound = Sound(np.stack([tone(time), 0.5 * tone(time)]).astype(np.float32), rate)
    frames = np.stack([numbered(number) for number in range(17)])
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, frames, 24.0, sound)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    info = probe(tmp_path / "a.mp4")
    assert (info.num_frames, info.fps, info.has_sound) == (17, 24.0, True)
    heard = read_sound(clip(tmp_path / "a.mp4", 0.0, 17, 24.0), RATE)
    assert heard.shape == (2, 11333)
    assert abs(lag(heard[0], 0.0)) <= 1
    assert abs(lag(heard[1], 0.0, 0.5)) <= 1
