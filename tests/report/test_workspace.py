import json

import pytest

from vidlit.__main__ import main
from vidlit.errors import UserError
from vidlit.report.workspace import chart_names, make_workspace
from vidlit.runs.logged_names import SECTIONS

LOGGER = "trainer: {logger: {class_path: lightning.pytorch.loggers.WandbLogger, init_args: {project: films}}}"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "wandb.yaml"
    path.write_text(LOGGER)
    return path


def test_dry_run_prints_the_workspace(config, tmp_path, capsys):
    more = tmp_path / "more.yaml"
    more.write_text("model: {num_strata: 3}")
    assert main(["dashboard", "--config", str(config), f"--config={more}", "--dry-run"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["project"] == "films"
    sections = printed["spec"]["section"]["panel_bank_config"]["sections"]
    assert [section["name"] for section in sections[:4]] == list(SECTIONS)
    text = json.dumps(sections)
    assert "val/log_ratio_bin_2" in text
    assert "val/log_ratio_bin_3" not in text
    assert "samples/audit_00" in text
    assert json.dumps(r"val/log_ratio_bucket_(\w+)") in text


def test_project_and_entity_by_hand(capsys):
    assert main(["dashboard", "--project", "mine", "--entity", "me", "--dry-run"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["project"], printed["entity"]) == ("mine", "me")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--project", "mine"], "choose one of --dry-run"),
        (["--project", "mine", "--dry-run", "--push"], "choose one of --dry-run"),
        (["--dry-run"], "no config names a W&B project"),
        (["--config", "missing.yaml", "--dry-run"], "missing.yaml"),
    ],
)
def test_what_is_missing_is_said(words, message, capsys):
    assert main(["dashboard", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"vidlit\[dashboard\]"):
        make_workspace("films", "")


def test_push_without_an_account_says_why(config, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert main(["dashboard", "--config", str(config), "--push"]) == 2
    assert "W&B did not accept the workspace" in capsys.readouterr().err


def test_no_name_twice_in_a_section():
    for charts in chart_names(4).values():
        names = [name for logged in charts.values() for name in logged]
        assert len(names) == len(set(names))
