import io
import os
import re
import subprocess
import sys
import textwrap
import threading

import pytest
from rich.console import Console
from rich.live import Live
from rich.text import Text

from vidlit.__main__ import main
from vidlit.errors import Interrupted, UserError
from vidlit.runs.directory import RunDirectory
from vidlit.runs.live import run_log
from vidlit.runs.live.run_log import RunLog, TerminalText

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ?")


def lines_of(directory, begin=1):
    """Lines of a log without their times; the command, which comes first, is left out."""
    lines = RunDirectory(directory).log.read_text().splitlines()
    assert all(TIME.match(line) for line in lines), lines
    return [TIME.sub("", line, count=1) for line in lines][begin:]


def test_what_is_printed_is_written_with_the_time_and_still_printed(tmp_path, capsys):
    with RunLog(RunDirectory(tmp_path), ["fit", "--run.name", "my clips"]):
        print("clips: 12")
        print("\x1b[1mbold\x1b[0m and \x1b]8;;https://a.b\x1b\\a link\x1b]8;;\x1b\\", file=sys.stderr)
        print("two\nlines", end="")
    print("not in it")
    said = capsys.readouterr()
    assert said.out == "clips: 12\ntwo\nlinesnot in it\n"
    assert "\x1b[1mbold" in said.err
    assert lines_of(tmp_path) == ["clips: 12", "bold and a link", "two", "lines"]
    assert "vidlit fit --run.name 'my clips'" in RunDirectory(tmp_path).log.read_text().splitlines()[0]


def test_a_run_that_goes_on_adds_to_it_and_keys_stay_out(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "canary-of-the-environment")
    with RunLog(RunDirectory(tmp_path), ["fit", "--wandb.api_key", "canary-of-the-words"]):
        print("first, canary-of-the-environment, api_key=canary-of-a-print")
    with RunLog(RunDirectory(tmp_path), ["fit", "--ckpt_path", "last"]):
        print("second")
    text = RunDirectory(tmp_path).log.read_text()
    assert "canary" not in text
    assert [line for line in ("first", "--ckpt_path last", "second") if line in text] == [
        "first",
        "--ckpt_path last",
        "second",
    ]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("that is wrong"), ["vidlit: error: that is wrong"]),
        (KeyboardInterrupt(), ["vidlit: ended by KeyboardInterrupt"]),
    ],
)
def test_how_it_ended_is_in_it(tmp_path, error, told):
    with pytest.raises(type(error)), RunLog(RunDirectory(tmp_path), []):
        raise error
    assert lines_of(tmp_path) == told


def test_an_interrupted_run_and_a_bug_are_told(tmp_path):
    with pytest.raises(Interrupted), RunLog(RunDirectory(tmp_path), []):
        raise Interrupted(2, tmp_path / "last.ckpt")
    assert "interrupted by SIGINT; saved. Go on with --ckpt_path" in lines_of(tmp_path)[-1]
    with pytest.raises(ZeroDivisionError), RunLog(RunDirectory(tmp_path), []):
        1 / 0  # noqa: B018
    assert "Traceback (most recent call last):" in lines_of(tmp_path)
    assert "this is a bug in vidlit: ZeroDivisionError" in lines_of(tmp_path)[-1]


def test_a_bar_is_a_line_now_and_then_and_what_is_printed_above_it_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "BAR_SECONDS", 0.0)
    screen = io.StringIO()
    with RunLog(RunDirectory(tmp_path), []):
        sys.stdout.stream = screen
        console = Console(force_terminal=True, width=30, color_system="truecolor")
        with Live(Text("step 0\nof a bar"), console=console, auto_refresh=False) as bar:
            for number in range(3):
                bar.update(Text(f"step {number} ━━━\nof a bar"), refresh=True)
            print("a warning")
            bar.update(Text("step 3\nof a bar"), refresh=True)
        print("after it")
    lines = lines_of(tmp_path)
    assert lines.count("a warning") == lines.count("after it") == 1
    assert lines.index("a warning") < lines.index("after it") == len(lines) - 1
    assert "step 1 of a bar" in lines, lines
    assert "\x1b[2K" in screen.getvalue()


def test_bars_are_not_written_at_each_picture():
    text = TerminalText()
    assert text.feed("a line\n") == ["a line"]
    pictures = [line for number in range(1000) for line in text.feed(f"\r{number} %|███")]
    assert len(pictures) == 1
    assert text.feed("\r100 %|███\n") == ["100 %|███"]
    assert text.feed("\x1b[1A\x1b[2Kafter\r\n") == ["after"]
    assert text.rest() == []


def test_a_line_of_its_own_stands_for_a_bars_pictures(tmp_path, monkeypatch):
    with RunLog(RunDirectory(tmp_path), []):
        sys.stdout.stream = io.StringIO()
        console = Console(force_terminal=True, width=30)
        with Live(Text("a bar"), console=console, auto_refresh=False) as bar:
            run_log.note("step 1/60 loss 0.5")
            bar.update(Text("a bar, later"), refresh=True)
        run_log.note("after it")
    run_log.note("where no log is open")
    assert lines_of(tmp_path) == ["step 1/60 loss 0.5", "a bar, later", "after it"]


def test_a_flood_of_lines_does_not_fill_a_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "MOST_AT_ONCE", 20)
    monkeypatch.setattr(run_log, "LINES_PER_SECOND", 0.0)
    with RunLog(RunDirectory(tmp_path), []) as log:
        for number in range(1000):
            print(f"warning {number} " + "x" * 10_000)
        log._allowed = 1.0
        print("at last")
    lines = lines_of(tmp_path)
    assert len(lines) == 22
    assert lines[-2:] == ["[980 lines left out]", "at last"]
    assert max(map(len, lines)) <= run_log.MOST_CHARACTERS


def test_a_log_that_cannot_be_written_costs_nothing(tmp_path, capsys):
    RunDirectory(tmp_path).log.mkdir()
    with RunLog(RunDirectory(tmp_path), []):
        print("one")
        print("two")
    said = capsys.readouterr()
    assert said.out == "one\ntwo\n"
    assert said.err.count("is written no more") == 1


def test_threads_may_print_at_once(tmp_path):
    with RunLog(RunDirectory(tmp_path), []):
        threads = [
            threading.Thread(target=lambda k=k: [sys.stdout.write(f"{k}\n") for _ in range(50)]) for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(lines_of(tmp_path)) == sorted(str(k) for k in range(4) for _ in range(50))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_only_prints(tmp_path):
    code = f"""
        import os
        from pathlib import Path
        from vidlit.runs.directory import RunDirectory
        from vidlit.runs.live.run_log import RunLog
        with RunLog(RunDirectory(Path({str(tmp_path)!r})), []) as log:
            with log._lock:
                child = os.fork()
                if child == 0:
                    print("of the child", flush=True)
                    os._exit(0)
            os.waitpid(child, 0)
            print("of the parent")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("of the child\nof the parent\n", "")
    assert lines_of(tmp_path) == ["of the parent"]


def test_a_run_that_is_interrupted_and_goes_on_has_one_log_of_both(quickstart, tmp_path, capsys):
    assert main(quickstart(trainer__max_steps=4)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    lines = lines_of(run, 0)
    assert any(line.startswith("clips: ") for line in lines)
    assert any("Trained all 4 steps" in line for line in lines)
    assert main(quickstart(trainer__max_steps=8, ckpt_path="last", model__base="nowhere")) == 2
    assert "nowhere" in lines_of(run)[-1]
    assert main(quickstart(trainer__max_steps=8, ckpt_path="last")) == 0
    lines = lines_of(run, 0)
    assert sum("vidlit fit --config" in line for line in lines) == 3
    assert any("resumed from step 4" in line for line in lines)
    assert any("Trained all 8 steps" in line for line in lines)
    assert "\x1b" not in run.joinpath("log.txt").read_text()
    assert sys.stdout.__class__.__name__ != "_Copied"


def test_a_run_that_never_began_leaves_no_folder(quickstart, tmp_path, capsys):
    assert main(quickstart(data__source=tmp_path / "nowhere")) == 2
    assert not (tmp_path / "runs" / "quickstart" / "0").exists()
