"""`vidlit watch` as a process and over the wire: what it answers, and what it refuses."""

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import psutil
import pytest

from vidlit.__main__ import main
from vidlit.report.server import Watch
from vidlit.runs.record import RunRecord


@pytest.fixture(scope="module")
def runs(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched") / "runs"
    ignored = shutil.ignore_patterns("*.ckpt", "weights")
    for number in "01":
        shutil.copytree(finished_run, folder / "quickstart" / number, ignore=ignored)
    return folder


@contextmanager
def served(root, **options):
    watch = Watch(root, port=0, **options)
    thread = threading.Thread(target=watch.serve)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def watch(runs):
    with served(runs) as watch:
        yield watch


def ask(watch, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", watch.port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer, answer.read()


def test_pages_of_all_runs_of_one_and_of_several(watch):
    for path, words in (
        ("/", b"quickstart/0</a>"),
        ("/run?run=quickstart/0", b"Trained all 12 steps"),
        ("/compare?run=quickstart/0&run=quickstart/1", b"2 runs side by side"),
    ):
        answer, body = ask(watch, path)
        assert answer.status == 200
        assert words in body
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"


def test_updates(watch):
    answer, body = ask(watch, "/run/updates?run=quickstart/0&version=x")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert b'"section status"' in body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7878", "127.0.0.1.evil.example", "10.0.0.1"])
def test_a_name_that_was_pointed_at_this_machine_is_refused(watch, host):
    for path in ("/", "/run?run=quickstart/0", "/run/updates?run=quickstart/0"):
        answer, body = ask(watch, path, Host=host)
        assert answer.status == 400
        assert b"quickstart" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_writes(watch, runs, method):
    before = sorted((path, path.stat().st_mtime_ns) for path in runs.rglob("*"))
    for path in ("/", "/run?run=quickstart/0", "/video?run=quickstart/0", "/clip?run=quickstart/0&number=0"):
        assert ask(watch, path, method)[0].status == 405
    assert sorted((path, path.stat().st_mtime_ns) for path in runs.rglob("*")) == before


def test_videos_can_be_sought_in(watch, runs):
    path = next((runs / "quickstart" / "0" / "samples").rglob("*.mp4"))
    name = path.relative_to(runs / "quickstart" / "0").as_posix()
    answer, body = ask(watch, f"/video?run=quickstart/0&path={name}")
    assert (answer.status, body) == (200, path.read_bytes())
    assert answer.headers["Content-Type"] == "video/mp4"
    answer, body = ask(watch, f"/video?run=quickstart/0&path={name}", Range="bytes=10-19")
    assert (answer.status, body) == (206, path.read_bytes()[10:20])


@pytest.mark.parametrize(
    "path",
    [
        "/video?run=quickstart/0&path=config.yaml",
        "/video?run=quickstart/0&path=../../../secret.mp4",
        "/video?run=quickstart/0&path=samples/../config.yaml",
        "/video?run=quickstart/0&path=/etc/passwd",
        "/video?run=..&path=secret.mp4",
        "/video?run=quickstart/0",
        "/clip?run=quickstart/0&number=-1",
        "/clip?run=quickstart/0&number=99",
        "/clip?run=nothing&number=0",
        "/run?run=nothing",
        "/run/../../etc/passwd",
        "/favicon.ico",
    ],
)
def test_what_is_none_of_the_pages_is_not_there(watch, runs, path):
    (runs.parent / "secret.mp4").write_bytes(b"secret")
    answer, body = ask(watch, path)
    assert answer.status == 404
    assert b"secret" not in body


def test_clips(watch, runs):
    assert len(RunRecord(runs / "quickstart" / "0").dataset) == 12
    answer, body = ask(watch, "/clip?run=quickstart/0&number=0")
    assert answer.status == 200
    assert body[4:8] == b"ftyp"


def test_a_token(runs):
    with served(runs, with_token=True) as watch:
        token = re.search(r"\?token=([\w-]{20,})$", watch.address)[1]
        assert ask(watch, "/")[0].status == 403
        assert ask(watch, "/?token=wrong")[0].status == 403
        assert b"quickstart" not in ask(watch, "/run/updates?run=quickstart/0")[1]
        answer, _ = ask(watch, f"/run?run=quickstart/0&token={token}")
        assert (answer.status, answer.headers["Location"]) == (303, "/run?run=quickstart%2F0")
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert str(watch.port) in cookie.partition("=")[0]  # another server's is another one
        assert ask(watch, "/", Cookie=cookie.partition(";")[0])[0].status == 200


def test_an_address_of_all_machines_asks_for_a_token(runs):
    watch = Watch(runs, host="0.0.0.0", port=0)
    assert len(watch.token) > 20
    assert watch.token in watch.address
    watch._socket.close()


def test_a_port_that_is_taken(watch, runs, capsys):
    assert main(["watch", str(runs), "--port", str(watch.port)]) == 2
    assert f"port {watch.port}" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_is_none(runs, port, capsys):
    assert main(["watch", str(runs), f"--port={port}"]) == 2
    assert "give another --host or --port" in capsys.readouterr().err


def test_no_such_folder(tmp_path, capsys):
    assert main(["watch", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def until_it_serves(line):
    """Wait until the address that a line names answers."""
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/")
    assert connection.getresponse().status == 200


def start(*words):
    command = [sys.executable, "-m", "vidlit", "watch", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_says_where_and_ends_with_ctrl_c(runs):
    process = start(runs, "--port", 0)
    line = process.stdout.readline()
    assert "ssh -L" in process.stdout.readline()
    until_it_serves(line)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="ends processes another way")
def test_the_end_by_a_signal_leaves_nothing(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = start(runs, "--port", 0)
    until_it_serves(process.stdout.readline())
    assert list(tmp_path.glob("vidlit_watch_*"))
    process.terminate()
    process.communicate(timeout=30)
    assert not list(tmp_path.glob("vidlit_watch_*"))


@pytest.mark.slow
def test_it_ends_after_the_fit_that_opened_it(quickstart, tmp_path):
    """`fit --watch` shows the run by a process of its own, which goes when nobody looks any more."""
    words = [*quickstart(trainer__max_steps=4), "--watch"]
    done = subprocess.run(
        [sys.executable, "-m", "vidlit", *map(str, words)], capture_output=True, text=True, timeout=300, check=True
    )
    port = int(re.search(r"is shown at http://127\.0\.0\.1:(\d+)/", done.stdout)[1])
    (server,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "watch" in (process.info["cmdline"] or ()) and str(tmp_path) in " ".join(process.info["cmdline"])
    ]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/")
    assert b"Trained all 4 steps" in connection.getresponse().read()
    began = time.monotonic()
    server.wait(90)
    assert 20 < time.monotonic() - began
    assert os.path.isdir(tmp_path / "runs" / "quickstart" / "0")
