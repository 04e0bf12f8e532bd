"""Runs that really overfit, each stopped by the one signal that may say so."""

import json

import pytest

from vidlit.__main__ import main

OTHERS = {"divergence": "off", "copies": "off", "diversity": "off", "exposure": "off"}


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["divergence", "copies", "diversity", "exposure"])
def test_a_run_that_overfits_is_stopped(quickstart, tmp_path, signal):
    """Two videos of a clip or two, shown hundreds of times: the held-out loss turns, then samples become copies."""
    policy = {f"overfit_stopping.policy.{name}": mode for name, mode in {**OTHERS, signal: "stop"}.items()}
    audited = signal in ("copies", "diversity")
    words = quickstart(
        data__buckets="[5x48x48]",
        data__batches__size=4,
        data__split__val_fraction=0.67,
        data__cutting__max_clips_per_video=1,
        trainer__max_steps=1200,
        trainer__val_check_interval=50 if audited else 8,
        samples__num_audit=8 if audited else 0,
        samples__audit_steps=8,
        samples__every_num_checks=2,
        **policy,
    )
    assert main([*words, *(["--exposure.hard_cap=50"] if signal == "exposure" else [])]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    decisions = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    assert summary["stopped_by"] == signal
    assert summary["stop_step"] < 1200
    assert [decision["action"] for decision in decisions].index("stop") == len(decisions) - 1
    (verdict,) = [verdict for verdict in decisions[-1]["verdicts"] if verdict["signal"] == signal]
    evidence = verdict["evidence"]
    match signal:
        case "divergence":
            assert summary["best_step"] < summary["stop_step"]
            assert evidence["case"] == "divergence"
        case "copies":
            assert evidence["copies"] >= 2
            assert evidence["base_copies"] == 0
            assert (run / evidence["pair"]).is_file()
            assert evidence["nearest_clip"] in summary["reason"]
        case "diversity":
            assert evidence["alarms"] == 2
            assert evidence["log_ratio"] <= -0.35
        case "exposure":
            assert evidence["mean"] >= 50
    assert summary["kept_step"] <= summary["stop_step"]
