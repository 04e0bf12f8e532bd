"""Drift in real runs: of a LoRA against its base, of whole weights against step 0, on through a resume."""

import json

import pytest
import torch

from vidlit.__main__ import main
from vidlit.errors import UserError
from vidlit.signals.drift_monitor import DriftMonitor, watched_captions

LORA = {"model__adapter": "{rank: 4, alpha: 4}", "trainer__max_steps": 8}
PRESERVED = "{captions: [a disc on a plain ground], weight: 1.0, share: 1.0}"


def drifts(tmp_path, number=0):
    lines = (tmp_path / f"runs/quickstart/{number}/decisions.jsonl").read_text().splitlines()
    verdicts = [each for line in lines for each in json.loads(line)["verdicts"] if each["signal"] == "drift"]
    return verdicts, [each["evidence"]["drift"] for each in verdicts]


@pytest.fixture
def on(quickstart):
    """A small fit in which drift, which the quickstart switches off, may warn."""
    return lambda **options: quickstart(**{"overfit_stopping.policy.drift": "warn", **options})


def test_a_lora_drifts_from_its_base_and_less_where_it_is_preserved(on, tmp_path, monkeypatch):
    bases = []
    measured = DriftMonitor._velocities

    def remember(self):
        bases.append(measured(self))
        return bases[-1]

    monkeypatch.setattr(DriftMonitor, "_velocities", remember)
    assert main(on(**LORA, drift__limit=1e-9)) == 0
    verdicts, plain = drifts(tmp_path)
    assert [each["action"] for each in verdicts] == ["warn", "warn"]
    assert 0 < plain[0] < plain[1]
    untrained = bases[0]
    assert [each.shape[0] for each in untrained] == [1] * 4
    assert main(on(**LORA, **{"model.preservation": PRESERVED})) == 0
    _, preserved = drifts(tmp_path, 1)
    assert 0 < preserved[-1] < plain[-1]


def test_whole_weights_drift_from_step_0_and_go_on_after_a_resume(on, tmp_path):
    assert main(on(trainer__max_steps=8)) == 0
    _, whole = drifts(tmp_path)
    assert main(on(trainer__max_steps=4)) == 0
    run = tmp_path / "runs/quickstart/1"
    assert main([*on(trainer__max_steps=8), f"--ckpt_path={run}/checkpoints/last.ckpt"]) == 0
    _, resumed = drifts(tmp_path, 1)
    assert len(whole) == 2
    assert resumed == pytest.approx(whole, rel=1e-5)
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["DriftMonitor"]
    assert len(state["base"]) == 4


def test_a_policy_may_have_it_stop_the_run(on, tmp_path):
    assert main(on(**{**LORA, "overfit_stopping.policy.drift": "stop"}, drift__limit=1e-9)) == 0
    summary = json.loads((tmp_path / "runs/quickstart/0/summary.json").read_text())
    assert (summary["stopped_by"], summary["stop_step"]) == ("drift", 4)


def test_four_captions_at_most_are_watched():
    assert watched_captions(None, []) == [""]
    assert watched_captions(None, ["a", "b"]) == ["a", "b"]
    assert watched_captions(["c"], ["a", "b"]) == ["c"]
    assert watched_captions([f"{number}" for number in range(8)], []) == ["0", "2", "4", "6"]
    with pytest.raises(UserError, match=r"drift\.limit is 0"):
        DriftMonitor(limit=0.0)


def test_preservation_needs_an_adapter(on, capsys):
    assert main(on(**{"model.preservation": PRESERVED})) == 2
    assert "set model.adapter" in capsys.readouterr().err
