import csv

import diffusers
import numpy as np
import pytest
import torch
import transformers

from vidlit.data.demo_clips import FRAMINGS, Scene
from vidlit.data.demo_folder import STATISTICS_VIDEOS, Demo
from vidlit.video.frames import ClipRequest, read_clip
from vidlit.video.sources import read_sources


def rows(folder):
    with (folder / "clips" / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_scene_is_a_function_of_its_number():
    assert Scene.draw(3) == Scene.draw(3)
    assert len({Scene.draw(number).caption for number in range(200)}) > 190
    scene = Scene.draw(3)
    first, again, other = (scene.render(np.random.default_rng([3, take])) for take in (0, 0, 1))
    assert np.array_equal(first, again)
    assert first.shape == (scene.num_frames, *scene.size, 3)
    assert first.dtype == np.uint8
    assert np.abs(first.astype(int) - other).mean() > 1  # takes differ


def test_takes_of_a_scene_look_more_alike_than_scenes():
    """Or there would be nothing to learn by heart, and nothing to hold out."""

    def histogram(number, take):
        frames = Scene.draw(number).render(np.random.default_rng([number, take]))
        return np.histogramdd(frames.reshape(-1, 3), bins=6, range=[(0, 256)] * 3)[0].ravel() / frames[..., 0].size

    def distance(a, b):
        return np.abs(histogram(*a) - histogram(*b)).sum()

    same = np.mean([distance((number, 0), (number, 1)) for number in range(12)])
    others = np.mean([distance((number, 0), (number + 1, 0)) for number in range(12)])
    assert same < 0.5 * others


def test_things_move():
    for number in range(8):
        frames = Scene.draw(number).render(np.random.default_rng([number, 0])).astype(int)
        assert np.abs(np.diff(frames, axis=0)).mean() > 0.5, number


def test_a_few_videos_have_several_shapes_and_durations():
    scenes = [Scene.draw(number) for number in range(len(FRAMINGS))]
    assert {(scene.num_frames, *scene.size) for scene in scenes} == set(FRAMINGS)
    assert len({num_frames for num_frames, _, _ in FRAMINGS}) > 1
    assert len({round(width / height, 2) for _, height, width in FRAMINGS}) > 1


def test_a_demo_folder_is_complete(demo):
    listed = rows(demo.dir)
    assert len(listed) == 12
    assert {row["file_name"] for row in listed} == {path.name for path in (demo.dir / "clips").glob("*.mp4")}
    assert len({row["group"] for row in listed}) == 6
    assert {row["caption"] for row in listed} == {Scene.draw(number).caption for number in range(6)}
    sources = read_sources(demo.dir / "clips")
    assert len(sources.videos) == 12
    assert not sources.quarantined


def test_written_clips_are_what_was_rendered(demo):
    """H.264 loses a little."""
    scene = Scene.draw(1)
    frames = scene.render(np.random.default_rng([1, 1]))
    path = demo.dir / "clips" / "scene_001_take_1.mp4"
    read = read_clip(ClipRequest(path, 0.0, scene.num_frames, 16.0, *scene.size))
    error = (np.asarray(read).astype(float) - frames).reshape(scene.num_frames, -1)
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 27


def test_writing_again_touches_nothing_and_a_larger_demo_holds_the_smaller(tmp_path):
    Demo(tmp_path, num_videos=2, clips_per_video=1).write_clips()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").glob("*.mp4")}
    Demo(tmp_path, num_videos=3, clips_per_video=2).write_clips()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(rows(tmp_path)) == 6
    Demo(tmp_path, num_videos=1, clips_per_video=2).write_clips()
    assert [row["file_name"] for row in rows(tmp_path)] == ["scene_000_take_0.mp4", "scene_000_take_1.mp4"]


def test_the_base_is_a_real_model_and_the_same_everywhere(demo, tmp_path):
    base = demo.dir / "base"
    transformer = diffusers.LTXVideoTransformer3DModel.from_pretrained(base / "transformer")
    assert 1e6 < transformer.num_parameters() < 2e6
    encoder = transformers.T5EncoderModel.from_pretrained(base / "text_encoder")
    tokens = transformers.AutoTokenizer.from_pretrained(base / "tokenizer")(["a disc"], return_tensors="pt")
    assert encoder(**tokens).last_hidden_state.shape == (1, 7, 64)

    torch.manual_seed(99)  # the base must not depend on what ran before
    state = torch.random.get_rng_state()
    Demo(tmp_path, num_videos=1, clips_per_video=1).write()
    assert torch.equal(torch.random.get_rng_state(), state)
    for part in ("transformer", "text_encoder", "vae"):
        for path in (base / part).iterdir():
            assert (tmp_path / "base" / part / path.name).read_bytes() == path.read_bytes(), path


def test_the_codecs_statistics_come_from_other_videos_than_any_demo_has():
    assert min(STATISTICS_VIDEOS) > 100_000


@pytest.mark.parametrize("number", [0, 5, 999])
def test_captions_say_what_is_seen(number):
    scene = Scene.draw(number)
    for word in (scene.shape, scene.direction, scene.colours[0], *scene.colours[2:]):
        assert word in scene.caption


def test_neon_is_another_look_of_other_scenes(tmp_path):
    painted, neon = ([Scene.draw(number, look) for number in range(8)] for look in ("painted", "neon"))
    assert not {scene.caption for scene in painted} & {scene.caption for scene in neon}
    assert all("neon" in scene.caption.lower() for scene in neon)
    assert neon[0].colours != painted[0].colours

    def brightness(scene):
        return np.median(scene.render(np.random.default_rng(0)))

    assert np.mean([brightness(scene) for scene in neon]) < 0.5 * np.mean([brightness(scene) for scene in painted])
    Demo(tmp_path, num_videos=1, clips_per_video=1, look="neon", base=False).write()
    assert [row["caption"] for row in rows(tmp_path)] == [neon[0].caption]
    assert not (tmp_path / "base").exists()
