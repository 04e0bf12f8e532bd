"""What a live page sends: what changed, and nothing from outside the runs."""

import json
import os
import shutil

import av
import pytest

from vidlit.errors import UserError
from vidlit.report.live import ClipPreviews, WatchedRuns
from vidlit.runs.directory import RunDirectory
from vidlit.runs.record import RunRecord


@pytest.fixture
def runs(finished_run, tmp_path):
    """A folder of two runs."""
    ignored = shutil.ignore_patterns("*.ckpt", "weights")
    for number in "01":
        shutil.copytree(finished_run, tmp_path / "runs" / "quickstart" / number, ignore=ignored)
    return tmp_path / "runs"


def test_runs_are_found_wherever_commands_put_them(runs):
    first = runs / "quickstart" / "0"
    for place in ("quickstart/kfold_2/fold_0", "quickstart/0/refit"):
        shutil.copytree(first, runs / place, ignore=shutil.ignore_patterns("samples", "refit"))
    (runs / "quickstart" / "0" / "weights").mkdir()
    (runs / "quickstart" / "0" / "weights" / "config.yaml").touch()
    assert set(WatchedRuns(runs).find()) == {
        "quickstart/0",
        "quickstart/1",
        "quickstart/0/refit",
        "quickstart/kfold_2/fold_0",
    }
    assert WatchedRuns(first).single == "0"
    assert set(WatchedRuns(first).find()) == {"0"}
    with pytest.raises(UserError, match="no such folder"):
        WatchedRuns(runs / "nowhere")


def test_only_what_changed_is_sent(runs):
    page = WatchedRuns(runs).page("quickstart/0")
    version, _ = page.now()
    assert page.since(version) == {"version": version, "parts": {}}
    run = RunDirectory(runs / "quickstart" / "0")
    last = run.read_decisions()[-1]
    last["verdicts"][0]["reason"] = "Something new."
    run.append_decision(last)
    found = page.since(version)
    assert found["version"] != version
    assert set(found["parts"]) == {"section why"}
    assert "Something new." in found["parts"]["section why"]
    assert set(page.since("a version of another server")["parts"]) >= {"title", "section status", "chart 0"}


def test_a_chart_that_comes_and_a_section_that_goes(runs):
    run = RunDirectory(runs / "quickstart" / "0")
    whole = run.metrics.read_text()
    run.metrics.unlink()
    page = WatchedRuns(runs).page("quickstart/0")
    version, view = page.now()
    few = len(view.charts)
    run.metrics.write_text(whole)
    found = page.since(version)
    charts = [name for name, part in found["parts"].items() if name.startswith("chart ") and part is not None]
    assert len(charts) > few
    run.metrics.unlink()
    gone = {name for name, part in page.since(found["version"])["parts"].items() if part is None}
    assert gone == {name for name in charts if int(name.removeprefix("chart ")) >= few}


def test_a_file_that_is_half_written_shows_what_was_known(runs):
    page = WatchedRuns(runs).page("quickstart/0")
    version, _ = page.now()
    run = RunDirectory(runs / "quickstart" / "0")
    whole = run.summary.read_text()
    run.summary.write_text(whole[:40])
    assert page.since(version) == {"version": version, "parts": {}}
    run.summary.write_text(json.dumps(json.loads(whole) | {"reason": "All is well."}))
    assert "section status" in page.since(version)["parts"]
    run.summary.write_text(whole[:40])
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        WatchedRuns(runs).page("quickstart/0").now()
    assert "damaged" in WatchedRuns(runs).page().now()[1].sections["table"]


@pytest.mark.parametrize("name", ["", "..", "../outside", "quickstart", "quickstart/0/../../../outside", "/etc"])
def test_no_other_folder_is_a_run(runs, tmp_path, name):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.yaml").write_text("{}")
    with pytest.raises(KeyError):
        WatchedRuns(runs).record(name)


def test_a_link_out_of_the_folder_is_no_run(runs, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.yaml").write_text("{}")
    (runs / "linked").symlink_to(tmp_path / "outside")
    watched = WatchedRuns(runs)
    assert "linked" not in watched.find()
    with pytest.raises(KeyError):
        watched.record("linked")


def test_a_clip_is_shown_as_the_model_is_given_it(runs):
    run = RunRecord(runs / "quickstart" / "0")
    previews = ClipPreviews()
    for number in (0, len(run.dataset) - 1):
        frames, height, width = map(int, run.dataset[number].bucket.split("x"))
        with av.open(str(previews.make(run, number))) as container:
            decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(decoded) == frames
        assert decoded[0].shape == (height, width, 3)
    assert previews.make(run, 0) == previews.make(run, 0)
    with pytest.raises(KeyError):
        previews.make(run, len(run.dataset))


def test_a_clip_from_outside_the_source_is_not_shown(runs, tmp_path, finished_run):
    run = RunRecord(runs / "quickstart" / "0")
    secret = tmp_path / "secret.mp4"
    shutil.copy(next((finished_run / "samples").rglob("*.mp4")), secret)
    source = run.config["data"]["source"]
    lines = run.directory.dataset.read_text().splitlines()
    stolen = lines[1].replace(run.dataset[0].file, os.path.relpath(secret, source))
    run.directory.dataset.write_text("\n".join([lines[0], stolen]) + "\n")
    with pytest.raises(KeyError):
        ClipPreviews().make(RunRecord(run.path), 0)
