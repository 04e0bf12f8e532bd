"""The simulated benchmark in small: what the README quotes is measured by `python -m benchmarks.stopping --full`."""

import numpy as np
import pytest

from benchmarks.stopping import curves, real_measure, real_runs, report, rules, schedules, training
from benchmarks.stopping.measure import measure
from vidlit.stopping.divergence import DivergenceHistory, judge_divergence


@pytest.mark.parametrize("scenario", curves.SCENARIOS)
def test_runs_have_the_shapes_and_the_answer_they_promise(scenario):
    runs = curves.simulate(scenario, 24, 0.03, runs=6, seed=9, videos=5)
    assert runs.val.shape == runs.truth.shape == (6, 25)
    assert runs.val_by_video.shape == (6, 25, 5)
    assert not runs.val[:, 0].any()
    np.testing.assert_allclose(runs.val, runs.val_by_video.mean(axis=2))
    again = curves.simulate(scenario, 24, 0.03, runs=6, seed=9, videos=5)
    np.testing.assert_array_equal(again.probe, runs.probe)
    if scenario in ("overfit", "slow overfit"):
        assert (runs.right_from == runs.truth.argmin(axis=1)).all()
        assert (runs.oracle < 24).all()


def test_patience_against_lightning_in_words():
    runs = curves.simulate("overfit", 24, 0.03, runs=40, seed=9)
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


def test_the_rule_on_a_few_runs_of_every_kind():
    for scenario in ("overfit", "early hump", "plateau, probe falls"):
        runs = curves.simulate(scenario, 80, 0.03, runs=12, seed=9)
        found = measure(scenario, runs, rules.divergence(runs)).values
        assert found["premature"].mean() == 0.0
        assert found["missed"].mean() <= 0.5
    for scenario in ("still improving", "plateau, probe flat", "learning-rate bend"):
        runs = curves.simulate(scenario, 80, 0.03, runs=12, seed=9)
        assert measure(scenario, runs, rules.divergence(runs)).values["false"].mean() <= 0.1


def test_the_rule_in_bulk_is_the_rule_one_by_one():
    runs = curves.simulate("overfit", 24, 0.03, runs=5, seed=9, videos=4)
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
    for one, other in list(zip(ours, too_high, strict=True))[1:]:  # 500 steps are short enough for max_steps to matter
        assert other["cost"] < 1.1 * one["cost"]
    improving = schedules.one_cell("still improving", schedules.USERS[1], 0.03, schedules.Way(), runs=12, seed=9)
    assert improving["false"] == 0.0
    found = {name: schedules._summary({"overfit": cells[0][schedules.SHIPS]}) for name in schedules.WAYS}
    assert "| **doubling, as it ships** |" in "\n".join(schedules.table(found))


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
