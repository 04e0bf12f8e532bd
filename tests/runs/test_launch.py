"""Processes that torchrun, SLURM or a person starts at once share one run directory."""

import csv
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from vidlit.errors import UserError
from vidlit.lightning_internals import before_ranks_are_killed
from vidlit.runs import launch
from vidlit.runs.directory import new_run_directory
from vidlit.runs.launch import Launch, telling_of_lost_ranks


def agree(world_size, decide):
    """What each of several ranks, started at once, gets."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ranks = [Launch(rank, world_size, "127.0.0.1", port) for rank in range(world_size)]

    def get(launch):
        try:
            return launch.agree(decide)
        except UserError as error:
            return error

    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(get, reversed(ranks)))


def test_all_ranks_get_what_one_decides(tmp_path):
    got = agree(3, lambda: [str(new_run_directory(tmp_path, "a").path), None])
    assert got == [[str(tmp_path / "a" / "0"), None]] * 3
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["0"]


def test_all_ranks_learn_why_it_cannot_be_decided(tmp_path):
    (tmp_path / "file").touch()
    got = agree(2, lambda: str(new_run_directory(tmp_path / "file", "a").path))
    assert all("cannot make a run directory" in str(error) for error in got), got


def test_ranks_of_slurm(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node7")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    slurm = {"JOB_ID": "81234", "NTASKS": "8", "NTASKS_PER_NODE": "4", "NNODES": "2", "PROCID": "5", "NODEID": "1"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert Launch.detect() == Launch(5, 8, "node7", 16234, num_nodes=2, devices=4)
    monkeypatch.delenv("MASTER_PORT")  # Lightning sets it
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match="--ntasks-per-node"):
        Launch.detect()


def test_nodes_that_somebody_starts_by_hand(monkeypatch):
    for name, value in {"NODE_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(name, value)
    assert Launch.detect() is None
    assert Launch.detect(num_nodes=2) == Launch(1, 2, "node7", 1234, num_nodes=2)
    monkeypatch.setenv("LOCAL_RANK", "1")  # a child of Lightning's on this node
    assert Launch.detect(num_nodes=2) is None


def lose_a_rank(world_size, last_checkpoint, error=RuntimeError("Read error: Connection reset by peer")):  # noqa: B008
    try:
        with telling_of_lost_ranks(SimpleNamespace(world_size=world_size, global_rank=0), last_checkpoint):
            raise error
    finally:
        before_ranks_are_killed(None)


def test_what_is_said_of_a_rank_that_died(tmp_path):
    last = tmp_path / "last.ckpt"
    with pytest.raises(UserError, match=r"^rank 1 of 2 died, and rank 0 cannot go on .* Nothing was saved yet"):
        lose_a_rank(2, last)
    last.touch()
    with pytest.raises(UserError, match=r"^another one of 3 ranks died.* is whole: go on with --ckpt_path last\.$"):
        lose_a_rank(3, last)
    with pytest.raises(UserError, match="What was encoded is kept: give the same command again"):
        lose_a_rank(2, None)
    with pytest.raises(RuntimeError, match=r"^shapes differ"):
        lose_a_rank(2, last, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match=r"^Read error"):
        lose_a_rank(1, last)


def test_ranks_that_are_left_waiting_say_why_before_they_are_killed(tmp_path, monkeypatch, capsys):
    killed = threading.Event()
    monkeypatch.setattr(launch, "_SECONDS_TO_END", 0.0)
    monkeypatch.setattr(_ChildProcessObserver, "_terminate_all", lambda _: killed.set())
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    observer = _ChildProcessObserver(os.getpid(), [child], sleep_period=0.05)
    with telling_of_lost_ranks(SimpleNamespace(world_size=3, global_rank=0), tmp_path):
        observer.start()
        child.kill()
        assert killed.wait(30)
    observer.join()
    error = capsys.readouterr().err
    assert "vidlit: error: rank 1 of 3 died (killed by SIGKILL), and rank 0 cannot go on without it." in error
    assert error.count("\n") == 2
    assert "zombies" not in error


def torchrun(words, folder, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [f"--{name}={value}" for name, value in options.items()]
    return subprocess.Popen(
        [*command, "-m", "vidlit", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_torchrun_encodes_and_fits_in_one_run_directory_and_goes_on_in_it_after_a_restart(quickstart, tmp_path):
    store = tmp_path / "store"
    encode = torchrun(quickstart("encode", data__store=store), tmp_path)
    output, _ = encode.communicate(timeout=240)
    assert encode.returncode == 0, output
    assert "12 clips and 6 captions encoded" in output
    assert not (tmp_path / "runs").exists()

    options = {"trainer__max_steps": 60, "trainer__val_check_interval": 10}
    words = quickstart(data__store=store, overfit_stopping__policy__divergence="off", **options)
    fit = torchrun(words, tmp_path, max_restarts=1)
    run = tmp_path / "runs" / "quickstart" / "0"
    last = run / "checkpoints" / "last.ckpt"
    while fit.poll() is None and not last.exists():
        time.sleep(0.05)
    assert fit.poll() is None, fit.communicate()[0]
    os.kill(children_of(fit.pid)[1], signal.SIGKILL)
    output, _ = fit.communicate(timeout=300)
    assert fit.returncode == 0, output
    assert [path.name for path in run.parent.iterdir()] == ["0"]
    with (run / "metrics.csv").open() as file:
        steps = [int(float(row["step"])) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == list(range(1, 61))
    with (run / "exposure.csv").open() as file:
        counts = [int(row["exposures"]) for row in csv.DictReader(file) if row["split"] == "train"]
    assert sum(counts) == 60 * 2 * 2


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return sorted(map(int, file.read().split()))
