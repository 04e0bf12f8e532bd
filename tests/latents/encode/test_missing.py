import dataclasses
import errno
import functools
import logging
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import time
import warnings
from collections import Counter

import filelock
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.stand_ins import (
    IDENTITY,
    LETTERS,
    ColourReader,
    LoggingEncoders,
    PoolingEncoders,
    encode_logged,
    make_clips,
)
from tests.latents.test_store import merged_index
from vidlit.errors import UserError
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.encode import progress
from vidlit.latents.encode.missing import encode
from vidlit.latents.encoding import Encoding
from vidlit.latents.recipe import Recipes
from vidlit.latents.store import LatentStore
from vidlit.video.buckets import Bucket
from vidlit.video.cut import Cutting, plan_clips

CPU = {"accelerator": "cpu", "devices": 1}
ALONE = Encoding(num_workers=0)


def run(clips, store, load=PoolingEncoders, identity=IDENTITY, encoding=ALONE, **options):
    settings = {"open_reader": ColourReader, "trainer_options": CPU} | options
    return encode(clips, store, Recipes(identity, encoding), load, **settings)


def never():
    raise AssertionError("nothing is missing: no encoder is needed")


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (3, 2)])
def test_each_clip_and_each_caption_once(tmp_path, batch_size, num_workers):
    store, clips = LatentStore(tmp_path / "store"), make_clips(7)
    load = functools.partial(LoggingEncoders, tmp_path / "log")
    report = run(clips, store, load, encoding=Encoding(batch_size=batch_size, num_workers=num_workers))
    assert (report.encoded, report.captions, report.stored, report.quarantined) == (7, 3, 0, [])
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines) == sorted([*map(str, range(7)), *(f"caption {number}" for number in range(3))])
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY))
    values = [round(float(dataset[row].latents.float().mean() * 127.5 + 127.5)) for row in range(7)]
    assert values == list(range(7))
    report = run(clips, store, never)
    assert (report.encoded, report.captions, report.stored) == (0, 0, 7)
    assert not list(store.verify())


def test_one_change_encodes_just_what_depends_on_it(tmp_path):
    store, clips = LatentStore(tmp_path), make_clips(6)
    run(clips, store)
    edited = [dataclasses.replace(clips[0], content="e" * 64), *clips[1:]]
    report = run(edited, store)
    assert (report.encoded, report.captions, report.stored) == (1, 0, 5)
    source = dataclasses.replace(clips[1].source, caption="something else")
    report = run([clips[0], dataclasses.replace(clips[1], source=source)], store)
    assert (report.encoded, report.captions) == (0, 1)
    identity = {**IDENTITY, "vae": "pooling-2"}
    report = run(clips, store, functools.partial(PoolingEncoders, identity), identity)
    assert (report.encoded, report.captions) == (6, 0)
    assert run(clips, store, encoding=Encoding("float32", num_workers=0)).captions == 3
    report = run(clips, store, encoding=Encoding(posterior="sample", num_workers=0))
    assert (report.encoded, report.captions, report.stored) == (6, 0, 0)
    assert run(clips, store, never).stored == 6, "the first encoding is still there"


def test_an_engine_that_is_not_installed_is_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'--engine ray needs Ray: pip install "vidlit\[ray\]"'):
        run(make_clips(1), LatentStore(tmp_path / "store"), engine="ray")
    assert LatentStore(tmp_path / "store").keys("latent") == set()


def test_the_same_file_twice_is_encoded_once(tmp_path):
    store, clips = LatentStore(tmp_path), make_clips(2)
    twin = dataclasses.replace(clips[0], clip_id="copy.mp4@0.000")
    report = run([*clips, twin], store)
    assert report.encoded == 2
    assert len(LatentDataset.from_clips(store, [*clips, twin], Recipes(IDENTITY))) == 3


def test_a_bad_clip_is_quarantined_and_the_rest_goes_on(tmp_path):
    store, clips = LatentStore(tmp_path), make_clips(5)
    bad = functools.partial(ColourReader, bad=("00002.mp4",))
    for _ in range(2):
        report = run(clips, store, open_reader=bad, encoding=Encoding(batch_size=2, num_workers=0))
        assert [(clip.clip_id, clip.reason) for clip in report.quarantined] == [
            ("00002.mp4@0.000", "00002.mp4: no frames")
        ]
        assert "00002.mp4: no frames" in str(report)
    assert report.encoded == 0, "not tried again"
    assert len(store.keys("quarantined")) == 1
    assert run(clips, store, retry_quarantined=True).encoded == 1
    assert store.keys("quarantined") == set()
    assert run(clips, store, never).quarantined == []


class Listening(ColourReader):
    """Sound as loud as its clip's number, for those that have any; names in ``deaf`` fail."""

    deaf = ()

    def read_sound(self, request, rate):
        if request.path.name in self.deaf:
            raise UserError("its sound cannot be decoded: noise")
        return np.full((2, round(request.num_frames / request.fps * rate)), int(request.path.stem), np.float32)


class Hearing(PoolingEncoders):
    def encode_video(self, frames, sound):
        return {**super().encode_video(frames, sound), "loudness": sound.mean(dim=2)}


def test_encoders_are_given_the_sound_that_goes_with_the_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(Listening, "deaf", ("00003.mp4",))
    store, clips = LatentStore(tmp_path), make_clips(5, buckets=(Bucket(5, 16, 16),))
    options = {"open_reader": Listening, "sample_rate": 100, "encoding": Encoding(batch_size=2, num_workers=0)}
    report = run(clips, store, Hearing, **options)
    assert [(clip.clip_id, clip.reason) for clip in report.quarantined] == [
        (clips[3].clip_id, "its sound cannot be decoded: noise")
    ]
    good = [*clips[:3], clips[4]]
    dataset = LatentDataset.from_clips(store, good, Recipes(IDENTITY), clip_extras=("loudness",))
    assert [dataset[row].extras["loudness"].tolist() for row in range(4)] == [[n, n] for n in (0.0, 1.0, 2.0, 4.0)]
    assert run(clips, LatentStore(tmp_path / "deaf"), open_reader=Listening).encoded == 5, "nobody listens"


class StuckReader(ColourReader):
    """What failed in passing: the system, not the file."""

    error = TimeoutError("took longer than 120 s")

    def read_clip(self, request):
        if request.path.name in self.bad:
            raise self.error
        return super().read_clip(request)


class PassingError(UserError):
    transient = True


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), MemoryError("no room"), PassingError("killed")]
)
def test_what_failed_in_passing_is_tried_again_by_the_next_run(tmp_path, monkeypatch, error):
    monkeypatch.setattr(StuckReader, "error", error)
    store, clips = LatentStore(tmp_path), make_clips(3)
    stuck = functools.partial(StuckReader, bad=("00001.mp4",))
    for _ in range(2):  # tried each time, written down once
        report = run(clips, store, open_reader=stuck)
        assert [clip.transient for clip in report.quarantined] == [True]
        assert "(the next run tries it again)" in str(report)
    assert len(store.rows(["key"], "quarantined")) == 1
    report = run(clips, store)
    assert (report.encoded, report.stored, report.quarantined) == (1, 2, [])


def test_the_last_try_says_whether_there_is_another(tmp_path):
    store, clips = LatentStore(tmp_path), make_clips(2)
    name = ("00001.mp4",)
    run(clips, store, open_reader=functools.partial(StuckReader, bad=name))
    run(clips, store, open_reader=functools.partial(ColourReader, bad=name))
    assert run(clips, store, never).quarantined[0].reason == "00001.mp4: no frames"
    run(clips, store, open_reader=functools.partial(StuckReader, bad=name), retry_quarantined=True)
    assert run(clips, store).encoded == 1


def test_a_report_does_not_grow_with_what_failed(tmp_path):
    clips = make_clips(20)
    bad = functools.partial(ColourReader, bad=[f"{number:05d}.mp4" for number in range(20)])
    text = str(run(clips, LatentStore(tmp_path), open_reader=bad))
    assert text.count("no frames") == 3
    assert "... 17 more (`vidlit plan` lists all)" in text


def with_captions(captions):
    clips = make_clips(len(captions))
    return [
        dataclasses.replace(clip, source=dataclasses.replace(clip.source, caption=caption))
        for clip, caption in zip(clips, captions, strict=True)
    ]


def test_captions_that_are_cut_are_counted_and_named_now_and_later(tmp_path):
    store = LatentStore(tmp_path)
    long = "A" * LETTERS
    clips = with_captions(["short", f"{long} red", f"{long} blue", f"{long}", f"B{long}"])
    for load in (PoolingEncoders, never):
        text = str(run(clips, store, load))
        assert (
            "3 of 5 captions are longer than the text encoder reads, and cut off: 00001.mp4@0.000 (4 tokens too many), "
            "00002.mp4@0.000 (5 tokens too many), 00004.mp4@0.000 (1 tokens too many)" in text
        )
        assert "the same once cut: 00001.mp4@0.000 = 00002.mp4@0.000 = 00003.mp4@0.000" in text
    assert "cut off" not in str(run(clips[:1], store, never))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.text("ab", max_size=40), min_size=1, max_size=6, unique=True))
def test_every_caption_is_read_whole_or_counted(tmp_path_factory, captions):
    report = run(with_captions(captions), LatentStore(tmp_path_factory.mktemp("store")))
    assert sorted(number for _, number in report.cut.cut) == sorted(
        len(caption) - LETTERS for caption in captions if len(caption) > LETTERS
    )
    groups = Counter(caption[:LETTERS] for caption in captions)
    of_cut = {caption[:LETTERS] for caption in captions if len(caption) > LETTERS}
    assert sorted(map(len, report.cut.alike)) == sorted(groups[kept] for kept in of_cut if groups[kept] > 1)


def test_a_store_from_before_cuts_were_counted_says_nothing_of_them(tmp_path):
    store, clips = LatentStore(tmp_path), with_captions(["x" * 40])
    run(clips, store)
    path = merged_index(tmp_path)
    pq.write_table(pq.read_table(path).drop_columns(["num_cut_tokens", "kept_tokens", "transient"]), path)
    assert "cut" not in str(run(clips, store, never))


def test_a_complete_store_is_used_where_nothing_can_be_written(tmp_path, monkeypatch):
    store, clips = LatentStore(tmp_path), make_clips(3)
    run(clips, store, open_reader=functools.partial(ColourReader, bad=("00001.mp4",)))

    def refuse(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("open", "mkdir", "unlink", "replace", "rename", "write_text"):
        real = getattr(pathlib.Path, name)
        monkeypatch.setattr(
            pathlib.Path,
            name,
            lambda path, *args, real=real, **options: (refuse if tmp_path in path.parents else real)(
                path, *args, **options
            ),
        )
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    report = run(clips, store, never)
    assert (report.stored, len(report.quarantined)) == (2, 1)
    assert len(LatentDataset.from_clips(store, [clips[0], clips[2]], Recipes(IDENTITY))) == 2
    with pytest.raises(UserError, match=r"cannot write to the latent store .*: Read-only file system") as error:
        run(make_clips(4), store)
    assert "\n" not in str(error.value)


def test_a_changed_file_is_tried_again(tmp_path):
    store, clips = LatentStore(tmp_path), make_clips(1)
    run(clips, store, open_reader=functools.partial(ColourReader, bad=("00000.mp4",)))
    report = run([dataclasses.replace(clips[0], content="b" * 64)], store)
    assert (report.encoded, report.quarantined) == (1, [])


class NotANumber(PoolingEncoders):
    tensor = "latents"

    def encode_video(self, frames, sound):
        encoded = super().encode_video(frames, sound)
        encoded[self.tensor].view(len(frames), -1)[0, 0] = torch.nan
        return encoded


@pytest.mark.parametrize("tensor", ["latents", "first_frame"])
def test_latents_that_are_not_finite_are_quarantined(tmp_path, monkeypatch, tensor):
    monkeypatch.setattr(NotANumber, "tensor", tensor)
    report = run(make_clips(2, captions=1), LatentStore(tmp_path), NotANumber)
    assert {clip.reason for clip in report.quarantined} == {"the video autoencoder gave NaN or infinity"}


def test_encoders_that_are_not_what_was_planned_are_refused(tmp_path):
    store = LatentStore(tmp_path)
    with pytest.raises(UserError, match="the encoders that were loaded are"):
        run(make_clips(1), store, identity={**IDENTITY, "vae": "another"})
    assert store.keys("latent") == set()


def test_a_full_disk_is_a_user_error_and_the_store_stays_readable(tmp_path, monkeypatch):
    store, clips = LatentStore(tmp_path), make_clips(8, buckets=(Bucket(5, 16, 16),))
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 11:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(clips, store, encoding=Encoding(num_workers=0, shard_bytes=1))
    monkeypatch.setattr(os, "fsync", real)
    done = len(store.keys("latent"))
    assert 0 < done < 8
    assert not list(store.verify())
    assert run(clips, store).stored == done


class Interrupting(PoolingEncoders):
    def encode_video(self, frames, sound):
        if frames.float().mean() > 3.5:
            raise KeyboardInterrupt
        return super().encode_video(frames, sound)


def test_an_interrupt_keeps_what_was_encoded(tmp_path):
    store, clips = LatentStore(tmp_path), make_clips(8, buckets=(Bucket(5, 16, 16),))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(clips, store, Interrupting)
    assert len(store.keys("latent")) == 4


@pytest.mark.slow
def test_two_ranks_encode_each_clip_once(tmp_path):
    store, clips = LatentStore(tmp_path / "store"), make_clips(7)
    report = run(
        clips,
        store,
        functools.partial(LoggingEncoders, tmp_path / "log"),
        open_reader=functools.partial(ColourReader, bad=("00003.mp4",)),
        trainer_options={"accelerator": "cpu", "devices": 2, "strategy": "ddp_spawn"},
    )
    assert (report.encoded, report.captions, len(report.quarantined)) == (6, 3, 1)
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines) == sorted(["0", "1", "2", "4", "5", "6", "caption 0", "caption 1", "caption 2"])
    assert not list(store.verify())
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp_spawn"}
    report = run(clips, store, never, trainer_options=options)  # the ranks meet all the same
    assert (report.encoded, report.stored, len(report.quarantined)) == (0, 6, 1)
    writers = {path.stem.split("-", 1)[1] for path in (tmp_path / "store" / "shards").iterdir()}
    assert len(writers) == 2


@pytest.fixture(scope="module")
def server():
    """Processes that start fast: what they import is imported once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vidlit.latents.encode.missing"])
    return context


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_random_moments_loses_at_most_two_shards_each_time(tmp_path, server, kills):
    chance = random.Random(kills)
    clips = make_clips(16 * kills, buckets=(Bucket(5, 16, 16),))
    shard_clips = 4
    work = functools.partial(
        encode_logged, tmp_path / "store", tmp_path / "log", clips, 0.02, shard_clips * 3 * 5 * 2 * 2 * 2
    )
    store, killed = LatentStore(tmp_path / "store"), 0
    before = set()
    for _ in range(kills):
        process = server.Process(target=work)
        process.start()
        size = (tmp_path / "log").stat().st_size if (tmp_path / "log").exists() else 0
        while process.is_alive() and not ((tmp_path / "log").exists() and (tmp_path / "log").stat().st_size > size):
            time.sleep(0.01)
        process.join(chance.uniform(0, 0.5))
        killed += process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert before <= (before := store.keys("latent"))
        assert not list(store.verify())
    assert killed
    encode_logged(tmp_path / "store", tmp_path / "log", clips)
    counts = Counter(line for line in (tmp_path / "log").read_text().splitlines() if line.isdigit())
    assert len(LatentDataset.from_clips(store, clips, Recipes(IDENTITY))) == len(clips)
    assert sum(counts.values()) <= len(clips) + 2 * shard_clips * killed
    assert not list(store.verify())


def test_two_runs_on_one_store_encode_each_clip_once(tmp_path, server):
    clips = make_clips(30)
    runs = [
        server.Process(target=encode_logged, args=(tmp_path / "store", tmp_path / f"log-{number}", clips, 0.01, 500))
        for number in range(2)
    ]
    for process in runs:
        process.start()
    for process in runs:
        process.join()
    assert [process.exitcode for process in runs] == [0, 0]
    lines = [line for path in tmp_path.glob("log-*") for line in path.read_text().splitlines()]
    assert max(Counter(lines).values()) == 1
    store = LatentStore(tmp_path / "store")
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY))
    values = [round(float(dataset[row].latents.float().mean() * 127.5 + 127.5)) for row in range(30)]
    assert values == list(range(30))
    assert not list(store.verify())


def test_lightning_stays_quiet_and_its_loggers_as_they_were(tmp_path, capfd):
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(make_clips(3), LatentStore(tmp_path))
    assert not [warning for warning in caught if "lightning" in warning.filename]
    assert capfd.readouterr() == ("", "")
    assert logger.level == level


def test_progress_in_plain_lines_and_on_a_terminal(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    run(make_clips(3), LatentStore(tmp_path / "lines"), open_reader=functools.partial(ColourReader, bad=("00001.mp4",)))
    assert "encoded 3 of 3 clips, 1 quarantined, about 0 s left" in capfd.readouterr().err
    monkeypatch.setattr(progress, "Console", functools.partial(progress.Console, force_terminal=True, width=80))
    run(make_clips(3), LatentStore(tmp_path / "bar"))
    error = capfd.readouterr().err
    assert "Encoding clips" in error
    assert "3/3" in error


def test_real_videos_through_the_isolated_reader(tmp_path, shared_videos):
    plan = plan_clips(shared_videos / "content", [Bucket(9, 64, 96)], 8.0, Cutting("head"))
    clips = plan.clips[:3]
    broken = dataclasses.replace(
        clips[0],
        clip_id="corrupted",
        content="c" * 64,
        start=0.0,
        source=dataclasses.replace(clips[0].source, path=shared_videos / "odd" / "decord__corrupted.mp4"),
    )
    store = LatentStore(tmp_path)
    report = encode(
        [*clips, broken], store, Recipes(IDENTITY, Encoding(num_workers=1)), PoolingEncoders, trainer_options=CPU
    )
    assert report.encoded >= 3
    assert report.encoded + len(report.quarantined) == 4
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY))
    assert all(dataset[row].latents.shape == (3, 9, 8, 12) for row in range(3))
    assert all(dataset[row].latents.float().std() > 0.05 for row in range(3)), "pictures, not blanks"
