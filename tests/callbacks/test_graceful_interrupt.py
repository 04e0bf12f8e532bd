import csv
import json
import os
import signal

import pytest
import torch

from vidlit.__main__ import main
from vidlit.callbacks.graceful_interrupt import GracefulInterrupt
from vidlit.runs.directory import RunDirectory
from vidlit.runs.live import requests
from vidlit.runs.live.requests import Requests
from vidlit.training.module import VideoDiffusionModule


@pytest.fixture
def asked(monkeypatch):
    """Has something asked of a run in the middle of its steps, by their numbers."""
    monkeypatch.setattr(requests, "LOOK_SECONDS", 0.0)
    training_step = VideoDiffusionModule.training_step

    def when(kinds):
        def step(self, batch, batch_idx):
            run = next(c for c in self.trainer.callbacks if isinstance(c, GracefulInterrupt)).run
            kind = kinds.get(self.trainer.global_step + 1)
            if isinstance(kind, int):
                os.kill(os.getpid(), kind)
            elif kind is not None:
                Requests(run).ask(kind)
            return training_step(self, batch, batch_idx)

        monkeypatch.setattr(VideoDiffusionModule, "training_step", step)

    return when


def numbers(run):
    """Every number that is logged, but those of time and memory."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def state(run):
    """All that the last checkpoint holds, but the seconds that it took."""
    loaded = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for timed in ("OverfitStopping", "ValidationSchedule"):
        loaded["callbacks"].get(timed, {}).pop("seconds", None)
    return loaded


def assert_same(one, other, where=""):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            if not any(kind in str(name) for kind in ("ModelCheckpoint", "RunCheckpoints")):  # they hold paths
                assert_same(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{number}")
    else:
        assert one == other or (one != one and other != other), where  # NaN is NaN, too


@pytest.mark.parametrize("averaged", [False, True])
def test_samples_on_request_change_nothing_of_the_run(quickstart, tmp_path, asked, averaged, capsys):
    (tmp_path / "mine.txt").write_text("A red disc moves right.")
    options = {"samples__num_audit": 2, "samples__audit_steps": 1, "samples__num_steps": 1}
    options |= {
        "samples__every_num_checks": 2,
        "samples__prompts": tmp_path / "mine.txt",
        "model__caption_dropout": 0.5,
    }
    options |= {"model__ema": "{decay: 0.9}"} if averaged else {}
    assert main(quickstart(run__name="whole", trainer__accumulate_grad_batches=2, **options)) == 0
    asked({2: "sample", 8: "sample", 5: signal.SIGUSR2 if hasattr(signal, "SIGUSR2") else "sample"})
    capsys.readouterr()
    assert main(quickstart(trainer__accumulate_grad_batches=2, **options)) == 0
    printed = capsys.readouterr().out
    whole, run = tmp_path / "runs" / "whole" / "0", tmp_path / "runs" / "quickstart" / "0"

    assert numbers(run) == numbers(whole)
    assert_same(state(run), state(whole))
    there, here = (RunDirectory(each).read_decisions() for each in (whole, run))
    assert here == there
    made = {int(folder.name[5:]) for folder in (run / "samples").glob("step_*")}
    scheduled = {int(folder.name[5:]) for folder in (whole / "samples").glob("step_*")}
    assert made == scheduled | {2, 5, 8}
    for step in (2, 5):
        folder = run / "samples" / f"step_00000{step}"
        assert f"step {step}: samples, as asked for: {folder}" in printed
        assert [path.name[:8] for path in sorted(folder.glob("*.mp4"))] == ["audit_00", "audit_01", "prompt_0"]
    assert not list(run.glob(".request_*"))


def test_stop_ends_a_run_with_all_that_its_last_step_brings(quickstart, tmp_path, asked, capsys):
    asked({6: "stop"})
    assert main(quickstart(run__report=True, samples__num_videos=1, samples__num_steps=1)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["stopped_by"], summary["stop_step"], summary["planned_steps"]) == ("request", 6, 12)
    assert [decision["step"] for decision in RunDirectory(run).read_decisions()] == [4, 6]  # a check at the last step
    assert summary["kept_step"] in (0, 4, 6)
    assert (run / "weights").is_dir()
    assert (run / "report.html").is_file()
    assert list((run / "samples" / f"step_{summary['kept_step']:06d}").glob("*.mp4"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "step 6: `vidlit stop` ends the run" in printed
    assert "Ended by `vidlit stop` at step" in printed
    assert "go on with: --ckpt_path" in printed

    asked({})  # and it goes on as it would have
    assert main([*quickstart(), "--ckpt_path=last"]) == 0
    assert json.loads((run / "summary.json").read_text())["stop_step"] == 12


def test_save_only_ends_it_as_ctrl_c_does(quickstart, tmp_path, asked, capsys):
    asked({6: "save"})
    assert main(quickstart()) == 128 + signal.SIGINT
    run = tmp_path / "runs" / "quickstart" / "0"
    assert "interrupted by `vidlit stop --save-only`; saved. Go on with --ckpt_path" in capsys.readouterr().err
    assert json.loads((run / "summary.json").read_text())["stopped_by"] == "interrupted"
    assert state(run)["global_step"] == 6
    assert not (run / "weights").exists()


def test_where_samples_cannot_be_made_training_goes_on(quickstart, asked, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vidlit.signals.sample_videos.SampleVideos.sample_now", full)
    asked({2: "sample"})
    assert main(quickstart(trainer__max_steps=4)) == 0
    assert "step 2: no samples were made (OSError: [Errno 28] No space left on device); training goes on" in (
        capsys.readouterr().out
    )


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="there is no such signal")
def test_nothing_to_sample_is_said_and_the_signal_is_given_back(quickstart, asked, capsys):
    before = signal.getsignal(signal.SIGUSR2)
    asked({2: "sample"})
    assert main(quickstart(trainer__max_steps=4)) == 0
    assert "step 2: nothing to sample: set samples.prompts" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGUSR2) == before
