"""One at a time where the system has no locks."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from vidlit.latents.storage import lease
from vidlit.latents.storage.lease import leased
from vidlit.latents.storage.local_folder import LocalFolder

NAME = ".encoding.json"


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_SETTLED_SECONDS", 0.05)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.05)
    return LocalFolder(tmp_path)


def test_the_second_waits_until_the_first_is_done(storage, capsys):
    order, entered = [], threading.Event()

    def first():
        with leased(storage, NAME):
            entered.set()
            time.sleep(0.4)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with leased(storage, NAME):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert capsys.readouterr().err.count(f"encoding into {storage} (process {os.getpid()} on") == 1
    assert not (storage.root / NAME).exists()


def test_a_dead_process_of_this_machine_is_not_waited_for(storage):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    storage.write(NAME, f"{process.pid} {socket.gethostname()} 0123 0\n".encode())
    began = time.monotonic()
    with leased(storage, NAME):
        assert time.monotonic() - began < 10


def test_a_note_that_nobody_renews_is_a_dead_process(storage, monkeypatch):
    monkeypatch.setattr(lease, "_DEAD_SECONDS", 0.3)
    storage.write(NAME, b"1 elsewhere 0123 0\n")
    with leased(storage, NAME):
        pass


def test_it_is_renewed_while_it_is_held(storage, monkeypatch):
    monkeypatch.setattr(lease, "_RENEWED_SECONDS", 0.05)
    with leased(storage, NAME):
        first = storage.read(NAME)
        for _ in range(200):
            if storage.read(NAME) != first:
                break
            time.sleep(0.02)
        assert storage.read(NAME).split()[:3] == first.split()[:3]
        assert storage.read(NAME) != first
