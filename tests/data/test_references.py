"""References from a table to batches: encoded as clips of their own, read with the clip that they go with."""

import csv
import shutil

import numpy as np
import pytest
import torch

from vidlit.data.datamodule import LatentDataModule
from vidlit.data.demo_clips import Scene
from vidlit.diffusion.conditions import REFERENCE
from vidlit.video.mp4 import write_mp4

BUCKET = "5x64x64"


@pytest.fixture(scope="module")
def clips(demo, tmp_path_factory):
    """Four clips: the reference of each is the next one, but the last one's, which is too short."""
    folder = tmp_path_factory.mktemp("references")
    rows = [("file_name", "caption", "reference")]
    for number in range(4):
        scene = Scene.draw(2 * number)
        frames = scene.render(np.random.default_rng(number))[:5]
        write_mp4(folder / f"{number}.mp4", frames, 16.0)
        rows.append((f"{number}.mp4", scene.caption, f"{number + 1}.mp4"))
    write_mp4(folder / "4.mp4", frames[:2], 16.0)
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def opened(demo, clips, store, **options):
    base = str(demo.dir / "base")
    data = LatentDataModule(clips, store, base, [BUCKET], fps=16.0, references=True, **options)
    return data, data.encode(accelerator="cpu", devices=1)


def test_batches_hold_the_latents_of_references(demo, clips, tmp_path):
    data, report = opened(demo, clips, tmp_path / "latents")
    assert [(bad.clip_id, bad.reason) for bad in report.quarantined] == [
        ("4.mp4 of 3.mp4@0.000-0.312", "ends at 0.125 s, the clip needs a frame at 0.188 s")
    ]
    (lost,) = data.usage.quarantined_clips
    assert (lost.clip_id, lost.video) == ("3.mp4@0.000-0.312", "3.mp4")
    assert lost.reason.startswith("its reference 4.mp4 ends at 0.125 s")
    usable = [clip for clip in data.plan.clips if clip.source.video != "3.mp4"]
    batch = data.dataset(usable).read_batch([0, 1, 2])
    latents = dict(zip("012", batch.latents, strict=True))
    for row, number in enumerate("012"):
        if number != "2":
            torch.testing.assert_close(batch.conditioning.extras[REFERENCE][row], latents[f"{int(number) + 1}"])
    assert batch.conditioning.num_given == batch.latents[0, 0].numel()
    assert data.prompt(usable[0].source.caption).extras == {}


def test_clips_that_were_stored_without_references_stay(demo, clips, tmp_path):
    base = str(demo.dir / "base")
    before = LatentDataModule(clips, tmp_path / "latents", base, [BUCKET], fps=16.0)
    assert before.encode(accelerator="cpu", devices=1).encoded == 4
    data, report = opened(demo, clips, tmp_path / "latents")
    assert (report.encoded, report.stored) == (0, 7)  # those of 0 to 2 are clips 1 to 3
    assert before.clip_identity.differences(data.clip_identity)


def test_another_reference_is_another_clip(demo, clips, tmp_path):
    data, _ = opened(demo, clips, tmp_path / "latents")
    other = tmp_path / "other"
    shutil.copytree(clips, other)
    write_mp4(other / "1.mp4", Scene.draw(100).render(np.random.default_rng(9))[:5], 16.0)
    changed, _ = opened(demo, other, tmp_path / "latents")
    assert changed.clip_identity.differences(data.clip_identity) == [
        "1 clip is of another file (1.mp4@0.000-0.312)",
        "1 clip is prepared otherwise (0.mp4@0.000-0.312)",
    ]
