"""How many clips go through the autoencoder at once."""

import functools
from typing import ClassVar

import pytest
import torch

from tests.data.stand_ins import IDENTITY, PoolingEncoders, make_clips
from tests.latents.encode.test_missing import run
from vidlit.errors import UserError
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.encode import work as encode_work
from vidlit.latents.encode.work import Work
from vidlit.latents.encoding import Encoding
from vidlit.latents.recipe import Recipes
from vidlit.latents.store import LatentStore
from vidlit.video.buckets import Bucket


class SmallDevice(PoolingEncoders):
    """Runs out of memory where more clips than it has room for come at once."""

    tried: ClassVar[list[int]] = []

    def __init__(self, room):
        super().__init__()
        self.room = room

    def encode_video(self, frames, sound):
        self.tried.append(len(frames))
        if len(frames) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().encode_video(frames, sound)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(encode_work, "_fitting", {})
    SmallDevice.tried.clear()


@pytest.mark.parametrize("room", [1, 2, 3, 8])
def test_what_does_not_fit_at_once_goes_in_parts(tmp_path, room):
    clips = make_clips(11, buckets=[Bucket(5, 16, 16)])
    store = LatentStore(tmp_path / "store")
    report = run(clips, store, functools.partial(SmallDevice, room), encoding=Encoding(batch_size=6, num_workers=0))
    assert (report.encoded, report.quarantined) == (11, [])
    part = {1: 1, 2: 1, 3: 3, 8: 6}[room]
    assert max(tried for tried in SmallDevice.tried if tried <= room) == part
    assert sum(tried > room for tried in SmallDevice.tried) == {1: 2, 2: 2, 3: 1, 8: 0}[room], "remembered"
    run(clips, other := LatentStore(tmp_path / "other"))
    expected = LatentDataset.from_clips(other, clips, Recipes(IDENTITY))
    found = LatentDataset.from_clips(store, clips, Recipes(IDENTITY))
    assert all(torch.equal(found[row].latents, expected[row].latents) for row in range(11))


def test_a_clip_that_does_not_fit_alone_costs_itself_and_may_be_tried_again(tmp_path):
    clips = make_clips(4)
    store = LatentStore(tmp_path)
    report = run(clips, store, functools.partial(SmallDevice, 0))
    assert report.encoded == 0
    assert all("does not fit into the memory of the encoding device" in clip.words for clip in report.quarantined)
    assert all("the next run tries it again" in clip.words for clip in report.quarantined)
    assert run(clips, store).encoded == 4


@pytest.mark.parametrize(
    ("bucket", "device", "most"),
    [
        (Bucket(49, 480, 704), "cpu", 1),
        (Bucket(5, 16, 16), "cpu", 1),
        (Bucket(5, 16, 16), "cuda", 8),
        (Bucket(49, 480, 704), "cuda", 2),
        (Bucket(161, 720, 1280), "cuda", 1),
    ],
)
def test_how_many_go_at_once_where_nobody_says(bucket, device, most):
    work = Work(make_clips(20, buckets=[bucket]), [], Recipes(IDENTITY), todo=list(range(20)))
    batches = work.clip_batches("auto", device)
    assert max(map(len, batches)) == most
    assert sorted(row for batch in batches for row in batch) == list(range(20))
    assert {len(batch) for batch in work.clip_batches(7, device)} == {7, 6}


def test_a_size_of_none_is_refused():
    with pytest.raises(UserError, match=r"data\.encoding\.batch_size is 0"):
        Encoding(batch_size=0)
