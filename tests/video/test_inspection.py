import errno
import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from tests.video.films import numbered, write_film
from vidlit.video.frames import TransientVideoError, VideoInfo
from vidlit.video.inspection import Wanted, inspect_files
from vidlit.video.isolation import IsolatedReader

INFO = VideoInfo("video", 64, 64, 2.0, 25.0, 50)


class StandIn:
    """A reader without a child process, which notes what it is asked."""

    asked: list = []  # noqa: RUF012
    failing = False

    def inspect(self, path, fingerprint):
        self.asked.append("inspect")
        if self.failing:
            raise TransientVideoError("took longer than 120 s to decode")
        return INFO, [["0" * 16], [[0.0, "0" * 16]]] if fingerprint else []

    def frame_times(self, path, numbers):
        self.asked.append("frame_times")
        return [number / 25 for number in numbers]

    def find_cuts(self, path, info):
        self.asked.append("find_cuts")
        return [1.0]

    def content(self, path):
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def address(self, path):
        return str(path)

    def close(self):
        pass


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"some bytes")
    return path


def inspect(file, cache, wanted=Wanted(), reader=StandIn):  # noqa: B008 - frozen
    StandIn.asked.clear()
    return inspect_files({"a.mp4": file}, wanted, cache, reader, None)["a.mp4"], list(StandIn.asked)


def test_what_was_asked_once_is_never_read_again(file, tmp_path):
    cache = tmp_path / "store" / "files.json"
    frames = Wanted(frames={"a.mp4": frozenset({3, 70})})
    first, asked = inspect(file, cache, frames)
    assert asked == ["inspect", "frame_times"]
    assert first.frame_times == {3: 0.12, 70: 2.8}
    assert inspect(file, cache, frames) == (first, [])
    everything = Wanted(True, True, {"a.mp4": frozenset({4})})
    second, _ = inspect(file, cache, everything)
    assert (second.cuts, second.frame_times) == ((1.0,), {3: 0.12, 70: 2.8, 4: 0.16})
    assert second.fingerprint is not None
    for wanted in (frames, everything, Wanted(), Wanted(cuts=True)):  # nor is anything forgotten
        assert inspect(file, cache, wanted) == (second, [])
    file.write_bytes(b"other bytes")
    assert inspect(file, cache)[0].cuts is None


def test_a_failure_is_not_remembered(file, tmp_path, monkeypatch):
    cache = tmp_path / "files.json"
    monkeypatch.setattr(StandIn, "failing", True)
    assert inspect(file, cache)[0] == "took longer than 120 s to decode"
    monkeypatch.setattr(StandIn, "failing", False)
    assert inspect(file, cache)[0].info == INFO


@pytest.mark.parametrize("kind", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_store_that_cannot_be_written_is_read(file, tmp_path, monkeypatch, kind):
    cache = tmp_path / "files.json"
    known, _ = inspect(file, cache)

    def refuse(*arguments, **options):
        raise OSError(kind, "no")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    assert inspect(file, cache) == (known, [])
    more, asked = inspect(file, cache, Wanted(cuts=True))
    assert asked
    assert more.cuts == (1.0,)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.mp4", "files.json", ".files.json.lock"}
    assert len(json.loads(cache.read_text())["files"]) == 1


def test_where_no_folder_can_be_made_nothing_is_remembered(file, tmp_path):
    assert inspect(file, file / "store" / "files.json")[1] == ["inspect"]


def test_no_thread_and_no_child_is_left(tmp_path):
    files = {f"{number}.mp4": write_film(tmp_path / f"{number}.mp4", [numbered(1)] * 3) for number in range(3)}
    readers = []

    def reader():
        readers.append(IsolatedReader())
        return readers[-1]

    def interrupt(done, total):
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    inspect_files(files, Wanted(), None, reader, None)
    with pytest.raises(KeyboardInterrupt):
        inspect_files(files, Wanted(), None, reader, interrupt)
    assert set(threading.enumerate()) == before
    assert all(each._child is None for each in readers)


class Listening(StandIn):
    def inspect(self, path, fingerprint):
        _, hashes = super().inspect(path, fingerprint)
        return replace(INFO, has_sound=True), hashes


def test_files_are_listened_to_once_where_an_earlier_version_had_not(file, tmp_path):
    cache = tmp_path / "store" / "files.json"
    inspect(file, cache)
    found, asked = inspect(file, cache, Wanted(sound=True), Listening)
    assert (found.info.has_sound, asked) == (True, ["inspect"])
    assert inspect(file, cache, Wanted(sound=True), Listening) == (found, [])
