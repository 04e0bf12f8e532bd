"""Batches by memory: a stand-in device that holds so much, and runs out as torch does."""

from types import SimpleNamespace

import pytest
import torch

from tests.data.stand_ins import IDENTITY, ColourReader, PoolingEncoders, make_clips
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.encode.device_encoders import DeviceEncoders
from vidlit.latents.encode.missing import encode
from vidlit.latents.encode.work import Work
from vidlit.latents.encoding import Encoding
from vidlit.latents.recipe import Recipes
from vidlit.latents.store import LatentStore
from vidlit.video.buckets import Bucket

BUCKET = Bucket(5, 16, 16)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Small(PoolingEncoders):
    """Has room for so many clips of a height; notes how many it was given."""

    def __init__(self, room, height=16, error=None):
        super().__init__()
        self.room, self.height, self.given = room, height, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def encode_video(self, frames, sound):
        self.given.append(len(frames))
        if frames.shape[2] == self.height and len(frames) > self.room:
            raise self.error
        return super().encode_video(frames, sound)


class Card:
    """Takes the place of ``torch.cuda``: weights are loaded by the first clip, and each clip needs so much."""

    def __init__(self, monkeypatch, total, clip, weights=0):
        self.total, self.clip, self.weights, self.loaded, self.peak, self.emptied = total, clip, weights, 0, 0, 0
        for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total))

    def reset_peak_memory_stats(self, device):
        self.peak = self.loaded

    def memory_allocated(self, device):
        return self.loaded

    def max_memory_allocated(self, device):
        return self.peak

    def empty_cache(self):
        self.emptied += 1

    def holds(self, clips):
        self.loaded = self.weights
        needed = self.loaded + clips * self.clip
        if needed > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.peak = max(self.peak, needed)


class OnCard(PoolingEncoders):
    def __init__(self, card):
        super().__init__()
        self.card, self.given = card, []

    def encode_video(self, frames, sound):
        self.given.append((len(frames), int(frames.max()), sound is not None and sound.abs().max().item()))
        self.card.holds(len(frames))
        return super().encode_video(frames, sound)


def clips_of_noise(count, bucket=BUCKET):
    return torch.randint(1, 256, (count, *bucket, 3), dtype=torch.uint8)


@pytest.mark.parametrize(("room", "given"), [(9, [7]), (3, [7, 3, 3, 1]), (2, [7, 3, 1, 1, 1, 1, 1, 1, 1])])
def test_what_runs_out_is_halved_and_all_clips_come_in_their_order(room, given):
    encoders, frames = Small(room), clips_of_noise(7)
    made = DeviceEncoders(encoders, CPU, Encoding(batch_size=7))
    found = list(made.encode_clips(frames, None))
    expected = PoolingEncoders().encode_video(frames, None)
    for place, tensors in enumerate(found):
        assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
            name: tensor[place].tolist() for name, tensor in expected.items()
        }
    assert encoders.given == given
    again = len(encoders.given)
    list(made.encode_clips(frames, None))
    assert max(encoders.given[again:]) <= room, "what did not fit is not tried again"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    ],
)
def test_a_clip_that_does_not_fit_alone_is_none(error):
    assert list(DeviceEncoders(Small(0, error=error), CPU, Encoding()).encode_clips(clips_of_noise(1), None)) == [None]


def test_other_errors_are_not_swallowed():
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(DeviceEncoders(Small(0, error=RuntimeError("shapes differ")), CPU, Encoding()).encode_clips(*clip()))


def clip():
    return clips_of_noise(1), None


@pytest.mark.parametrize(
    ("total", "at_once"),
    [(10_000, [8]), (1_700, [8]), (1_500, [4, 4]), (700, [2, 2, 2, 2]), (190, [1] * 8), (150, [1] * 8)],
)
def test_a_card_takes_what_half_of_its_memory_holds(monkeypatch, total, at_once):
    """A clip needs 100; the weights, which are not counted to it, 50."""
    encoders = OnCard(Card(monkeypatch, total, 100, weights=50))
    made, sound = DeviceEncoders(encoders, GPU, Encoding()), torch.ones(8, 2, 10)
    assert all(tensors is not None for tensors in made.encode_clips(clips_of_noise(8), sound))
    probes, clips = encoders.given[:2], encoders.given[2:]
    assert probes == [(1, 0, 0.0), (1, 0, 0.0)], "black and silent ones, the first of which loads the weights"
    assert [number for number, *_ in clips] == at_once
    list(made.encode_clips(clips_of_noise(8), None))
    assert [number for number, *_ in encoders.given[2:]] == at_once * 2, "a bucket is measured once"
    list(made.encode_clips(clips_of_noise(1, Bucket(1, 16, 16)), None))
    assert [level == 0 for _, level, _ in encoders.given[-2:]] == [True, False], "another bucket by one black clip"


def test_a_card_that_others_fill_is_not_the_end(monkeypatch):
    card = Card(monkeypatch, 10_000, 100)
    encoders = OnCard(card)
    made = DeviceEncoders(encoders, GPU, Encoding())
    list(made.encode_clips(clips_of_noise(8), None))
    card.total = 350
    assert None not in list(made.encode_clips(clips_of_noise(8), None))
    assert [number for number, *_ in encoders.given[-6:]] == [8, 4, 2, 2, 2, 2]
    card.total = 50
    assert list(made.encode_clips(clips_of_noise(2), None)) == [None, None]


def test_nothing_is_measured_where_a_number_is_given_or_one_clip_fills_a_batch(monkeypatch):
    encoders = OnCard(Card(monkeypatch, 10_000, 100))
    assert len(list(DeviceEncoders(encoders, GPU, Encoding(batch_size=3)).encode_clips(clips_of_noise(3), None))) == 3
    large = Bucket(65, 480, 704)
    list(DeviceEncoders(encoders, GPU, Encoding()).encode_clips(torch.ones(1, *large, 3, dtype=torch.uint8), None))
    assert [number for number, *_ in encoders.given] == [3, 1]


@pytest.mark.parametrize(
    ("bucket", "on_gpu", "size"),
    [("1x64x64", True, 8), ("49x256x384", True, 4), ("49x480x704", True, 1), ("1x64x64", False, 1)],
)
def test_batches_are_chosen_by_bucket_and_kind_of_device_alone(bucket, on_gpu, size):
    clips = make_clips(20, buckets=(Bucket.parse(bucket),))
    work = Work(clips, [], [], todo=list(range(20)))
    batches = work.clip_batches(Encoding(), on_gpu=on_gpu)
    assert max(map(len, batches)) == size
    assert sorted(row for batch in batches for row in batch) == list(range(20))
    assert {len(batch) for batch in work.clip_batches(Encoding(batch_size=5), on_gpu=on_gpu)} == {5}


def test_a_bucket_that_is_too_large_costs_its_clips_and_not_the_run(tmp_path):
    store, clips = LatentStore(tmp_path), make_clips(6, buckets=(BUCKET, Bucket(1, 32, 32)))
    options = {"open_reader": ColourReader, "trainer_options": {"accelerator": "cpu", "devices": 1}}
    recipes = Recipes(IDENTITY, Encoding(batch_size=2, num_workers=0))
    report = encode(clips, store, recipes, lambda: Small(0, height=32), **options)
    assert (report.encoded, len(report.quarantined)) == (3, 3)
    assert report.quarantined[0].words == (
        "out of memory on cpu: one clip of 1x32x32 is more than the video autoencoder has room for. Choose smaller "
        "--data.buckets, or a device with more free memory (the next run tries it again)"
    )
    report = encode(clips, store, recipes, PoolingEncoders, **options)
    assert (report.encoded, report.stored, report.quarantined) == (3, 3, [])
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY))
    values = [round(float(dataset[row].latents.float().mean() * 127.5 + 127.5)) for row in range(6)]
    assert values == list(range(6))
