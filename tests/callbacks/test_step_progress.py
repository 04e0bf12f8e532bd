"""The bar in real terminals (pseudo-terminals) of several widths and kinds."""

import os
import re
import sys

import pytest

from vidlit.callbacks.step_progress import fit_line

NUMBERS = ["val loss -28.1 %", "loss 1.81", "exposures 60", "26.1 samples/s"]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize(
    ("room", "bar", "numbers"),
    [(100, 20, 4), (70, 10, 4), (60, 10, 3), (40, 10, 2), (28, 10, 1), (20, 0, 1), (10, 0, 0), (-5, 0, 0)],
)
def test_the_bar_is_shortened_before_numbers_go(room, bar, numbers):
    assert fit_line(room, NUMBERS) == (bar, ", ".join(NUMBERS[:numbers]))


def in_a_terminal(words, width, **variables):
    """What a command writes to a terminal of 30 lines."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    import struct

    process, terminal = pty.fork()
    if process == 0:  # a new process: nothing of the test may go on in it
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
        left_out = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "CI")
        # Named to execve: readline sets COLUMNS where os.environ does not see it.
        environment = {name: value for name, value in os.environ.items() if name not in left_out}
        environment |= {"TERM": "xterm-256color", **variables}
        os.execve(sys.executable, [sys.executable, "-m", "vidlit", *words], environment)
    written = b""
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not read:
            break
        written += read
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, written.decode()
    return written.decode()


def shown(written):
    """What stood on the screen at some time, line by line: cursor moves begin a line anew."""
    plain = COLOUR.sub("", written)
    return [line.rstrip() for line in re.split(r"\r\n|\n|\r|\x1b\[[0-9;?]*[A-Za-z]", plain) if line.strip()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 60])
def test_a_narrow_terminal_shows_step_and_times(quickstart, tmp_path, width):
    written = in_a_terminal(quickstart(trainer__max_steps=24), width)
    lines = shown(written)
    # What is longer is one word, or one beside its name: a path, which can be copied whole.
    assert [line for line in lines if len(line) > width and len(line.split()) > 2 and "/" not in line.split()[-1]] == []
    bars = [line for line in lines if line.startswith("step ")]
    assert len(bars) > 3
    times = re.compile(r"step \d+/24 .*\d+ s(, at most (\d+ min )?(\d+ s )?left)?$")
    assert [line for line in bars if not times.fullmatch(line) or len(line) > width] == []
    assert any("at most" in line for line in bars)
    assert any("val loss" in line for line in bars)
    assert written.count("Trained all 24 steps") == 1
    assert "At the end each video had been seen 16 times on average" in " ".join(lines)
    assert f"{tmp_path / 'runs' / 'quickstart' / '0' / 'weights'}" in written


@pytest.mark.slow
def test_terminals_without_colours_or_a_cursor(quickstart):
    written = in_a_terminal(quickstart(trainer__max_steps=8), 80, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][0-9;]*m", written)
    assert "step 8/8" in written
    assert "\x1b" not in in_a_terminal(quickstart(trainer__max_steps=8), 80, TERM="dumb")
