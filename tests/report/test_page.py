"""The report as a file: what stands in it, and that it needs nothing else."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import av
import pytest

from vidlit.__main__ import main
from vidlit.report import write_report
from vidlit.runs.directory import RunDirectory

SECTIONS = {"why", "curves", "exposure", "copies", "samples", "throughput", "config"}


class Page(HTMLParser):
    """What a browser would load, and what a reader would read."""

    def __init__(self, path):
        super().__init__()
        self.sections, self.videos, self.resources, self.text, self.drawings = set(), [], [], [], 0
        self.html = path.read_text()
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag == "section":
            self.sections.add(named["id"])
        if tag == "video":
            self.videos.append(named["src"])
        self.drawings += tag == "svg"
        self.resources += [value for name, value in attributes if name in ("src", "href", "srcset", "poster", "data")]

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


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
    assert f"best {summary['best_step']}" in page.words
    assert "ended 12" in page.words
    for band in ("conservative", "moderate", "high", "risky"):
        assert band in page.words
    for signal in ("divergence", "exposure", "copies", "diversity"):
        assert signal in page.words
    assert "val_check_interval: 4" in page.words
    assert page.drawings >= 2 * 12  # each for a large screen and for a phone


def test_it_needs_nothing_else(finished_run):
    page = Page(RunDirectory(finished_run).report)
    assert page.resources
    assert all(address.startswith(("data:", "#")) for address in page.resources)
    style = re.findall(r"url\(([^)]*)\)|@import", page.html)
    assert all(address.startswith("#") for address in style)
    assert "#0000" not in page.html  # every stand-in for a colour was replaced
    assert set(re.findall(r"var\(--([\w-]+)\)", page.html)) <= set(re.findall(r"--([\w-]+):", page.html))


def test_videos_play(finished_run):
    page = Page(RunDirectory(finished_run).report)
    assert len(page.videos) == 1 + 2 + 4 * 4  # the nearest pair, the kept weights, four prompts at four audits
    for address in page.videos:
        kind, data = address.split(",")
        assert kind == "data:video/mp4;base64"
        with av.open(io.BytesIO(base64.b64decode(data))) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert sum(1 for _ in container.decode(video=0)) > 1


def test_videos_beyond_the_limit_are_linked(run, tmp_path):
    page = Page(write_report([run.path], tmp_path / "page.html", megabytes=0.02))
    inlined = [address for address in page.videos if address.startswith("data:")]
    linked = [address for address in page.videos if not address.startswith("data:")]
    assert inlined
    assert linked
    assert sum(len(address) for address in inlined) < 0.03e6
    assert all((tmp_path / address).is_file() for address in linked)


def test_the_same_run_gives_the_same_page(run, tmp_path):
    first, second = (write_report([run.path], tmp_path / name) for name in ("first.html", "second.html"))
    assert first.read_bytes() == second.read_bytes()


def test_a_running_run(run):
    summary = json.loads(run.summary.read_text()) | {"stopped_by": "running", "stop_step": 8}
    run.write_summary(summary)
    page = Page(write_report([run.path]))
    assert "Running: step 8 of 12" in page.words
    assert "if that is long ago, the run was killed" in page.words
    assert page.sections == SECTIONS


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
    assert "quickstart/0 quickstart/1" in page.words
    assert "model.optimizer.init_args.lr 0.002 0.004" in page.words
    assert len(page.videos) == 4


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


@pytest.mark.slow
@pytest.mark.parametrize("width", [1440, 390])
def test_in_a_browser(finished_run, tmp_path, width):
    """Nothing sticks out of the page, every video can be played, and the drawing that fits is shown."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    frame = tmp_path / "frame.html"
    page = RunDirectory(finished_run).report.as_uri()
    frame.write_text(f"""<iframe src="{page}" width="{width}" height="900"></iframe>
<script>onload = () => setTimeout(() => {{
  const page = document.querySelector("iframe").contentDocument;
  document.title = JSON.stringify({{
    inside: page.documentElement.scrollWidth <= {width},
    videos: [...page.querySelectorAll("video")].map(video => video.readyState > 0 && video.videoWidth > 0),
    shown: [...page.querySelectorAll("figure svg")].filter(svg => svg.getBoundingClientRect().width > 100).length,
  }});
}}, 3000)</script>""")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += ["--window-size=1600,1000", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000"]
    done = subprocess.run(
        [chromium, *options, "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert found["inside"]
    assert found["videos"] == [True] * 19
    assert found["shown"] >= 12
