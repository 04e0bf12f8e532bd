import os
import threading
from pathlib import Path

import pytest

from vidlit.errors import UserError
from vidlit.runs.directory import RunDirectory, latest_run_directory, new_run_directory, write_text


def test_versions_count_up_and_gaps_are_not_filled(tmp_path):
    assert new_run_directory(tmp_path, "a").path == tmp_path / "a" / "0"
    assert new_run_directory(tmp_path, "a").path == tmp_path / "a" / "1"
    (tmp_path / "a" / "7").mkdir()
    (tmp_path / "a" / "notes").mkdir()
    assert new_run_directory(tmp_path, "a").path == tmp_path / "a" / "8"
    assert new_run_directory(tmp_path, "b").path == tmp_path / "b" / "0"


def test_runs_started_at_once_get_directories_of_their_own(tmp_path):
    claimed = []
    start = threading.Barrier(8)

    def claim():
        start.wait()
        claimed.append(new_run_directory(tmp_path, "a").path.name)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == [str(number) for number in range(8)]


def test_a_place_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--run\.dir"):
        new_run_directory(tmp_path / "file", "a")


def test_latest_is_the_one_saved_last(tmp_path):
    for version, saved in ((0, 300), (1, 100), (2, None)):
        checkpoint = RunDirectory(tmp_path / "a" / str(version)).last_checkpoint
        checkpoint.parent.mkdir(parents=True)
        if saved is not None:
            checkpoint.touch()
            os.utime(checkpoint, (saved, saved))
    assert latest_run_directory(tmp_path, "a").path == tmp_path / "a" / "0"
    with pytest.raises(UserError, match=r"no run below .*b has a checkpoints/last\.ckpt"):
        latest_run_directory(tmp_path, "b")


def test_decisions_are_kept_up_to_a_step(tmp_path):
    directory = RunDirectory(tmp_path / "new")
    assert directory.read_decisions() == []
    for step in (4, 8, 12):
        directory.append_decision({"step": step, "reason": 'a "quoted" word,\nand a line'})
    directory.rewind_decisions(8)
    assert [decision["step"] for decision in directory.read_decisions()] == [4, 8]
    assert directory.read_decisions()[0]["reason"] == 'a "quoted" word,\nand a line'
    directory.rewind_decisions(0)
    assert directory.read_decisions() == []
    directory.rewind_decisions(0)  # nothing there: nothing to do


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.append_decision({"step": 4})
    with directory.decisions.open("a") as file:
        file.write('{"step": 8, "rea')
    assert directory.read_decisions() == [{"step": 4}]
    directory.rewind_decisions(8)
    directory.append_decision({"step": 8})
    assert directory.read_decisions() == [{"step": 4}, {"step": 8}]


def test_a_line_cut_short_behind_a_brace_is_left_out(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.append_decision({"step": 4})
    with directory.decisions.open("a") as file:
        file.write('{"step": 8, "verdicts": [{"signal": "exposure"}')
    assert directory.read_decisions() == [{"step": 4}]


def test_summary_is_replaced(tmp_path):
    directory = RunDirectory(tmp_path)
    assert directory.read_summary() == {}
    directory.write_summary({"a": 1, "b": 2})
    directory.write_summary({"a": 3})
    assert directory.read_summary() == {"a": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"


def test_samples_sort_by_step(tmp_path):
    directory = RunDirectory(tmp_path)
    steps = [4, 40, 400, 40_000]
    assert sorted(directory.samples(step).name for step in steps) == [directory.samples(step).name for step in steps]
    assert directory.samples(400) == tmp_path / "samples" / "step_000400"


def test_a_disk_that_refuses_for_a_moment_is_asked_again(tmp_path, monkeypatch, capsys):
    replace, tried = Path.replace, []

    def refuse_once(self, target):
        tried.append(self)
        if len(tried) == 1:
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse_once)
    monkeypatch.setattr("vidlit.io_retry.PAUSES", (0.0, 0.0))
    write_text(tmp_path / "summary.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert "Input/output error" in capsys.readouterr().err
