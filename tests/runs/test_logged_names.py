"""The table of logged metrics: every name that is logged has a row, every row is logged, and rows from outside."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

import vidlit
from vidlit.errors import UserError
from vidlit.runs import logged_names
from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_names import (
    AUDITS,
    HELD_OUT,
    OWN,
    SECTIONS,
    VAL_LOG_RATIO,
    VAL_LOG_RATIO_BIN,
    VAL_LOG_RATIO_BUCKET,
    LoggedName,
    all_rows,
    charts,
    register,
)
from vidlit.runs.loggers.csv_logger import RunCSVLogger
from vidlit.runs.loggers.plugged_rows import read_rows
from vidlit.runs.record import RunRecord

GRAIN = LoggedName("grain/strength_<k>", "Grain of the samples", "Grain", unit="grey levels", summary="max")


@pytest.fixture(autouse=True)
def plugged(monkeypatch):
    """No rows from outside, whatever a test registers."""
    monkeypatch.setattr(logged_names, "_PLUGGED", {})


def test_every_name_that_is_logged_has_a_row_and_every_row_is_logged(finished_run):
    """For what W&B alone gets see ``tests/test_wandb.py``, for ``samples.metrics`` ``tests/sampling/test_audit.py``,
    for buckets ``tests/callbacks/test_optimizer_record.py``.
    """
    with (finished_run / "metrics.csv").open(newline="") as file:
        logged = set(next(csv.reader(file))) - {"step", "epoch"}
    rows = {name: [row.name for row in OWN if row.matches(name)] for name in logged}
    assert {name: found for name, found in rows.items() if len(found) != 1} == {}
    switched_on = ("", HELD_OUT, AUDITS)
    expected = {row.name for row in OWN if row.kind == "curve" and row.needs in switched_on}
    assert expected <= {name for found in rows.values() for name in found}


def test_what_a_row_needs_is_an_option():
    options = json.loads((Path(vidlit.__file__).parent / "commands/options/options.json").read_text())
    named = {name for command in options.values() for name in command} | options.keys()
    assert {row.needs for row in OWN} - {""} <= named


def test_names_are_one_each_and_sections_those_of_the_report():
    assert len({row.name for row in OWN}) == len(OWN)
    assert {row.section for row in OWN} == {*SECTIONS, ""}
    assert [row.section for row in all_rows()] == sorted(
        (row.section for row in OWN), key=lambda section: [*SECTIONS, ""].index(section)
    )


def test_rows_that_share_a_chart_have_one_unit_and_scale():
    for section in charts(all_rows()).values():
        for heading, rows in section.items():
            assert len({(row.unit, row.scale, row.kind) for row in rows}) == 1, heading


def test_a_name_with_a_number():
    assert VAL_LOG_RATIO_BIN.at(3) == "val/log_ratio_bin_3"
    assert VAL_LOG_RATIO_BIN.matches("val/log_ratio_bin_12")
    for other in ("val/log_ratio_bin_", "val/log_ratio_bin_a", "val/log_ratio", "train_eval/log_ratio_bin_1"):
        assert not VAL_LOG_RATIO_BIN.matches(other)
    videos = LoggedName("samples/<kk>", "Samples")
    assert videos.at(3) == "samples/03"
    assert videos.is_numbered
    assert not VAL_LOG_RATIO.is_numbered
    assert (VAL_LOG_RATIO_BIN.which("val/log_ratio_bin_12"), VAL_LOG_RATIO.which("val/log_ratio")) == ("12", "")
    assert not LoggedName("a.b", "").matches("a/b")


def test_a_name_with_a_word():
    row, name = VAL_LOG_RATIO_BUCKET, "val/log_ratio_bucket_17x48x80"
    assert row.at("17x48x80") == name
    assert row.is_keyed
    assert not row.is_numbered
    assert not VAL_LOG_RATIO.is_keyed
    assert row.glob == "val/log_ratio_bucket_*"
    assert row.matches(name)
    assert row.which(name) == row.which(f"{name}/high") == "17x48x80"
    assert (row.part_of(name), row.part_of(f"{name}/high")) == ("", "high")
    for other in ("val/log_ratio_bucket_", "val/log_ratio_bin_1", "train/loss_bucket_17x48x80"):
        assert not row.matches(other)


@pytest.mark.parametrize(
    ("scale", "value", "text"),
    [
        ("log_ratio", -0.5, "-39.3 %"),
        ("log_ratio", 0.0, "+0.0 %"),
        ("share", 0.0523, "5.23 %"),
        ("number", 0.12345, "0.123"),
        ("number", 1234.5, "1,234"),
    ],
)
def test_values_as_users_see_them(scale, value, text):
    assert LoggedName("a/b", "", scale=scale).text(value) == text


def test_a_row_from_outside_comes_once():
    assert register(GRAIN) is GRAIN
    register(replace(GRAIN))  # the plugin's module was imported again
    assert [row.name for row in all_rows()].count(GRAIN.name) == 1
    with pytest.raises(UserError, match=r"grain/strength_<k> is taken \(Grain of the samples\)"):
        register(replace(GRAIN, title="Something else"))
    with pytest.raises(UserError, match=r"val/log_ratio is taken"):
        register(LoggedName("val/log_ratio", "Mine"))


def test_rows_from_outside_travel_with_the_run(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path)
    earlier = RunCSVLogger(directory)
    earlier.log_metrics({"x": 1.0}, step=1)
    earlier.save()
    assert not directory.logged_names.exists()
    register(GRAIN)
    logger = RunCSVLogger(directory)
    logger.log_metrics({"grain/strength_10": 2.0, "grain/strength_9": 1.0, "grain/strength": 3.0}, step=4)
    logger.save()
    monkeypatch.setattr(logged_names, "_PLUGGED", {})  # the plugin is gone
    assert read_rows(directory) == [GRAIN]
    run = RunRecord(tmp_path)
    assert [row for row in run.logged_names if row.section == "Grain"] == [GRAIN]
    assert [curve.values.tolist() for curve in run.curves_of(GRAIN)] == [[1.0], [2.0]]


def test_what_the_package_knows_by_now_needs_no_row_of_a_run():
    newer = replace(VAL_LOG_RATIO, title="as it was called then")
    assert [row for row in all_rows([newer]) if row.name == newer.name] == [VAL_LOG_RATIO]


def test_rows_of_later_versions_are_read(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.logged_names.write_text('[{"name": "a/b", "title": "A", "section": "B", "invented_later": 1}]')
    assert read_rows(directory) == [LoggedName("a/b", "A", "B")]
