import json
import shutil

import numpy as np
import pytest
import torch

from vidlit.errors import UserError
from vidlit.runs.logged_names import VAL_LOG_RATIO_BIN
from vidlit.runs.record import RunRecord
from vidlit.stopping.divergence import DivergenceSettings


@pytest.fixture
def run(finished_run):
    return RunRecord(finished_run)


def test_curves_are_arrays(run):
    steps, values = run.curve("val/log_ratio")
    assert steps.tolist() == [0, 4, 8, 12]
    assert values[0] == 0
    assert values.shape == (4,)
    assert run.curve("train/loss").steps.tolist() == list(range(1, 13))
    assert [len(curve.steps) for curve in run.curves_of(VAL_LOG_RATIO_BIN)] == [3] * 2
    assert run.curve("no/such/name").steps.size == 0


def test_what_else_a_run_holds(run):
    assert run.name == "quickstart/0"
    assert run.summary["planned_steps"] == 12
    assert run.config["trainer"]["max_steps"] == 12
    assert [verdict.evidence["step"] for verdict in run.verdicts("exposure")] == [4, 8, 12]
    assert {row.split for row in run.exposures} == {"train", "val"}
    assert sum(row.exposures for row in run.exposures) == 24
    assert set(run.samples) >= {0, 4, 8, 12}
    kept = [path for path in run.samples[run.summary["kept_step"]] if not path.name.startswith("audit_")]
    assert len(kept) == 2
    assert run.caption(kept[0]).endswith("background.")  # the whole caption, not the file's shortened name


def test_replay_says_what_the_run_said(run):
    said, again = run.verdicts("divergence"), run.replay()
    assert [verdict.reason for verdict in again] == [verdict.reason for verdict in said]
    assert [verdict.evidence for verdict in again] == [verdict.evidence for verdict in said]


def test_replay_with_other_settings(run):
    assert run.replay(DivergenceSettings(min_checks=6))[-1].evidence["case"] == "warm-up"
    with pytest.raises(UserError, match="alpha"):
        run.replay(DivergenceSettings(alpha=2.0))


def test_history_knows_whose_curve_each_is(run):
    history = run.history
    assert np.allclose(history.val.mean(axis=1), run.curve("val/log_ratio").values, atol=1e-6)
    held_out = {row.video for row in run.exposures if row.split == "val"}
    assert set(history.val_videos) == held_out
    assert set(history.train_eval_videos).isdisjoint(held_out)


def test_a_run_that_has_only_begun(finished_run, tmp_path):
    shutil.copy(finished_run / "config.yaml", tmp_path)
    run = RunRecord(tmp_path)
    assert (run.summary, run.decisions, run.exposures, run.samples, run.curves) == ({}, [], [], {}, {})
    with pytest.raises(UserError, match=r"last\.ckpt"):
        _ = run.history


def test_a_row_cut_short_by_a_kill(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss,val/loss\n1,0,0.5,\n2,0,0.4,0.3\n3,0,0.")
    assert RunRecord(tmp_path).curve("train/loss").values.tolist() == [0.5, 0.4, 0.0]
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss,val/loss\n1,0,0.5,\n2,0,nan,-")
    assert RunRecord(tmp_path).curve("train/loss").steps.tolist() == [1]
    assert RunRecord(tmp_path).curve("val/loss").steps.size == 0


def test_runs_of_before_are_read_under_the_names_of_now(finished_run, tmp_path):
    """``train_eval`` was called probe, copies memorization."""
    old = tmp_path / "old" / "0"
    shutil.copytree(finished_run, old)
    for file in ("metrics.csv", "decisions.jsonl", "summary.json"):
        text = (old / file).read_text().replace("copies/count", "memorization/copies")
        text = text.replace("copies/ratio_min", "memorization/ratio_min").replace("train_eval", "probe")
        assert "probe" in text
        (old / file).write_text(text)
    checkpoint = torch.load(old / "checkpoints" / "last.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["DivergenceMonitor"]
    checkpoint["callbacks"]["DivergenceMonitor"] = {k.replace("train_eval", "probe"): v for k, v in state.items()}
    torch.save(checkpoint, old / "checkpoints" / "last.ckpt")
    before, now = RunRecord(old), RunRecord(finished_run)
    assert before.curves.keys() == now.curves.keys()
    assert before.curve("copies/count").values.tolist() == now.curve("copies/count").values.tolist()
    assert before.decisions == now.decisions
    assert before.summary == now.summary
    assert [verdict.reason for verdict in before.replay()] == [verdict.reason for verdict in now.replay()]


def test_folders_without_a_run(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        RunRecord(tmp_path / "missing")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "config.yaml").touch()
    with pytest.raises(UserError, match=r"no run\. Did you mean .*3\?"):
        RunRecord(tmp_path)


def test_keys_in_an_old_config_are_not_read(tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps({"trainer": {"api_key": "canary"}}))
    assert "canary" not in str(RunRecord(tmp_path).config)
