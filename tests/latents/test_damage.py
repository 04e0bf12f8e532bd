"""Bytes that are not what was written: noticed when they are first read, named, mended by the command that is named."""

import errno
import os
import re

import pytest
import torch
from torch.utils.data import DataLoader

from tests.data.stand_ins import IDENTITY, make_clips
from tests.latents.encode.test_missing import never, run
from tests.latents.test_store import merged_index
from vidlit import io_retry
from vidlit.data.timed_loader import TimedLoader
from vidlit.diffusion.batch import as_is
from vidlit.errors import UserError
from vidlit.latents import shards
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.encoding import Encoding
from vidlit.latents.recipe import Recipes
from vidlit.latents.storage import local_folder
from vidlit.latents.store import LatentStore

SMALL_SHARDS = Encoding(num_workers=0, shard_bytes=1)


@pytest.fixture
def filled(tmp_path):
    """A store with a shard for each clip."""
    store, clips = LatentStore(tmp_path / "store"), make_clips(4)
    run(clips, store, encoding=SMALL_SHARDS)
    return store, clips


def shard_of(store, clip):
    rows = store.rows(["clip_id", "shard"]).to_pylist()
    return store.storage.root / next(row["shard"] for row in rows if row["clip_id"] == clip.clip_id)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(data)


DAMAGE = {"flipped": flip, "truncated": lambda path: os.truncate(path, path.stat().st_size - 1), "gone": os.unlink}


def contents(store):
    return {path: path.read_bytes() for name in ("shards", "prompts") for path in (store.storage.root / name).iterdir()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_repair_encodes_what_is_damaged_and_nothing_else(filled, damage):
    store, clips = filled
    expected = [sample.latents for sample in LatentDataset.from_clips(store, clips, Recipes(IDENTITY))]
    broken = shard_of(store, clips[1])
    DAMAGE[damage](broken)
    others = {path: data for path, data in contents(store).items() if path != broken}
    report = run(clips, store, repair=True)
    assert (report.encoded, report.captions, report.stored) == (1, 0, 3)
    assert report.damaged >= 1
    assert others.items() <= contents(store).items()
    assert not list(store.verify())
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY))
    assert all(torch.equal(dataset[row].latents, latents) for row, latents in enumerate(expected))
    assert run(clips, store, never, repair=True).damaged == 0


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_what_is_gone_does_not_count_as_stored(filled, damage):
    store, clips = filled
    DAMAGE[damage](shard_of(store, clips[1]))
    store = LatentStore(store.storage.root)
    with pytest.raises(UserError, match="1 of them: its shard is damaged or gone"):
        LatentDataset.from_clips(store, clips, Recipes(IDENTITY))
    report = run(clips, store)
    assert (report.encoded, report.stored) == (1, 3)
    assert len(LatentDataset.from_clips(store, clips, Recipes(IDENTITY))) == 4


def test_a_damaged_index_is_mended_too(filled):
    store, clips = filled
    path = merged_index(store.storage.root)
    path.write_bytes(path.read_bytes()[:-20])
    for file in (store.storage.root / "shards").iterdir():  # shards of a store that is older than what is cleaned
        os.utime(file, (1, 1))
    with pytest.raises(UserError, match="encode --repair"):
        run(clips, store)
    assert run(clips, store, repair=True).encoded == 4
    assert not list(store.verify())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_flipped_bit_is_one_line_that_names_clip_shard_and_command(filled, num_workers):
    store, clips = filled
    broken = shard_of(store, clips[2])
    flip(broken)
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY))
    loader = TimedLoader(
        dataset.batches(), sampler=[[0], [2]], batch_size=None, collate_fn=as_is, num_workers=num_workers
    )
    with pytest.raises(UserError) as error:
        list(loader)
    said = str(error.value)
    assert re.fullmatch(
        rf"{clips[2].clip_id} is damaged in {broken}: its bytes changed since they were written\. "
        r"Run `vidlit encode --repair` .*",
        said,
    )


def test_a_damaged_caption_is_named(filled):
    store, clips = filled
    flip(next((store.storage.root / "prompts").iterdir()))
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY), prompt_extras=("pooled_projections",))
    with pytest.raises(UserError, match=r"caption 'caption \d' is damaged"):
        [dataset[row] for row in range(4)]


def test_a_prompt_that_is_cut_for_its_batch_is_checked_whole(filled):
    store, clips = filled
    dataset = LatentDataset.from_clips(store, clips[:1], Recipes(IDENTITY))
    assert dataset.read_batch([0], prompt_length=3).conditioning.prompt_embeds.shape[1] == 3


def test_each_process_compares_a_tensor_once(filled, monkeypatch):
    store, clips = filled
    dataset, compared = LatentDataset.from_clips(store, clips, Recipes(IDENTITY)), []
    crc32 = shards.zlib.crc32
    monkeypatch.setattr(shards.zlib, "crc32", lambda data: compared.append(len(data)) or crc32(data))
    for _ in range(3):
        list(DataLoader(dataset, batch_size=None))
    assert len(compared) == 2 * len(clips)  # latents and prompts


def test_a_read_that_fails_in_passing_is_done_again(filled, monkeypatch, capsys):
    store, clips = filled
    read_at = local_folder.read_at
    monkeypatch.setattr(io_retry.time, "sleep", lambda seconds: None)

    def read(number, times):
        """With so many errors on the way."""
        errors = [OSError(number, os.strerror(number))] * times

        def failing(*args):
            if errors:
                raise errors.pop()
            return read_at(*args)

        monkeypatch.setattr(local_folder, "read_at", failing)
        return LatentDataset.from_clips(store, clips, Recipes(IDENTITY))[0]

    assert read(errno.ESTALE, 1).latents.shape == read(errno.EIO, 3).latents.shape
    assert capsys.readouterr().err.count("Input/output error; trying again") == 1
    for number in (errno.EIO, errno.EPERM):
        with pytest.raises(UserError, match=f"cannot read .*: {os.strerror(number)}"):
            read(number, 99)
