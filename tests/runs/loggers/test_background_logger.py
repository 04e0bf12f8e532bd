import threading
import time

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger

from vidlit.runs.loggers.background_logger import MAX_WAITING, BackgroundLogger, prepare_wandb


class Recorder(Logger):
    """Remembers what it is told; `on_log` may raise or hang."""

    def __init__(self, on_log=lambda count: None):
        super().__init__()
        self.logged = []
        self.calls = 0
        self.on_log = on_log

    name = "recorder"
    version = "0"
    save_dir = "somewhere"

    def log_metrics(self, metrics, step=None):
        self.calls += 1
        self.on_log(self.calls)
        self.logged.append((metrics, step))

    def log_hyperparams(self, params, *args, **kwargs):
        self.logged.append(params)


def test_everything_arrives_in_order():
    recorder = Recorder()
    logger = BackgroundLogger(recorder)
    logger.log_hyperparams({"a": 1})
    for step in range(50):
        logger.log_metrics({"x": torch.tensor(step / 2)}, step)
    logger.submit(lambda inner: inner.logged.append(inner.save_dir))
    logger.finalize("success")
    assert recorder.logged == [{"a": 1}, *(({"x": step / 2}, step) for step in range(50)), "somewhere"]
    assert logger.save_dir == "somewhere"


def test_one_that_never_works_is_warned_of_and_left_alone(capsys, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "canary-in-the-mine")

    def fail(count):
        raise SystemExit("no route\nto host for canary-in-the-mine")

    recorder = Recorder(fail)
    logger = BackgroundLogger(recorder)
    for step in range(20):
        logger.log_metrics({"x": 0.0}, step)
    assert not logger.wait()
    logger.finalize("success")
    assert recorder.calls == 1
    assert capsys.readouterr().err == (
        "vidlit: warning: Recorder failed (SystemExit: no route to host for <redacted>); training goes on without it\n"
    )


def test_one_that_fails_now_and_then_goes_on(capsys):
    def fail(count):
        if count % 3 == 0:
            raise OSError("busy")

    recorder = Recorder(fail)
    logger = BackgroundLogger(recorder)
    for step in range(9):
        logger.log_metrics({"x": 0.0}, step)
    assert logger.wait()
    assert [step for _, step in recorder.logged] == [0, 1, 3, 4, 6, 7]
    assert capsys.readouterr().err.count("warning") == 1


def test_one_that_fails_for_good_is_left_alone():
    def fail(count):
        if count > 2:
            raise OSError("gone")

    recorder = Recorder(fail)
    logger = BackgroundLogger(recorder)
    for step in range(20):
        logger.log_metrics({"x": 0.0}, step)
    assert not logger.wait()
    assert recorder.calls == 2 + 3


@pytest.fixture
def hanging():
    released = threading.Event()
    yield Recorder(lambda count: released.wait(60))
    released.set()


def test_one_that_hangs_costs_nothing_but_the_wait_at_the_end(hanging, capsys):
    logger = BackgroundLogger(hanging, patience_seconds=0.5)
    began = time.monotonic()
    for step in range(MAX_WAITING + 100):
        logger.log_metrics({"x": 0.0}, step)
    assert time.monotonic() - began < 5
    began = time.monotonic()
    logger.finalize("success")
    logger.finalize("success")  # waits once
    assert 0.4 < time.monotonic() - began < 5
    assert "does not keep up" in capsys.readouterr().err


def test_nothing_logged_is_nothing_waited_for(hanging):
    assert BackgroundLogger(hanging).wait()


class WithExperiment(Recorder):
    """Has something to write with, which may take a while to open, or fail."""

    def __init__(self, open_it=lambda: None):
        super().__init__()
        self.open_it = open_it

    @property
    def experiment(self):
        self.open_it()
        return self.logged


def test_callbacks_reach_what_the_logger_writes_with():
    logger = BackgroundLogger(WithExperiment(lambda: time.sleep(0.1)))
    logger.experiment.append("mine")
    assert logger.logger.logged == ["mine"]


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_an_experiment_that_cannot_be_opened_holds_nothing_up(how, capsys):
    release = threading.Event()

    def open_it():
        if how == "fails":
            raise OSError("no route to host")
        release.wait(20)

    logger = BackgroundLogger(WithExperiment(open_it), patience_seconds=0.2)
    began = time.monotonic()
    logger.experiment.add_image("name", None)  # takes anything
    assert time.monotonic() - began < 5
    release.set()


def test_what_wandb_shows_of_a_run_holds_no_key(tmp_path):
    key = "hf_abcdefghijklmnopqrstuvwxyz0123456789"
    init_args = Namespace(
        save_dir=".", offline=True, project="p", tags=["a", key], notes=f"by {key}", group=key, name="n"
    )
    options = {
        "job_type": key,
        "config": {"api_key": "abc", "url": "https://h/?token=abc"},
        "settings": {"api_key": "k"},
    }
    logger = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=init_args, dict_kwargs=options)
    prepare_wandb(logger, tmp_path)
    assert (logger.init_args.project, logger.init_args.name, logger.init_args.tags[0]) == ("p", "n", "a")
    assert logger.dict_kwargs["settings"]["api_key"] == "k"  # W&B itself needs it, and shows it to nobody
    shown = str(logger)
    assert "hf_" not in shown
    assert "abc" not in shown
