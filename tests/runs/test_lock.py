import errno
import os
import signal
import subprocess
import sys
import textwrap

import filelock
import pytest

from vidlit.errors import UserError
from vidlit.runs.directory import RunDirectory, append_text, write_text
from vidlit.runs.lock import RunLock

HOLD = """
    import sys, time
    from pathlib import Path
    from vidlit.runs.directory import RunDirectory
    from vidlit.runs.lock import RunLock
    lock = RunLock(RunDirectory(Path(sys.argv[1])))
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a run's lock."""
    words = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_gets_one_line_and_a_killed_one_lets_go(tmp_path, holder):
    directory = RunDirectory(tmp_path)
    with pytest.raises(UserError, match=rf"another process \(process {holder.pid} on .*\) is training in .*: wait"):
        RunLock(directory)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    leftovers = [tmp_path / ".summary.json.0123abcd.tmp", tmp_path / "samples" / ".a.mp4.0123abcd.tmp"]
    mine = [tmp_path / "notes.tmp", tmp_path / "thesis.part", tmp_path / "summary.json"]
    for path in (*leftovers, *mine):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    lock = RunLock(directory)
    assert [path.exists() for path in leftovers] == [False, False]
    assert all(path.exists() for path in mine)
    lock.release()
    RunLock(directory).release()


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path, monkeypatch):
    """As some network file systems are: a fit ended in an error there."""

    def acquire(*args, **options):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    RunLock(RunDirectory(tmp_path)).release()


def test_the_lock_alone_makes_no_run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    RunLock(directory).release()
    directory.discard_if_empty()
    assert not directory.path.exists()


def test_nothing_half_written_stays_where_a_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]
    assert path.read_text() == "old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_line_is_added_whole_or_not_at_all(tmp_path):
    path = tmp_path / "decisions.jsonl"
    append_text(path, "one\n")
    append_text(path, "two\n")
    assert path.read_text() == "one\ntwo\n"
    with pytest.raises(OSError, match="No space left"):
        append_text(type(path)("/dev/full"), "three\n")
