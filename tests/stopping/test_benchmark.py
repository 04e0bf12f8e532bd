"""The simulated benchmark in small: what the README quotes is measured by `python -m benchmarks.stopping`."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.stopping import (
    curves,
    folder_clips,
    jitter,
    real_clips,
    real_measure,
    real_runs,
    report,
    rules,
    schedules,
    training,
)
from vidlit.data.demo_folder import Demo
from vidlit.stopping.divergence import DivergenceHistory, judge_divergence


@pytest.mark.parametrize("scenario", schedules.ALL)
def test_a_cell_gives_the_numbers_that_its_scenario_has_an_answer_for(scenario):
    found = schedules.one_cell(scenario, schedules.USERS[1], 0.03, schedules.Way(), runs=4, seed=9)
    assert all(np.isfinite(value) for value in found.values())
    assert found == schedules.one_cell(scenario, schedules.USERS[1], 0.03, schedules.Way(), runs=4, seed=9)
    if scenario in ("no gain", "nothing to learn"):
        assert set(found) == {"end" if scenario == "no gain" else "nothing"}
    elif scenario in curves.NEVER_RIGHT:
        assert set(found) == {"regret", "false"}
    else:
        assert "premature" in found
    assert ("cost" in found) == (scenario in schedules.TURNING)


def some_runs(checks=24, runs=40):
    """Overfitting curves with jitter at evenly spaced checks, as the real runs come."""
    rng = np.random.default_rng(9)
    u = np.linspace(0.0, 1.0, checks + 1)
    fall, rise, probe, _, _ = curves.SHAPES["overfit"](rng, runs, u)
    val, probe = (
        curves.videos_around(rng, a, b, 4) + 0.03 * rng.standard_normal((runs, checks + 1, 1))
        for a, b in ((fall, rise), (probe, 0.0 * rise))
    )
    val[:, 0] = probe[:, 0] = 0.0
    truth = fall + rise
    oracle = truth.argmin(axis=1)
    mean = val.mean(axis=2)
    return rules.Runs(mean, probe.mean(axis=2), val, probe, truth, oracle, oracle, mean, warmup_checks=2)


def test_patience_against_lightning_in_words():
    runs = some_runs()
    stop, restored = rules.patience(runs, 3, fresh=False)
    for run in range(40):
        best, wait = np.inf, 0
        for check in range(25):
            value = runs.val[run, check]
            best, wait = (value, 0) if value < best else (best, wait + 1)
            if wait >= 3:
                break
        assert stop[run] == check
        assert runs.val[run, restored[run]] == best


def test_patience_scaled_to_the_run_in_words():
    steps = np.array([0, *range(10, 200, 10), *range(200, 401, 20)])
    curve = some_runs(len(steps) - 1, 20).val
    over = rules.scaled_patience(steps, curve, 0.3)
    for run in range(20):
        for now in range(len(steps)):
            waited = steps[now] - steps[curve[run, : now + 1].argmin()]
            assert over[run, now] == (now >= 8 and waited >= 0.3 * steps[now])


def test_the_rule_in_bulk_is_the_rule_one_by_one():
    runs = some_runs(runs=5)
    stops, _ = rules.divergence(runs)
    names = tuple("abcd")
    for run in range(5):
        for check in range(1, 24):
            part = slice(0, check + 1)
            history = DivergenceHistory(
                np.arange(check + 1), runs.val_by_video[run, part], runs.probe_by_video[run, part], names, names
            )
            if judge_divergence(history, warmup_steps=2).action == "stop":
                break
        else:
            check = 24
        assert check == stops[run]


def test_the_schedule_that_ships_costs_less_than_the_one_before():
    cells = [
        {
            name: schedules.one_cell("overfit", user, 0.03, schedules.WAYS[name], runs=12, seed=9)
            for name in (schedules.SHIPS, "16 checks, as before", "doubling, 10 times too high")
        }
        for user in schedules.USERS
    ]
    ours, before, too_high = ([cell[name] for cell in cells] for name in cells[0])
    assert np.mean([cell["cost"] for cell in ours]) < np.mean([cell["cost"] for cell in before])
    for one, other in zip(ours, too_high, strict=True):
        assert one["premature"] == other["premature"] == one["missed overfit"] == 0.0
        assert other["cost"] < 1.1 * one["cost"]
    improving = schedules.one_cell("still improving", schedules.USERS[1], 0.03, schedules.Way(), runs=12, seed=9)
    assert improving["false"] == 0.0
    found = {name: schedules._summary({"overfit": cells[0][schedules.SHIPS]}) for name in schedules.WAYS}
    table = "\n".join(schedules.table(found))
    assert "| **doubling, as it ships** |" in table
    assert "| patience 10 at the same checks |" in table


def test_another_value_of_a_constant_is_measured_and_put_back(monkeypatch):
    monkeypatch.setattr(schedules, "CONSTANTS", {"SURE": (1000.0,)})
    monkeypatch.setattr(schedules, "WITH_NOTHING", ("overfit",))
    monkeypatch.setattr(schedules, "USERS", schedules.USERS[2:3])
    found = schedules.measure_constants(runs=6, seed=9)
    # never sure that a loss has fallen: what it must have left is the base model's, which these runs stay below
    assert found["`SURE` 1000"]["cost"]["mean"] > found["as they ship"]["cost"]["mean"]
    assert schedules.rule.SURE == 3.0


@pytest.mark.parametrize("rule", [schedules.TWELVE, *rules.OTHERS])
def test_other_rules_at_the_same_checks(rule):
    found = schedules.one_cell("overfit", schedules.USERS[2], 0.01, schedules.Way(rule=rule), runs=6, seed=9)
    assert (found["missed overfit"] == 1.0) == (rule == "no stop")


def test_the_rule_on_the_stored_real_runs():
    every = real_measure.read()
    assert {one.plan.kind for one in every} == {"clips", "fresh", "tuned"}
    for one in every:
        found = real_measure.outcome(one, rules.divergence(one.runs))
        assert found.get("premature", 0.0) == found.get("false", 0.0) == 0.0, one.plan.name
        assert one.runs.val_by_video.shape[1:] == (len(one.steps), real_runs.VAL_VIDEOS)


def test_a_real_run_is_trained_scored_stored_and_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "ORACLE_VIDEOS", 16)
    plan = real_runs.Plan("clips", 8, 1e-3, 0, steps=12, every=2)
    arrays = training.train(training.World(tmp_path), plan)
    assert not arrays["val"][0].any()
    assert arrays["val"].shape == (7, real_runs.VAL_VIDEOS * real_runs.VAL_TAKES, 4)
    assert arrays["oracle"].mean(axis=1)[-1] < 0  # it learns
    assert np.isfinite(arrays["fresh"]).all()
    path = tmp_path / "curves.npz"
    real_runs.store({plan.name: arrays}, path)
    again = real_runs.stored(path)[plan.name]
    assert all(np.array_equal(again[name], value, equal_nan=True) for name, value in arrays.items())
    monkeypatch.setattr(real_measure, "plans", lambda: [plan])
    monkeypatch.setattr(real_measure, "stored", lambda: {plan.name: again})
    results = real_measure.measure_all()
    assert results["runs"][plan.name]["stop"] == 12  # too short to judge
    fixed = real_measure.fixed_exposures(real_measure.read()[0], 10)
    assert int(fixed[0][0]) == 5  # a step shows each of the four videos once: ten exposures are ten steps, five checks
    assert plan.name in report.real_table(results)


@pytest.mark.slow
def test_a_run_on_clips_from_a_folder_is_trained_scored_stored_and_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(real_runs, "CHECKS", 48)
    monkeypatch.setattr(folder_clips, "MIN_ORACLE_RECORDINGS", 2)
    Demo(tmp_path / "demo", num_videos=28, clips_per_video=1, base=False).write()
    (tmp_path / "work").mkdir()
    source = folder_clips.FolderClips(tmp_path / "demo" / "clips", tmp_path / "work")
    plan = real_runs.FolderPlan("scratch", 4, 2, "still", 2, 3e-3, 0, every=1)
    shares = source.shares(plan)
    assert [len(shares[name]) for name in ("val", "train", "oracle")] == [8, 4, 2]
    assert len({k for share in shares.values() for k in share}) == 14
    motion = [recording.motion for recording in source.recordings]
    assert max(motion[k] for share in shares.values() for k in share) <= np.median(motion)
    arrays = training.train(source, plan)
    assert arrays["val"].shape == (49, 8, 2)
    assert arrays["oracle"].shape == (25, 4)
    path = tmp_path / "curves.npz"
    real_runs.store({plan.name: arrays}, path)
    (run,) = real_clips.read(path)
    assert run.plan == plan
    assert run.oracle[-1] < 0  # it learns
    assert plan.name in "\n".join(real_clips.run_table([run], real_clips.Way()))
    assert len(real_clips.table([run])) == 2 + 3 * len(real_clips.WAYS)
    for made in (jitter.share_table, jitter.level_tables, jitter.estimate_table):
        assert len(made([run])) >= 5


def test_lora_runs_share_no_recording_with_their_base():
    source = folder_clips.FolderClips(Path(), Path())
    source.recordings = [folder_clips.Recording([], float(k)) for k in range(75)]
    for plan in real_runs.folder_plans():
        shares = [set(share) for share in source.shares(plan).values()]
        if plan.kind == "lora":
            shares.append(set(source.base_recordings()))
        assert len(set.union(*shares)) == sum(map(len, shares))
    assert len({plan.name for plan in real_runs.folder_plans()}) == len(real_runs.folder_plans())


@pytest.mark.parametrize("memory", [0.005, 0.02])
@pytest.mark.parametrize("shape", ["exponential", "damped"])
def test_a_memory_is_found_again(memory, shape):
    apart = np.abs(np.subtract.outer(np.arange(241), np.arange(241))) / 240
    noise = np.linalg.cholesky(jitter.SHAPES[shape](apart / memory)) @ np.random.default_rng(0).normal(size=(241, 200))
    trend = np.linspace(0.0, 3.0, 241)[:, None] ** 2
    found = jitter.correlations(jitter.residuals(noise + trend))
    assert jitter.MemoryFit(241, real_clips.WINDOW)(found)[shape][0] == pytest.approx(memory, rel=0.15)
