"""Runs made to show one sign of overfitting, each stopped by the signal that judges it; and one that shows none.

Drift, the fifth signal, only warns: tests/signals/test_drift_monitor.py has its runs.
"""

import json
from pathlib import Path

import pytest

import vidlit
from benchmarks.audits.runs import WARN, Kind, copy_real, options, untrained_base, write_procedural
from vidlit.__main__ import main
from vidlit.stopping.copies import COPIED_SHARE, COPY_RATIO
from vidlit.stopping.lost_diversity import LIMIT

SHOWING = {
    # moving clips, checked often: the held-out loss turns long before samples copy
    "divergence": Kind(4, motion="moving", steps=400, every=8),
    # near-still clips, which a measure that looks for motion would miss
    "copies": Kind(4, motion="still", steps=480, every=48),
    # one caption for all, at a high rate: every sample becomes the same
    "diversity": Kind(3, one_caption=True, lr=4e-3, steps=300, every=30),
}
SOUND = Kind(40, batch=8, steps=120, every=40)
"""Many clips, each seen a few times."""


def fit(kind: Kind, clips: Path, folder: Path, policy: dict[str, str], **overrides):
    """Fit as the benchmark's runs do, with a policy; returns the result and the decisions."""
    words = options(kind, clips, untrained_base(folder), folder)
    result = vidlit.fit("quickstart", quiet=True, **{**words, "overfit_stopping__policy": policy, **overrides})
    return result, [json.loads(line) for line in (result.directory / "decisions.jsonl").read_text().splitlines()]


def assert_stopped_by(signal: str, result, decisions):
    """It ended at the first stop, which this signal asked for, with numbers that say so."""
    summary = result.summary
    assert summary["stopped_by"] == signal, summary["reason"]
    assert [decision["action"] for decision in decisions].index("stop") == len(decisions) - 1
    (verdict,) = [verdict for verdict in decisions[-1]["verdicts"] if verdict["signal"] == signal]
    assert verdict["action"] == "stop"
    evidence = verdict["evidence"]
    match signal:
        case "divergence":
            # The loss rises, or stands while the training subset's falls on: the same sign, which says first is chance.
            assert evidence["case"] in ("divergence", "plateau")
            assert 0 < summary["best_step"] < summary["stop_step"]
            assert evidence["val_log_ratio"] > -evidence["gain"]
            assert evidence["train_eval_log_ratio"] < evidence["val_log_ratio"] - 0.4
        case "copies":
            assert evidence["copies"] >= max(2, COPIED_SHARE * evidence["clips"])
            assert evidence["base_copies"] == 0
            assert evidence["ratio"] < COPY_RATIO
            assert evidence["nearest_clip"] in summary["reason"]
            assert (result.directory / evidence["pair"]).is_file()
        case "diversity":
            assert evidence["alarms"] == 2
            assert evidence["log_ratio"] <= LIMIT
    assert summary["kept_step"] <= summary["stop_step"]


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True], ids=["procedural", "real"])
@pytest.mark.parametrize("signal", SHOWING)
def test_a_run_that_shows_a_sign_is_stopped_by_its_signal(request, tmp_path, signal, real):
    kind = SHOWING[signal]
    if real:
        clips = copy_real(kind, 1, request.getfixturevalue("shared_videos") / "real", tmp_path)
    else:
        clips = write_procedural(kind, 1, tmp_path / "clips")
    # The loss is checked every few steps; samples are looked at less often, so that the run is quick.
    between_audits = 10 if signal == "divergence" else 1
    policy = {**WARN, signal: "stop"}
    result, decisions = fit(kind, clips, tmp_path, policy, samples__every_num_checks=between_audits)
    assert_stopped_by(signal, result, decisions)


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True], ids=["procedural", "real"])
def test_a_run_that_shows_no_sign_goes_on_to_its_end(request, tmp_path, real):
    if real:
        clips = copy_real(SOUND, 1, request.getfixturevalue("shared_videos") / "real", tmp_path)
    else:
        clips = write_procedural(SOUND, 1, tmp_path / "clips")
    result, decisions = fit(SOUND, clips, tmp_path, dict.fromkeys(("divergence", "copies", "diversity"), "stop"))
    assert result.summary["stopped_by"] == "max_steps"
    assert result.summary["stop_step"] == SOUND.steps
    assert "stop" not in [decision["action"] for decision in decisions]


@pytest.mark.slow
def test_the_hard_cap_of_exposures_stops(quickstart, tmp_path):
    policy = {f"overfit_stopping.policy.{name}": "off" for name in ("divergence", "copies", "diversity")}
    words = quickstart(trainer__max_steps=1200, **policy, **{"overfit_stopping.policy.exposure": "stop"})
    assert main([*words, "--exposure.hard_cap=50"]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stopped_by"] == "exposure"
    assert summary["exposures"]["mean"] >= 50
    assert summary["stop_step"] < 1200
