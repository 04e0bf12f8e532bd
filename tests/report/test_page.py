"""The report as a file: what stands in it, and that it needs nothing else."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import av
import pytest

from benchmarks.page import lengthen
from vidlit.__main__ import main
from vidlit.report import write_report
from vidlit.runs.directory import RunDirectory

SECTIONS = {"status", "why", "curves", "exposure", "copies", "samples", "data", "throughput", "log", "config"}


class Page(HTMLParser):
    """What a browser would load, and what a reader would read."""

    def __init__(self, path):
        super().__init__()
        self.sections, self.players, self.resources, self.text, self.places = set(), [], [], [], []
        self._in_data = False
        self.html = path.read_text()
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag == "section":
            self.sections.add(named["id"])
        if tag == "video" and "src" in named:
            self.players.append(named["src"])
        if "data-chart" in named:
            self.places.append(named["data-chart"])
        self._in_data = named.get("id") == "page-data"
        self.resources += [value for name, value in attributes if name in ("src", "href", "srcset", "poster", "data")]

    def handle_data(self, data):
        if self._in_data:
            self.parts = json.loads(data)["parts"]
            self._in_data = False
        else:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    @property
    def charts(self):
        """By title."""
        charts = [self.parts[name] for name in self.parts if name.startswith("chart ")]
        return {chart["title"]: chart for chart in charts}

    @property
    def videos(self):
        return [*self.players, *self.parts.get("data videos", [])]


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy, to change."""
    return RunDirectory(shutil.copytree(finished_run, tmp_path / "quickstart" / "0"))


def test_fit_makes_it(finished_run):
    page = Page(RunDirectory(finished_run).report)
    assert page.sections == SECTIONS
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["reason"] in page.words
    assert f"Step {summary['kept_step']} is kept" in page.words or "The base model itself is kept" in page.words
    marks = [name for _, _, name, _ in page.charts["Validation and training loss"]["marks"]]
    assert any(name.startswith(f"best {summary['best_step']}: ") for name in marks)
    assert "ended 12" in marks
    bands = [name for _, _, name in page.charts["Exposures over the run"]["bands"]]
    assert bands == ["conservative", "moderate", "high", "risky"]
    for signal in ("divergence", "exposure", "copies", "diversity"):
        assert signal in page.words
    assert "val_check_interval: 4" in page.words
    assert len(page.places) >= 12
    assert {f"chart {key}" for key in page.places} == {name for name in page.parts if name.startswith("chart ")}


def test_it_needs_nothing_else(finished_run):
    page = Page(RunDirectory(finished_run).report)
    assert page.resources
    assert all(address.startswith(("data:", "#")) for address in page.resources)
    style = re.findall(r"url\(([^)]*)\)|@import", page.html)
    assert all(address.startswith("#") for address in style)
    assert "http://" not in page.html.replace("http://www.w3.org", "")
    assert set(re.findall(r"var\(--([\w-]+)\)", page.html)) <= set(re.findall(r"--([\w-]+):", page.html))


def test_every_colour_of_a_chart_is_there(finished_run):
    page = Page(RunDirectory(finished_run).report)
    named = set(re.findall(r"--([\w-]+):", page.html))
    for chart in page.charts.values():
        used = {line["colour"] for line in chart["lines"]} | {colour for _, colour, _ in chart["levels"]}
        assert used | {colour for _, colour, *_ in chart["marks"]} | {name for *_, name in chart["bands"]} <= named


def test_the_page_itself_has_no_other_script_than_its_own(finished_run):
    """What a policy by hashes lets run: should a caption ever not be escaped, nothing of it would."""
    html = RunDirectory(finished_run).report.read_text()
    policy = re.search(r"script-src ([^;]*);", html)[1]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy.split() == [f"'sha256-{each}'" for each in hashes]
    assert len(scripts) == 2


def test_videos_play(finished_run):
    page = Page(RunDirectory(finished_run).report)
    assert len(page.players) == 1  # the nearest pair
    rows = page.parts["data samples"]
    assert [len(row["shots"]) for row in rows] == [4] * 2 + [
        5
    ] * 2  # audits, and the kept weights of validation prompts
    assert {row["side"] for row in rows} == {"train", "val"}
    near = {shot["near"] for row in rows for shot in row["shots"] if "near" in shot}
    assert len(page.parts["data videos"]) == 4 * 4 + 2 + len(near)
    for address in page.videos:
        kind, data = address.split(",")
        assert kind == "data:video/mp4;base64"
        with av.open(io.BytesIO(base64.b64decode(data))) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert sum(1 for _ in container.decode(video=0)) > 1


def test_a_sample_is_shown_beside_the_clip_it_is_nearest_to(finished_run):
    page = Page(RunDirectory(finished_run).report)
    known = {row["clip_id"]: row for row in csv.DictReader((finished_run / "dataset.csv").open(newline=""))}
    for row in page.parts["data samples"]:
        for shot in row["shots"]:
            if not shot.get("kept"):
                assert known[shot["nearest"]]["caption"] == row["prompt"]
                assert known[shot["nearest"]]["side"] == row["side"]


def test_videos_beyond_the_limit_are_linked(run, tmp_path):
    page = Page(write_report([run.path], tmp_path / "page.html", megabytes=0.02))
    inlined = [address for address in page.videos if address.startswith("data:")]
    linked = [address for address in page.videos if not address.startswith("data:")]
    assert inlined
    assert linked
    assert sum(len(address) for address in inlined) < 0.03e6
    assert all((tmp_path / unquote(address)).is_file() for address in linked)


def test_the_data_is_listed(finished_run, demo):
    page = Page(RunDirectory(finished_run).report)
    rows = list(csv.DictReader((finished_run / "dataset.csv").open(newline="")))
    assert len(rows) == 12
    for row in rows:
        assert row["clip_id"] in page.words
        assert row["caption"] in page.words
        assert row["bucket"] in page.words
    sources = re.findall(r'data-source="([^"]*)"', page.html)
    assert len(sources) == 12
    for source in sources:
        path, _, span = unquote(source).partition("#t=")
        assert (finished_run / path).resolve().parent == (demo.dir / "clips").resolve()
        start, end = map(float, span.split(","))
        assert 0 <= start < end


def test_a_large_run_makes_a_small_page(run):
    """2,000 checks and 500 clips: under 6 MB."""
    lengthen(run, checks=2000, clips=500)
    page = Page(write_report([run.path]))
    assert len(re.findall(r'data-source="', page.html)) == 500
    assert len(page.charts["Validation and training loss"]["lines"][0]["x"]) <= 1000
    assert run.report.stat().st_size < 6e6


def test_the_same_run_gives_the_same_page(run, tmp_path):
    first, second = (write_report([run.path], tmp_path / name) for name in ("first.html", "second.html"))
    assert first.read_bytes() == second.read_bytes()


def test_a_running_run(run):
    summary = json.loads(run.summary.read_text()) | {"stopped_by": "running", "stop_step": 8}
    run.write_summary(summary)
    page = Page(write_report([run.path]))
    assert "Running: step 8 of 12" in page.words
    assert "Last written" in page.words
    run.lock_holder.unlink()
    assert "if that is long ago, the run was killed" in Page(write_report([run.path])).words
    assert page.sections == SECTIONS


def test_a_run_whose_process_is_gone(run):
    run.write_summary(json.loads(run.summary.read_text()) | {"stopped_by": "running", "stop_step": 8})
    run.lock_holder.write_text(f"{os.getpid()} {socket.gethostname()}")
    assert "if that is long ago" not in Page(write_report([run.path])).words
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    run.lock_holder.write_text(f"{ended.pid} {socket.gethostname()}")
    words = Page(write_report([run.path])).words
    assert "No process trains here any more" in words
    assert f"Go on with --ckpt_path {run.last_checkpoint}" in words


def test_a_run_killed_in_the_middle_of_a_line(run):
    run.summary.unlink()
    run.exposure.unlink()
    shutil.rmtree(run.path / "samples")
    run.metrics.write_text(run.metrics.read_text()[:-40])
    run.decisions.write_text(run.decisions.read_text()[:-40])
    page = Page(write_report([run.path]))
    assert "No check has been made yet, or the run ended before the first one" in page.words
    assert page.sections == SECTIONS
    assert page.videos == []


@pytest.mark.parametrize("left", ["config.yaml", "metrics.csv"])
def test_a_run_that_left_one_file(run, tmp_path, left):
    (tmp_path / "bare").mkdir()
    shutil.copy(run.path / left, tmp_path / "bare")
    assert Page(write_report([tmp_path / "bare"])).sections == SECTIONS


def test_an_interrupted_run(run):
    reason = "The run was interrupted by SIGTERM."
    run.write_summary(
        {"stopped_by": "interrupted", "reason": reason, "stop_step": 6, "planned_steps": 12, "seconds": 3}
    )
    words = Page(write_report([run.path])).words
    assert "Interrupted at step 6 of 12" in words
    assert f"Go on with --ckpt_path {run.last_checkpoint}" in words


def test_the_nearest_sample_is_shown_beside_its_training_clip(run):
    (evidence,) = [each["evidence"] for each in run.read_decisions()[-1]["verdicts"] if each["signal"] == "copies"]
    page = Page(run.report)
    assert f"Left the sample, right the training clip {evidence['nearest_clip']}" in page.words
    pair = (run.path / evidence["pair"]).read_bytes()
    assert "data:video/mp4;base64," + base64.b64encode(pair).decode() in page.videos


def test_a_copy_without_such_a_file(run):
    decisions = run.read_decisions()
    (verdict,) = [each for each in decisions[-1]["verdicts"] if each["signal"] == "copies"]
    sample = sorted((run.path / "samples" / "step_000012").glob("audit_0*.mp4"))[0]
    verdict["evidence"] |= {"copies": 2, "sample": sample.relative_to(run.path).as_posix(), "ratio": 0.2}
    verdict["evidence"] |= {"nearest_clip": "a.mp4@0.000-1.000"}
    del verdict["evidence"]["pair"]
    run.decisions.write_text("".join(json.dumps(decision) + "\n" for decision in decisions))
    page = Page(write_report([run.path]))
    assert "Nearest training clip: a.mp4@0.000-1.000, at 0.20 of its distance to the nearest" in page.words
    assert "data:video/mp4;base64," + base64.b64encode(sample.read_bytes()).decode() in page.videos


def test_text_of_others_is_text(run):
    decisions = run.read_decisions()
    decisions[-1]["verdicts"][0]["reason"] = "<script>alert(1)</script>"
    run.decisions.write_text("".join(json.dumps(decision) + "\n" for decision in decisions))
    html = write_report([run.path]).read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_keys_are_not_shown(run, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "canary-of-the-environment")
    run.config.write_text(run.config.read_text() + "\napi_key: canary-of-the-config\n")
    run.write_summary(json.loads(run.summary.read_text()) | {"reason": "failed with canary-of-the-environment"})
    assert "canary" not in write_report([run.path]).read_text()


def test_several_runs(run, tmp_path):
    other = RunDirectory(shutil.copytree(run.path, tmp_path / "quickstart" / "1"))
    other.config.write_text(other.config.read_text().replace("lr: 0.002", "lr: 0.004"))
    path = write_report([run.path, other.path])
    assert path == tmp_path / "quickstart" / "comparison.html"
    page = Page(path)
    assert page.sections == {"table", "curves", "samples", "differences"}
    assert [line["name"] for line in page.charts["Validation loss"]["lines"]] == ["quickstart/0", "quickstart/1"]
    assert "cannot be compared" not in page.words
    other.clips.write_text(other.clips.read_text().replace(",val,", ",train,", 1))
    other.config.write_text(other.config.read_text().replace("base: ", "base: another/", 1))
    warned = Page(write_report([run.path, other.path])).words
    assert "quickstart/1 and quickstart/0 have other validation clips" in warned
    assert "have other base models (another/" in warned
    assert "model.optimizer.init_args.lr 0.002 0.004" in page.words
    assert len(page.videos) == 4 * 2  # the latest of each prompt, by prompt


def test_command(run, tmp_path, capsys):
    assert main(["report", str(run.path), "--out", str(tmp_path / "here.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "here.html")
    assert (tmp_path / "here.html").is_file()
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_report_that_fails_does_not_fail_the_run(quickstart, tmp_path, monkeypatch, capsys):
    def broken(paths):
        raise OSError("no space left on device")

    monkeypatch.setattr("vidlit.report.write_report", broken)
    assert main(quickstart(trainer__max_steps=4, run__report=True)) == 0
    assert "no report was made (OSError: no space left on device)" in capsys.readouterr().out
    assert (tmp_path / "runs" / "quickstart" / "0" / "summary.json").is_file()
