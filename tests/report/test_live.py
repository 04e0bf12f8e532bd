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


def test_a_refit_beside_its_run_shows_its_own_videos(runs):
    first = runs / "quickstart" / "0"
    shutil.copytree(first, first / "refit")
    _, view = WatchedRuns(runs).page("quickstart/0", "quickstart/0/refit").now()
    for name in ("quickstart%2F0", "quickstart%2F0%2Frefit"):
        assert f"video?run={name}&amp;path=samples%2F" in view.sections["samples"]
    assert "path=refit" not in view.sections["samples"]


def test_runs_are_compared_while_an_audit_is_being_written(runs):
    later = runs / "quickstart" / "0" / "samples" / "step_000099"
    later.mkdir()
    shutil.copy(next((later.parent / "step_000012").glob("audit_00*.mp4")), later)
    _, view = WatchedRuns(runs).page("quickstart/0", "quickstart/1").now()
    assert view.sections["samples"].count("<video") == 2 * 4


DAMAGE = ({"seconds": float("inf")}, {"stopped_by": 5}, {"exposures": "many"})


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: next(iter(damage)))
def test_one_damaged_run_does_not_hide_the_others(runs, damage):
    summary = runs / "quickstart" / "0" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | damage))
    table = WatchedRuns(runs).page().now()[1].sections["table"]
    assert "damaged" in table
    assert "Trained all 12 steps" in table


def test_a_number_that_is_none_in_a_note_is_left_out(runs):
    first, second, *_ = sorted((runs / "quickstart" / "0" / "samples").rglob("audit_0*.json"))
    for value, note in ((float("nan"), first), ("far", second)):
        note.write_text(json.dumps(json.loads(note.read_text()) | {"distance_ratio": value}))
    parts = WatchedRuns(runs).page("quickstart/0").since("")["parts"]
    json.dumps(parts, allow_nan=False)
    ratios = [shot.get("ratio") for row in parts["data samples"] for shot in row["shots"]]
    assert all(ratio is None or isinstance(ratio, float) for ratio in ratios)


def test_pages_that_nobody_asks_for_are_forgotten(runs):
    watched = WatchedRuns(runs)
    for name in ("./quickstart/0", "quickstart//0", "quickstart/0/"):
        with pytest.raises(KeyError):
            watched.page(name)
    first = watched.page("quickstart/0")
    assert watched.page("quickstart/0") is first
    for number in range(70):
        shutil.copytree(runs / "quickstart" / "1", runs / f"other{number}", ignore=shutil.ignore_patterns("samples"))
        watched.page(f"other{number}")
    assert len(watched._pages) == 64
    assert watched.page("quickstart/0") is not first


def test_a_run_elsewhere_that_fell_silent_changes_its_page(runs):
    run = RunDirectory(runs / "quickstart" / "0")
    run.write_summary(json.loads(run.summary.read_text()) | {"stopped_by": "running"})
    run.lock_holder.write_text("1 another-machine\n")
    page = WatchedRuns(runs).page("quickstart/0")
    version, view = page.now()
    assert 'class="going"' in view.sections["status"]
    for path in run.path.iterdir():
        os.utime(path, (0, 0))
    assert 'class="going"' not in page.since(version)["parts"]["section status"]
