"""A source on object storage is planned and read as the same folder on a disk is, one video at a time."""

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.video.films import texture, write_film
from vidlit import io_retry
from vidlit.errors import UserError
from vidlit.video import remote_source
from vidlit.video.buckets import Bucket
from vidlit.video.cut import plan_clips
from vidlit.video.frames import TransientVideoError
from vidlit.video.isolation import IsolatedReader
from vidlit.video.remote_source import RemoteSource

BUCKETS = [Bucket(5, 32, 32)]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two videos with captions, a broken one, a table below, and what nobody reads."""
    folder = tmp_path_factory.mktemp("films")
    for number, name in enumerate(("a.mp4", "b.mp4")):
        write_film(folder / name, texture(number, 48))
        (folder / name).with_suffix(".txt").write_text(f"film {number}")
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "broken.txt").write_text("broken")
    (folder / "weights.bin").write_bytes(bytes(2**20 + 1))
    return folder


@pytest.fixture
def source(films, bucket, tmp_path):
    """The same in a bucket, below a name."""
    bucket[1].put(f"{films}/", f"{bucket[0]}/set/films/", recursive=True)
    bucket[1].pipe(f"{bucket[0]}/set/other.mp4", b"none of its business")
    return RemoteSource(f"{bucket[0]}/set/films/", tmp_path / "cache")


def plan(folder, **options):
    return plan_clips(folder, BUCKETS, 8.0, "chunk", **options)


def copies():
    return list(Path(tempfile.gettempdir()).glob(f"vidlit-video-{os.getpid()}-*"))


def test_it_is_planned_as_the_folder_is(films, source):
    local, remote = plan(films), plan(source.refresh(), reader=source.open_reader)
    assert [clip.clip_id for clip in remote.clips] == [clip.clip_id for clip in local.clips]
    assert [clip.content for clip in remote.clips] == [clip.content for clip in local.clips]
    assert [clip.source.caption for clip in remote.clips] == [clip.source.caption for clip in local.clips]
    assert remote.quarantined == local.quarantined
    assert remote.skipped == local.skipped
    assert len(local.clips) > 2
    assert not copies()


def test_videos_take_no_room_and_are_fetched_to_be_read(films, source):
    clip = plan(source.refresh(), reader=source.open_reader).clips[-1]
    assert sum(path.stat().st_blocks for path in source.folder.rglob("*.mp4")) == 0
    with pickle.loads(pickle.dumps(source.open_reader))() as reader, IsolatedReader() as local:
        frames = reader.read_clip(clip.request())
        assert len(copies()) == 1
        reader.read_clip(replace(clip.request(), path=source.folder / "a.mp4"))
        assert len(copies()) == 1, "of the last one only"
        expected = local.read_clip(replace(clip.request(), path=films / clip.source.video))
    assert np.array_equal(frames, expected)
    assert not copies()


def test_a_video_that_is_asked_for_again_is_fetched_once(source, monkeypatch):
    fetched = []
    fetch = remote_source.fetch
    monkeypatch.setattr(
        remote_source, "fetch", lambda files, name, path: fetched.append(name) or fetch(files, name, path)
    )
    clips = plan(source.refresh(), reader=source.open_reader).clips
    assert sorted(fetched) == ["a.mp4", "a.txt", "b.mp4", "b.txt", "broken.mp4", "broken.txt"]
    fetched.clear()
    with source.open_reader() as reader:
        for clip in clips:
            reader.read_clip(clip.request())
    assert fetched == ["a.mp4", "b.mp4"]


def test_what_was_read_of_files_is_known_on_another_machine(source, tmp_path, bucket):
    """Its local folder lies elsewhere there."""
    cache = tmp_path / "files.json"
    plan(source.refresh(), reader=source.open_reader, cache=cache)
    elsewhere = RemoteSource(f"{bucket[0]}/set/films", tmp_path / "elsewhere")

    class Nothing(remote_source.FetchingReader):
        def local(self, path):
            assert path.name == "broken.mp4", "what cannot be used is looked at each time"
            return super().local(path)

    def reader():
        return Nothing(elsewhere.files, elsewhere.folder)

    assert len(plan(elsewhere.refresh(), reader=reader, cache=cache).clips) > 2


def test_what_changed_in_the_bucket_changes_here(source, bucket):
    source.refresh()
    bucket[1].rm(f"{bucket[0]}/set/films/b.mp4")
    bucket[1].pipe(f"{bucket[0]}/set/films/a.txt", b"another caption")
    bucket[1].pipe(f"{bucket[0]}/set/films/new/c.txt", b"c")
    source.refresh()
    names = {path.relative_to(source.folder).as_posix() for path in source.folder.rglob("*") if path.is_file()}
    assert names == {"a.mp4", "a.txt", "b.txt", "broken.mp4", "broken.txt", "weights.bin", "new/c.txt"}
    assert (source.folder / "a.txt").read_text() == "another caption"
    bucket[1].rm(f"{bucket[0]}/set/films/new/c.txt")
    source.refresh()
    assert not (source.folder / "new").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "a/../../outside.txt", "./b.txt", "c\\d.txt", ".hidden/e.txt"])
def test_names_that_are_no_paths_stay_where_they_are(source, bucket, name):
    bucket[1].call_s3("put_object", Bucket=bucket[0][5:], Key=f"set/films/{name}", Body=b"x")
    before = source.refresh().parent
    inside = {path for path in before.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert {path.relative_to(source.folder).as_posix() for path in inside} == {
        "a.mp4", "a.txt", "b.mp4", "b.txt", "broken.mp4", "broken.txt", "weights.bin",
    }  # fmt: skip


def test_a_video_that_cannot_be_fetched_is_tried_again_next_time(source, monkeypatch):
    clip = plan(source.refresh(), reader=source.open_reader).clips[0]
    monkeypatch.setattr(io_retry.time, "sleep", lambda seconds: None)
    with source.open_reader() as reader:
        monkeypatch.setattr(reader.files._opened(), "get_file", lambda *given: (_ for _ in ()).throw(OSError("reset")))
        with pytest.raises(TransientVideoError, match="cannot be fetched: reset"):
            reader.read_clip(clip.request())
    assert not copies()


def test_an_empty_place_and_one_that_is_not_there_are_told(bucket, tmp_path):
    for address in (f"{bucket[0]}/nothing", "s3://no-such-bucket-of-mine/clips"):
        with pytest.raises(UserError, match=f"{address} holds no files|cannot read {address}"):
            RemoteSource(address, tmp_path).refresh()


def test_copies_of_a_killed_process_are_removed(source):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = Path(tempfile.mkdtemp(prefix=f"vidlit-video-{process.pid}-"))
    mine = Path(tempfile.mkdtemp(prefix=f"vidlit-video-{os.getpid()}-"))
    remote_source._remove_left_copies.cache_clear()
    try:
        plan(source.refresh(), reader=source.open_reader)
        assert not left.exists()
        assert mine.exists()
    finally:
        mine.rmdir()
