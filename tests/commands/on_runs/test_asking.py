import json
import subprocess
import sys
import threading
import time

import pytest

from vidlit.__main__ import main
from vidlit.commands.on_runs import asking
from vidlit.runs.directory import RunDirectory
from vidlit.runs.live.requests import Requests
from vidlit.runs.lock import RunLock


@pytest.fixture
def held(tmp_path):
    """A run directory that this process holds as a fit does."""
    directory = RunDirectory(tmp_path / "mine" / "0")
    lock = RunLock(directory)
    yield directory
    lock.release()


def test_no_fit_is_told_at_once(tmp_path, capsys):
    assert main(["sample", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert main(["stop", str(tmp_path)]) == 2
    assert f"no fit is running in {tmp_path}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        (["sample"], "sample", "training goes on"),
        (["stop"], "stop", "keeps the best weights"),
        (["stop", "--save-only"], "save", "to go on with --ckpt_path last"),
    ],
)
def test_a_run_that_hears_is_told_of(held, words, kind, told, capsys):
    requests = Requests(held)

    def hear():
        while not requests.is_waiting(kind):
            time.sleep(0.01)
        requests.take(kind)

    listener = threading.Thread(target=hear, daemon=True)
    listener.start()
    assert main([*words, str(held.path)]) == 0
    listener.join()
    printed = capsys.readouterr().out
    assert printed.startswith(f"Asked the fit in {held.path} (process ")
    assert "It has heard: " in printed
    assert told in printed


def test_one_that_is_busy_is_asked_all_the_same(held, monkeypatch, capsys):
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", 0.3)
    assert main(["stop", str(held.path)]) == 0
    assert "It is busy with something longer: when its step, check or audit is over, it checks once more" in (
        capsys.readouterr().out
    )
    assert Requests(held).is_waiting("stop")


def test_a_folder_above_names_the_only_run_that_is_going_on(held, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", 0.0)
    for above in (tmp_path, tmp_path / "mine"):
        assert main(["sample", str(above)]) == 0
        assert f"Asked the fit in {held.path} " in capsys.readouterr().out
    other = RunLock(RunDirectory(held.path.parent / "1"))
    assert main(["sample", str(tmp_path)]) == 2
    assert f"several fits are running in {tmp_path}: name one of {held.path}, " in capsys.readouterr().err
    other.release()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_real_fit_is_asked_for_samples_and_then_to_end(quickstart, tmp_path, devices):
    def vidlit(*words):
        return [sys.executable, "-m", "vidlit", *map(str, words)]

    words = quickstart(trainer__max_steps=100_000, trainer__val_check_interval=20, samples__num_audit=2)
    words += ["--trainer.strategy=ddp", "--trainer.devices=2"] if devices == 2 else []
    off = [f"--overfit_stopping.policy.{name}=off" for name in ("divergence", "copies", "diversity", "exposure")]
    run = RunDirectory(tmp_path / "runs" / "quickstart" / "0")
    fit = subprocess.Popen(vidlit(*words, *off), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while fit.poll() is None and not run.last_checkpoint.exists():
            time.sleep(0.2)
        sampled = subprocess.run(vidlit("sample", run.path), capture_output=True, text=True, timeout=120, check=False)
        assert (sampled.returncode, sampled.stderr) == (0, "")
        assert f"(process {fit.pid} on" in sampled.stdout
        while fit.poll() is None and "samples, as asked for" not in run.log.read_text():
            time.sleep(0.2)
        stopped = subprocess.run(vidlit("stop", run.path), capture_output=True, text=True, timeout=120, check=False)
        assert (stopped.returncode, stopped.stderr) == (0, "")
        printed, errors = fit.communicate(timeout=120)
    finally:
        fit.kill()
    assert fit.returncode == 0, errors
    assert printed.count("samples, as asked for") == 1
    assert json.loads(run.summary.read_text())["stopped_by"] == "request"
    assert run.weights.is_dir()
    assert "`vidlit stop` ends the run" in run.log.read_text()
    assert subprocess.run(vidlit("stop", run.path), capture_output=True, check=False).returncode == 2
