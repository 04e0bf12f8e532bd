import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.video.films import texture, write_film
from vidlit.video.buckets import Bucket
from vidlit.video.cut import Cutting, plan_clips
from vidlit.video.frames import ClipRequest, probe, read_clip
from vidlit.video.repeats.duplicates import NUM_FRAMES, Fingerprint, find_near_duplicates, fingerprint, tie_groups


def fingerprints(paths):
    return {path.name: fingerprint(path, probe(path)) for path in paths}


def test_the_same_film_smaller_recompressed_and_at_another_rate_is_found(tmp_path):
    frames = texture(1, count=50)
    half = [np.asarray(Image.fromarray(frame).resize((48, 32))) for frame in frames]
    paths = [
        write_film(tmp_path / "a.mp4", frames),
        write_film(tmp_path / "half.mp4", half),
        write_film(tmp_path / "poor.webm", frames, codec="libvpx", pix_fmt="yuv420p", codec_options={"b": "60000"}),
        write_film(tmp_path / "slow.mp4", frames[::2], [n * 80 for n in range(25)]),
        write_film(tmp_path / "other.mp4", texture(2, count=50)),
        write_film(tmp_path / "backwards.mp4", texture(3, count=50)),
    ]
    pairs = {(first, second) for first, second, _ in find_near_duplicates(fingerprints(paths))}
    assert pairs == {("a.mp4", other) for other in ("half.mp4", "poor.webm", "slow.mp4")}


def test_strangers_in_the_dark_stay_strangers(tmp_path):
    generator = np.random.default_rng(0)
    paths = []
    for name in ("black", "night", "noise"):
        noise = generator.integers(0, 4, (20, 64, 96, 3), np.uint8) * (name != "black")
        paths.append(write_film(tmp_path / f"{name}.mp4", list(noise)))
    for seed in (1, 2):  # fades in from black: its first frames say nothing
        frames = texture(seed, count=40)
        faded = [(frame * min(1.0, index / 20)).astype(np.uint8) for index, frame in enumerate(frames)]
        paths.append(write_film(tmp_path / f"fade{seed}.mp4", faded))
    found = fingerprints(paths)
    assert found["black.mp4"].spread == found["night.mp4"].spread == (None,) * NUM_FRAMES
    assert not find_near_duplicates(found)


def test_long_films_are_sought_in(tmp_path):
    frames = texture(5, count=48)
    options = {"g": "12", "crf": "20"}
    long = write_film(tmp_path / "long.mp4", frames, [n * 1000 for n in range(48)], codec_options=options)
    short = write_film(tmp_path / "short.mp4", frames)
    assert probe(long).duration > 40
    assert len(find_near_duplicates(fingerprints([long, short]))) == 1


def test_images_need_to_be_closer(tmp_path):
    first, second = texture(1)[0], texture(2)[0]
    Image.fromarray(first).save(tmp_path / "a.png")
    Image.fromarray(first).resize((48, 32)).save(tmp_path / "b.jpg", quality=80)
    Image.fromarray(second).save(tmp_path / "c.png")
    pairs = find_near_duplicates(fingerprints([tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "c.png"]))
    assert [pair[:2] for pair in pairs] == [("a.png", "b.jpg")]


def looks(*codes):
    """A fingerprint of one picture after another, a second each."""
    text = [None if code is None else f"{code:016x}" for code in codes]
    return Fingerprint(tuple(text[:NUM_FRAMES]), tuple((number / 4, code) for number, code in enumerate(text)))


def test_many_copies_cost_a_pair_each():
    """All pairs of 1500 copies were 1.1 million."""
    generator = np.random.default_rng(0)
    film = [int(code) for code in generator.integers(0, 2**63, 12)]
    copies = {f"copy{number:04d}": looks(*film) for number in range(1500)}
    # Encoded anew, each differs by another bit in each frame.
    anew = {f"anew{number:04d}": looks(*(code ^ (1 << number % 64) for code in film)) for number in range(1500)}
    alone = {f"other{number}": looks(*map(int, generator.integers(0, 2**63, 12))) for number in range(50)}
    began = time.monotonic()
    pairs = find_near_duplicates({**copies, **anew, **alone})
    assert time.monotonic() - began < 20
    assert len(pairs) == 2999
    groups = tie_groups([(video, video) for video in (*copies, *anew, *alone)], [pair[:2] for pair in pairs])
    assert {groups[video] for video in (*copies, *anew)} == {"anew0000"}
    assert all(groups[video] == video for video in alone)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 63), max_size=3)), max_size=12),
    st.lists(st.integers(0, 1), max_size=4),
)
def test_groups_are_those_that_all_pairs_would_give(videos, flat):
    films = np.random.default_rng(1).integers(0, 2**63, (4, 10))
    found = {}
    for number, (film, flipped) in enumerate(videos):
        codes = [int(code) ^ sum(1 << bit for bit in set(flipped)) for code in films[film]]
        found[f"v{number:02d}"] = looks(*codes)
    found |= {f"flat{number}": looks(*[None] * 10) for number in range(len(flat))}
    pairs = find_near_duplicates(found)
    groups = tie_groups([(video, video) for video in found], [pair[:2] for pair in pairs])
    assert len(pairs) == len(found) - len(set(groups.values()))  # none is idle
    of_film = {}
    for number, (film, _) in enumerate(videos):
        of_film.setdefault(film, set()).add(groups[f"v{number:02d}"])
    assert all(len(names) == 1 for names in of_film.values())
    assert len(set().union(*of_film.values())) == len(of_film)
    assert all(groups[f"flat{number}"] == f"flat{number}" for number in range(len(flat)))


def test_damaged_films_are_compared_by_what_can_be_seen(shared_videos):
    path = shared_videos / "odd" / "decord__corrupted.mp4"
    found = fingerprint(path, probe(path))
    assert found.spread[0] is not None
    assert found.spread[-1] is None


def test_groups_are_merged_whatever_the_order():
    groups = [("a", "x"), ("b", "y"), ("c", "y"), ("d", "d"), ("e", "e")]
    pairs = [("a", "c"), ("e", "d")]
    expected = {"a": "x", "b": "x", "c": "x", "d": "d", "e": "d"}
    assert tie_groups(groups, pairs) == expected
    assert tie_groups(groups[::-1], [pair[::-1] for pair in pairs[::-1]]) == expected


def test_rows_of_one_video_that_disagree_are_one_group():
    assert tie_groups([("a", "y"), ("a", "x"), ("b", "y")], []) == {"a": "x", "b": "x"}


def test_real_films(shared_videos):
    plan = plan_clips(shared_videos / "content", [Bucket(9, 48, 80)], 8.0, Cutting("head"))
    tied = [(pair.first, pair.second, pair.group) for pair in plan.near_duplicates]
    assert tied == [("finetrainers__hiker.mp4", "finetrainers__hiker_tiny.mp4", "hiker")]


def test_real_films_recompressed(shared_videos, tmp_path):
    originals = sorted((shared_videos / "content").glob("*.mp4"))
    originals = [path for path in originals if "tiny" not in path.name and "rotate" not in path.name]
    found = fingerprints(originals)
    for path in originals:
        info = probe(path)
        fps = min(info.fps, 8.0)
        frames = read_clip(
            ClipRequest(path, 0.0, int(info.duration * fps), fps, info.height // 4 * 2, info.width // 4 * 2)
        )
        copy = write_film(
            tmp_path / f"copy_{path.name}",
            list(frames),
            [round(n * 1000 / fps) for n in range(len(frames))],
            pix_fmt="yuv420p",
            codec_options={"crf": "35"},
        )
        found[copy.name] = fingerprint(copy, probe(copy))
    pairs = {frozenset((first, second)) for first, second, _ in find_near_duplicates(found)}
    assert pairs == {frozenset((f"copy_{path.name}", path.name)) for path in originals}
