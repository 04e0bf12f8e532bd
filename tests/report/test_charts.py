"""Charts are made from the rows of logged names: one row more is one chart more, everywhere."""

import subprocess
import sys

import pytest
import yaml

from tests.pages import block
from tests.test_wandb import final_summary, records
from vidlit.__main__ import main
from vidlit.report import write_report
from vidlit.report.charts import sections
from vidlit.report.workspace import chart_names
from vidlit.runs import logged_names
from vidlit.runs.logged_names import OWN, LoggedName
from vidlit.runs.record import RunRecord


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
        LoggedName("", "").text(values[-1]),
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
            assert row.heading in {drawing.title for drawing in drawn[row.section]}
    assert sum(map(len, drawn.values())) >= 12


def test_numbers_that_sentences_name_are_on_the_chart(finished_run):
    run = RunRecord(finished_run)
    first = sections(run)["Overfitting"][0]
    for row in (logged_names.VAL_LOG_RATIO, logged_names.TRAIN_EVAL_LOG_RATIO):
        assert row.text(run.curve(row.name).values[-1]) in first.drawing
    best = f"best {run.summary['best_step']}: {logged_names.VAL_LOG_RATIO.text(-run.summary['gain'])}"
    assert best in first.drawing


def test_a_page_needs_neither_torch_nor_matplotlib(finished_run, tmp_path):
    code = (
        "import sys; from pathlib import Path; from vidlit.report import write_report; "
        f"write_report([Path({str(finished_run)!r})], Path({str(tmp_path / 'page.html')!r})); "
        "print(*sorted({'torch', 'lightning', 'matplotlib', 'diffusers', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
    assert (tmp_path / "page.html").is_file()
