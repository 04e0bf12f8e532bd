import pytest

from vidlit.runs.directory import RunDirectory
from vidlit.runs.live import requests
from vidlit.runs.live.requests import Requests, holder, is_running
from vidlit.runs.lock import RunLock


def test_a_request_waits_until_it_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "LOOK_SECONDS", 0.0)
    here, there = Requests(RunDirectory(tmp_path)), Requests(RunDirectory(tmp_path))
    assert here.look() == []
    there.ask("stop")
    there.ask("sample")
    there.ask("sample")
    assert here.look() == ["sample", "stop"]
    here.take("sample")
    here.take("sample")
    assert (there.is_waiting("sample"), there.is_waiting("stop")) == (False, True)
    here.clear()
    assert not there.is_waiting("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_run_looks_once_a_second(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(requests.time, "monotonic", lambda: now[0])
    asked = Requests(RunDirectory(tmp_path))
    assert asked.look() == []
    asked.ask("sample")
    now[0] += 0.9
    assert asked.look() == []
    now[0] += 0.2
    assert asked.look() == ["sample"]


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_is_going_on_while_its_lock_is_held(tmp_path, ended):
    directory = RunDirectory(tmp_path)
    assert not is_running(directory)
    lock = RunLock(directory)
    if ended:
        lock.release()
    assert is_running(directory) is not ended
    assert is_running(directory) is not ended  # looking changes nothing
    assert "process" in holder(directory)
