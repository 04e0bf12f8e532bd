import errno
import os

import pytest

from vidlit import io_retry
from vidlit.io_retry import retry_io


@pytest.fixture
def slept(monkeypatch):
    """Pauses that were made, which take no time."""
    pauses = []
    monkeypatch.setattr(io_retry.time, "sleep", pauses.append)
    return pauses


def failing(number, times):
    """Fails so many times with an error of the system, then gives 7; and how often it was called."""
    calls = []

    def action():
        calls.append(number)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return 7

    return action, calls


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EAGAIN])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_what_fails_in_passing_is_tried_again_and_told_once(slept, capsys, number, times):
    action, calls = failing(number, times)
    assert retry_io(action, "reading a.mp4") == 7
    assert len(calls) == times + 1
    assert slept == list(io_retry.PAUSES[:times])
    assert capsys.readouterr().err.count("vidlit: reading a.mp4: ") == min(times, 1)


def test_after_three_tries_the_error_stands(slept):
    action, calls = failing(errno.EIO, 99)
    with pytest.raises(OSError, match="Input/output error"):
        retry_io(action, "reading")
    assert len(calls) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENOENT])
def test_what_a_pause_does_not_mend_is_not_tried_again(slept, number):
    action, calls = failing(number, 99)
    with pytest.raises(OSError, match=os.strerror(number)):
        retry_io(action, "writing")
    assert (len(calls), slept) == (1, [])
