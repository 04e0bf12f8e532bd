import numpy as np
from PIL import Image

from tests.video.films import texture, write_film
from vidlit.video.buckets import Bucket
from vidlit.video.cut import Cutting, plan_clips
from vidlit.video.duplicates import NUM_FRAMES, find_near_duplicates, fingerprint, tie_groups
from vidlit.video.frames import ClipRequest, probe, read_clip


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
    same = ["a.mp4", "half.mp4", "poor.webm", "slow.mp4"]
    assert pairs == {(first, second) for first in same for second in same if first < second}


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
