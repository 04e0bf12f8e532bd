"""Charts are made from the rows of logged names: one row more is one chart more, everywhere."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

from tests.pages import block
from tests.test_wandb import final_summary, records
from vidlit.__main__ import main
from vidlit.report import write_report
from vidlit.report.charts import MOST_POINTS, Chart, axes, exposure_histogram, sections
from vidlit.report.workspace import chart_names
from vidlit.runs import logged_names
from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_names import OWN
from vidlit.runs.record import RunRecord
from vidlit.stopping.exposure import video_exposures


def test_a_new_metric_is_one_row(quickstart, tmp_path, monkeypatch):
    """The metric of docs/extending/metric.md: measured somewhere, one row, and it is in all that is shown."""
    for name in ("WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "wandb.yaml"
    wandb = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "x", "offline": True}}
    config.write_text(yaml.safe_dump({"trainer": {"logger": wandb}}))
    monkeypatch.setattr(logged_names, "_PLUGGED", {})
    plugin = tmp_path / "motion.py"
    plugin.write_text(block("extending/metric.md", plugin.name))
    words = [*quickstart(trainer__max_steps=4, run__report=True), "--config", str(config), "--plugin", str(plugin)]
    assert main(words) == 0
    assert chart_names(4)["Motion"] == {"Motion of the training clips": ["motion/mean"]}
    del sys.modules["motion"]
    run = tmp_path / "runs" / "quickstart" / "0"
    values = RunRecord(run).curve("motion/mean").values
    assert len(values) == 4
    assert (values > 0).all()
    shown = (
        "<h2>Motion</h2>",
        "Motion of the training clips",
        "Still clips teach",
        f"{values[-1]:.5g}",
    )
    for words in shown:
        assert words in (run / "report.html").read_text()
    (run_file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert final_summary(records(run_file))["motion/mean"]["mean"] == pytest.approx(values.mean(), rel=1e-5)

    monkeypatch.setattr(logged_names, "_PLUGGED", {})  # the plugin is gone: the run brings its row along
    page = write_report([run], tmp_path / "later.html").read_text()
    for words in shown:
        assert words in page
    assert "Motion of the training clips" in write_report([run, run], tmp_path / "two.html").read_text()


def test_every_row_that_is_shown_and_was_logged_is_drawn(finished_run):
    run = RunRecord(finished_run)
    drawn = sections(run)
    for row in OWN:
        if row.section and run.curves_of(row):
            assert row.heading in {chart.title for chart in drawn[row.section]}
    assert sum(map(len, drawn.values())) >= 12


def test_numbers_that_sentences_name_are_on_the_chart(finished_run):
    run = RunRecord(finished_run)
    first = sections(run)["Overfitting"][0]
    for row, line in zip((logged_names.VAL_LOG_RATIO, logged_names.TRAIN_EVAL_LOG_RATIO), first.lines, strict=True):
        assert f"{line.y[-1]:+.1f} %" == row.text(run.curve(row.name).values[-1])
    best = f"best {run.summary['best_step']}: {logged_names.VAL_LOG_RATIO.text(-run.summary['gain'])}"
    assert (run.summary["best_step"], "best", best, "") in first.marks


def test_a_long_curve_keeps_its_peaks():
    steps, values = np.arange(20_000), np.zeros(20_000)
    values[[0, 7_777, 19_999]] = 1.0, 50.0, -3.0
    chart = Chart("loss")
    chart.line("loss", "val", steps, values)
    (line,) = chart.lines
    assert len(line.x) <= MOST_POINTS
    assert (max(line.y), min(line.y)) == (50.0, -3.0)
    assert line.x[line.y.index(50.0)] == 7_777
    assert line.x == sorted(line.x)


def test_values_that_are_no_numbers_are_left_out():
    chart = Chart("loss")
    chart.line("loss", "val", [1, 2, 3], [1.0, np.nan, np.inf])
    chart.line("nothing", "val", [1], [np.nan])
    assert [(line.name, line.x) for line in chart.lines] == [("loss", [1.0])]


def test_a_histogram_counts_every_video_once(finished_run):
    run = RunRecord(finished_run)
    chart = exposure_histogram(run)
    seen = video_exposures(
        *zip(*((row.exposures, row.video) for row in run.exposures if row.split == "train"), strict=True)
    )
    assert sum(count for _, _, count in chart.bars) == len(seen)
    for low, high, count in chart.bars:
        assert sum(low <= max(0.5, each) < high * 1.0001 for each in seen.values()) == count


def test_a_step_in_exposures_and_seconds(finished_run):
    run = RunRecord(finished_run)
    found = axes(run)
    assert found["exposures"][0] == found["seconds"][0] == [0, 4, 8, 12]
    assert found["exposures"][1] == sorted(found["exposures"][1])
    assert 0 == found["seconds"][1][0] < found["seconds"][1][1] < found["seconds"][1][-1]
    assert found["seconds"][1][-1] <= run.summary["seconds"]


def test_a_page_needs_neither_torch_nor_matplotlib(finished_run, tmp_path):
    code = (
        "import sys; from pathlib import Path; from vidlit.report import write_report; "
        f"write_report([Path({str(finished_run)!r})], Path({str(tmp_path / 'page.html')!r})); "
        "print(*sorted({'torch', 'lightning', 'matplotlib', 'diffusers', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
    assert (tmp_path / "page.html").is_file()


def test_what_parts_alone_have_logged_is_drawn_by_part(finished_run, tmp_path):
    run = RunDirectory(
        shutil.copytree(finished_run, tmp_path / "0", ignore=shutil.ignore_patterns("*.ckpt", "weights"))
    )
    head, *rows = run.metrics.read_text().splitlines()
    names = [f"{name}/high" if name.startswith("divergence/") else name for name in head.split(",")]
    run.metrics.write_text("\n".join([",".join(names), *rows]) + "\n")
    charts = {chart.title: chart for chart in sections(RunRecord(run.path))["Overfitting"]}
    chart = charts["The test behind the stop"]
    assert [(line.name, line.dashed, line.limit) for line in chart.lines] == [
        ("Rise of the validation loss since its lowest stretch, high", False, False),
        ("Threshold, high", True, True),
    ]
