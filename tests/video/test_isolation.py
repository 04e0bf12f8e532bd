import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from tests.video.films import (
    BLUE,
    GREEN,
    HEIGHT,
    RED,
    WHITE,
    WIDTH,
    corners,
    number_of,
    numbered,
    quadrants,
    write_film,
)
from vidlit.video import isolation
from vidlit.video.frames import ClipRequest, TransientVideoError, VideoError, VideoReader, probe, read_clip
from vidlit.video.isolation import IsolatedReader, SharedFile


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("films") / "a.mp4", [numbered(n) for n in range(50)])


@pytest.fixture
def reader():
    with IsolatedReader() as reader:
        yield reader


def test_same_answers_as_without_a_child(film, reader, tmp_path):
    request = ClipRequest(film, 0.4, 9, 12.5, 48, 80, (9, 8, 7))
    np.testing.assert_array_equal(reader.read_clip(request), read_clip(request))
    info, fingerprint = reader.inspect(film, fingerprint=False)
    assert (info, fingerprint) == (probe(film), [])
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"#EXTM3U\n")
    for use in (lambda: reader.read_clip(replace(request, path=broken)), lambda: reader.inspect(broken, True)):
        with pytest.raises(VideoError, match="not a video"):
            use()
    assert number_of(reader.read_clip(ClipRequest(film, 0.8, 1, 25.0, HEIGHT, WIDTH))[0]) == 20


@pytest.mark.parametrize("shape", [(450, 800), (800, 450), (48, 80), (48, 81), (49, 80), (97, 161), (48, 49), (1, 1)])
def test_images_of_every_shape_are_cropped_to_their_bucket(shape, reader, tmp_path):
    """Wider ones were quarantined: what is cut off their sides left an array with gaps."""
    Image.fromarray(quadrants(*shape)).save(tmp_path / "a.png")
    request = ClipRequest(tmp_path / "a.png", 0.0, 1, 16.0, 48, 80)
    clip = reader.read_clip(request)
    np.testing.assert_array_equal(clip, read_clip(request))
    if min(shape) > 1:
        assert corners(clip[0]) == [RED, GREEN, BLUE, WHITE]


def test_a_crash_costs_one_clip(film, reader):
    reader.read_clip(ClipRequest(film, 0.0, 1, 25.0, 32, 32))
    child = reader._child
    threading.Timer(0.3, child.send_signal, [signal.SIGSEGV]).start()
    child.send_signal(signal.SIGSTOP)  # as busy as a decoder that is about to crash
    threading.Timer(0.35, child.send_signal, [signal.SIGCONT]).start()
    with pytest.raises(VideoError, match="SIGSEGV"):
        reader.read_clip(ClipRequest(film, 0.0, 1, 25.0, 32, 32))
    assert reader.read_clip(ClipRequest(film, 0.0, 1, 25.0, 32, 32)).shape == (1, 32, 32, 3)
    assert reader._child.pid != child.pid


def test_what_the_system_does_to_a_reader_is_worth_another_try(film, reader):
    for number, transient in ((signal.SIGKILL, True), (signal.SIGSEGV, False)):
        reader.read_clip(ClipRequest(film, 0.0, 1, 25.0, 32, 32))
        reader._child.send_signal(signal.SIGSTOP)
        threading.Timer(0.1, reader._child.send_signal, [number]).start()
        threading.Timer(0.15, reader._child.send_signal, [signal.SIGCONT]).start()
        with pytest.raises(VideoError, match=number.name) as raised:
            reader.read_clip(ClipRequest(film, 0.0, 1, 25.0, 32, 32))
        assert raised.value.transient is transient


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM])
def test_a_failing_system_is_asked_twice(film, monkeypatch, number):
    monkeypatch.setattr(isolation, "_PAUSE", 0.01)
    request = {"task": "read_clip", "path": str(film), "start": 0.4, "num_frames": 2, "fps": 25.0}
    request |= {"height": HEIGHT, "width": WIDTH}
    opened = []

    def failing(times):
        def open_file(*arguments, **options):
            opened.append(arguments)
            if len(opened) <= times:
                av.error.err_check(-number)
            return av_open(*arguments, **options)

        opened.clear()
        return open_file

    av_open, shared = av.open, SharedFile.create()
    monkeypatch.setattr(av, "open", failing(1))
    assert isolation._answer(dict(request), VideoReader(), shared) == {"result": None}
    clip = np.empty((2, HEIGHT, WIDTH, 3), np.uint8)
    shared.read(clip)
    assert [number_of(frame) for frame in clip] == [10, 11]
    monkeypatch.setattr(av, "open", failing(99))
    answer = isolation._answer(dict(request), VideoReader(), shared)
    assert answer["transient"]
    assert len(opened) == 2
    shared.close()


def test_a_broken_file_is_not_asked_twice(film, tmp_path, monkeypatch):
    monkeypatch.setattr(isolation.time, "sleep", lambda seconds: pytest.fail("waited"))
    (tmp_path / "a.mp4").write_bytes(film.read_bytes()[:300])
    answer = isolation._answer({"task": "frame_times", "path": tmp_path / "a.mp4", "numbers": [1]}, VideoReader(), None)
    assert answer["transient"] is False


def test_no_process_to_be_had_is_nobodys_fault(film, monkeypatch):
    def refuse(*arguments, **options):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with IsolatedReader() as reader, pytest.raises(VideoError, match="Resource temporarily") as raised:
        reader.read_clip(ClipRequest(film, 0.0, 1, 25.0, 32, 32))
    assert raised.value.transient


def test_large_files_are_given_longer(film, monkeypatch):
    asked = []
    monkeypatch.setattr(IsolatedReader, "_ask", lambda self, task, path, patience, **rest: asked.append(patience) or [])
    monkeypatch.setattr(isolation, "_SLOWEST_DISK", film.stat().st_size / 1000)
    IsolatedReader().frame_times(film, [1])
    IsolatedReader().find_cuts(film, probe(film))
    assert asked == [1000.0, 1002.0]


def test_a_hang_ends_at_the_time_limit(tmp_path):
    slow = write_film(tmp_path / "slow.mp4", [quadrants(720, 1280)] * 80, codec_options={"preset": "ultrafast"})
    with IsolatedReader(time_limit=0.05) as reader:
        began = time.monotonic()
        with pytest.raises(TransientVideoError, match=r"longer than 0\.05 s"):
            reader.read_clip(ClipRequest(slow, 0.0, 80, 25.0, 720, 1280))
        assert time.monotonic() - began < 5
        reader.time_limit = 60.0
        assert reader.read_clip(ClipRequest(slow, 0.0, 1, 25.0, 32, 32)).shape == (1, 32, 32, 3)


def test_memory_is_bounded(film):
    with IsolatedReader(memory_limit=2**30) as reader:
        with pytest.raises(TransientVideoError, match="memory"):
            reader._ask("read_clip", film, start=0.0, num_frames=1000, fps=1e9, height=2000, width=2000)
        assert reader.read_clip(ClipRequest(film, 0.0, 1, 25.0, 32, 32)).shape == (1, 32, 32, 3)


def test_a_child_that_cannot_start_is_nobodys_fault(film, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    with IsolatedReader() as reader, pytest.raises(RuntimeError, match="does not start"):
        reader.read_clip(ClipRequest(film, 0.0, 1, 25.0, 32, 32))


def test_pickles_and_survives_forks(film, reader):
    reader.read_clip(ClipRequest(film, 0.0, 1, 25.0, 32, 32))
    with pickle.loads(pickle.dumps(reader)) as copy:
        assert copy.read_clip(ClipRequest(film, 0.0, 1, 25.0, 32, 32)).shape == (1, 32, 32, 3)

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def in_worker():
        # Loader workers are daemons: multiprocessing forbids them children of its own kind.
        answers.put(int(number_of(reader.read_clip(ClipRequest(film, 1.2, 1, 25.0, HEIGHT, WIDTH))[0])))
        reader.close()

    workers = [context.Process(target=in_worker, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    parents = [number_of(reader.read_clip(ClipRequest(film, n / 25, 1, 25.0, HEIGHT, WIDTH))[0]) for n in range(10)]
    for worker in workers:
        worker.join()
    assert parents == list(range(10))
    assert [answers.get(), answers.get()] == [30, 30]


def test_the_child_ends_with_its_parent(film):
    context = multiprocessing.get_context("fork")
    pids = context.SimpleQueue()

    def in_worker():
        reader = IsolatedReader()
        reader.read_clip(ClipRequest(film, 0.0, 1, 25.0, 32, 32))
        pids.put(reader._child.pid)
        os.kill(os.getpid(), signal.SIGKILL)

    worker = context.Process(target=in_worker)
    worker.start()
    worker.join()
    pid = pids.get()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.02)
    assert not _alive(pid)


def test_without_a_file_in_memory_one_among_the_temporary_files_does(film, monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with IsolatedReader() as reader:
        clip = reader.read_clip(ClipRequest(film, 0.4, 9, 12.5, 48, 80))
        assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(clip, read_clip(ClipRequest(film, 0.4, 9, 12.5, 48, 80)))


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_child_starts_without_torch():
    code = (
        "import sys, vidlit.video.isolation as i; assert not {'torch', 'lightning', 'scipy', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
