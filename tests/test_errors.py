"""What is said of errors: one line, on one screen, with what to do; a traceback only with --debug."""

import errno
import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError

from vidlit import commands
from vidlit.__main__ import main
from vidlit.errors import MAX_LENGTH, UserError, disk_full, explain_error, is_lost_rank, is_out_of_memory, on_one_screen


def raised(call):
    """The error of a call, with its traceback."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever it is
        call()
    return caught.value


def refused(**options):
    return raised(lambda: Trainer(logger=False, **options))


NO_SPACE = "No space left on device"
IN_A_WORKER = (
    "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    '  File "x.py", line 1\nvidlit.errors.UserError: shard 3 is damaged'
)
KNOWN = {
    "of the user's": (UserError("the file is not there"), "the file is not there"),
    "a full disk": (OSError(errno.ENOSPC, NO_SPACE, "/data/x"), "no space is left on the disk of /data/x"),
    "a full quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left"),
    "a full disk, told by safetensors": (SafetensorError(f"Io(Os {{ message: {NO_SPACE} }})"), "no space is left"),
    "a permission": (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "/data/x: no permission"),
    "a read-only disk": (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: the disk is read-only"),
    "a missing file": (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.yaml"), "a.yaml: no such file"),
    "a folder": (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), "a: Is a directory"),
    "too many files": (OSError(errno.EMFILE, "Too many open files"), "ulimit"),
    "torchao": (ModuleNotFoundError("No module named 'torchao'", name="torchao"), "pip install 'vidlit[quantize]'"),
    "prodigy": (ModuleNotFoundError("No module named 'prodigyopt'"), "pip install 'vidlit[optimizers]'"),
    "one within the parser": (ArgumentError(None, "No module named 'bitsandbytes.optim'"), "install 'bitsandbytes'"),
    "tensorboard": (
        ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available. Try `pip install`ing either."),
        "pip install 'tensorboard'",
    ),
    "mlflow": (
        ModuleNotFoundError("Requirement 'mlflow>=1.0.0' not met. HINT: Try running `pip install -U 'mlflow>=1.0.0'`"),
        "pip install 'mlflow'",
    ),
    "comet, made by the parser": (
        ValueError("Problem with given class_path 'x.CometLogger': Requirement 'comet-ml>=3.44.4' not met. HINT: ..."),
        "pip install 'comet-ml'",
    ),
    "comet": (ModuleNotFoundError("Module not found: 'comet_ml'. HINT: Try `pip install -U x`"), "'comet-ml'"),
    "memory": (MemoryError(), "out of memory"),
    "a GPU's memory": (torch.OutOfMemoryError("CUDA out of memory."), "out of memory"),
    "safetensors": (SafetensorError("invalid header"), "a safetensors file cannot be read or written: invalid header"),
    "pickled": (raised(lambda: torch.load(__file__, weights_only=True)), "holds more than numbers"),
    "options of the parser": (ArgumentError(None, "expected\n  a number"), "expected a number"),
    "an import": (
        ArgumentError(None, "Parser key \"model.optimizer\": x: Importing 'torch.load' is not allowed, denied by ..."),
        "model.optimizer: torch.load is none of the classes that a config may name",
    ),
    "Lightning": (MisconfigurationException("no\n such thing"), "Lightning refuses this: no such thing"),
    "no devices": (refused(devices=0, accelerator="cpu"), "Lightning refuses this: "),
    "a bad value": (refused(limit_val_batches=-3), "Lightning refuses this: "),
    "a strategy": (refused(strategy="nonsense"), "Lightning refuses this: "),
    "in a worker": (UserError(IN_A_WORKER), "shard 3 is damaged"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_a_user_can_mend_is_one_line(name):
    error, said = KNOWN[name]
    told = explain_error(error)
    assert told is not None
    assert said in told
    assert len(told.splitlines()) == 1
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "error", [KeyError("x"), ZeroDivisionError("x"), AssertionError(), RuntimeError("x"), AttributeError("x"),
              ModuleNotFoundError("No module named 'vidlit.nowhere'", name="vidlit.nowhere")], ids=repr)  # fmt: skip
def test_what_nobody_foresaw_is_not_told_as_the_users(error):
    assert explain_error(error) is None


def test_a_full_disk_is_known_through_what_came_of_it():
    def fail():
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/data/x")
        except OSError:
            raise KeyError("summary")  # noqa: B904 - as an error on the way does

    assert disk_full(raised(fail)) == "no space is left on the disk of /data/x"
    assert disk_full(KeyError("x")) is None


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.integers(1, 100))
@example("a name \x1b[31m with \x07 and \udcff", 1)
@example("x" * 100, 100)
def test_a_message_is_what_a_screen_can_show(text, times):
    shown = on_one_screen(text * times)
    assert len(shown) <= MAX_LENGTH
    shown.encode()  # no half characters
    assert all(each == "\n" or each.isprintable() for each in shown)
    if text.isprintable() and len(text * times) <= MAX_LENGTH:
        assert shown == text * times


class Failing:
    """Stands in for a command."""

    def __init__(self, error):
        self.error = error

    def run(self, words):
        raise self.error


@pytest.mark.parametrize("error", [KeyError("a\nb"), RuntimeError("x" * 10_000)], ids=["short", "long"])
def test_a_bug_is_one_line_without_its_traceback(monkeypatch, capsys, error):
    monkeypatch.setattr(commands, "load", lambda name: Failing(error))
    assert main(["report", "run"]) == 1
    printed = capsys.readouterr().err
    assert re.match(r"vidlit: error: this is a bug in vidlit: \w+: ", printed)
    assert "Run again with --debug" in printed
    assert len(printed.splitlines()) == 1
    assert len(printed) < MAX_LENGTH
    with pytest.raises(type(error)):
        main(["report", "run", "--debug"])


def test_a_name_that_is_no_utf8_is_printed_all_the_same(monkeypatch, capsys):
    monkeypatch.setattr(commands, "load", lambda name: Failing(UserError("film_\udcff.mp4: no such file")))
    assert main(["report", "run"]) == 2
    assert capsys.readouterr().err == "vidlit: error: film_\\xff.mp4: no such file\n"


def test_an_interrupt_is_no_error_of_anyones(monkeypatch, capsys):
    monkeypatch.setattr(commands, "load", lambda name: Failing(KeyboardInterrupt()))
    assert main(["report", "run"]) == 130
    assert "interrupted by SIGINT" in capsys.readouterr().err


def test_a_cpus_failed_allocation_counts_and_other_errors_do_not():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.7]:45: Connection reset by peer"),
        RuntimeError("[gloo/gloo/transport/tcp/unbound_buffer.cc:133] Timed out waiting 1800000ms for recv"),
        torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"),
        torch.distributed.DistBackendError("ncclRemoteError: A call failed possibly due to a network error"),
        torch.distributed.DistNetworkError("failed to recv, got 0 bytes. Connection was likely closed."),
        torch.distributed.DistStoreError("Broken pipe"),
    ],
)
def test_a_connection_that_broke_is_another_ranks_end(error):
    assert is_lost_rank(error)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),  # of a download
        torch.distributed.DistBackendError("NCCL error: invalid usage. Duplicate GPU detected"),
        RuntimeError("shapes differ"),
        UserError("the bucket refused"),
    ],
)
def test_other_errors_are_no_ranks_end(error):
    assert not is_lost_rank(error)
