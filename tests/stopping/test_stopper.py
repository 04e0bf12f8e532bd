"""The stateful face of the rule for loops of one's own."""

import numpy as np
import pytest

from tests.stopping.test_divergence import falling, history, overfitting, replay
from vidlit.stopping import CheckSchedule, DivergenceSettings, Stopper, judge_divergence


def stopper_for(full, **options):
    return Stopper(full.val_videos, full.train_eval_videos, **options)


@pytest.mark.parametrize("settings", [None, DivergenceSettings(confirm=1.0)])
def test_it_says_after_each_check_what_the_rule_says_of_the_whole_history(settings):
    full = history(overfitting(9, 30), falling(30))
    expected = replay(full, settings, warmup_steps=11)[1:]
    stopper = stopper_for(full, warmup_steps=11, settings=settings)
    for check, verdict in enumerate(expected, start=1):
        assert stopper.update(int(full.steps[check]), full.val[check], full.train_eval[check]) == verdict
        assert stopper.best_step == full.steps[np.argmin(full.val[: check + 1].mean(axis=1))]
    assert stopper.verdict.action == "stop"
    assert stopper.verdict.evidence["best_step"] == stopper.best_step > 0


def test_where_nothing_was_gained_the_model_as_it_was_is_best():
    rng = np.random.default_rng(0)
    rising = np.linspace(0.0, 0.3, 31)
    full = history(rising, rising, jitter=0.004)
    full.val[1] = -0.001 + rng.normal(0, 0.001, full.val.shape[1])  # a check that lies below by luck
    stopper = stopper_for(full)
    for check in range(1, 31):
        verdict = stopper.update(int(full.steps[check]), full.val[check], full.train_eval[check])
        if verdict.action == "stop":
            break
    assert verdict.evidence["case"] == "no gain"
    assert stopper.best_step == 0


def test_checks_may_come_at_any_steps():
    stopper = Stopper(["a", "b"], ["c"])
    for step in (100, 150, 400):
        verdict = stopper.update(step, [-0.1, -0.2], [-0.3])
    assert stopper.history.steps.tolist() == [0, 100, 150, 400]
    assert verdict == judge_divergence(stopper.history)


def test_what_does_not_fit_the_groups_is_refused_and_leaves_nothing_behind():
    stopper = Stopper(["a", "b"], ["c"])
    stopper.update(10, [0.0, 0.0], [0.0])
    for step, val, train_eval in ((20, [0.0], [0.0]), (20, [0.0, 0.0], 0.0), (10, [0.0, 0.0], [0.0])):
        with pytest.raises(ValueError, match=r"one log-ratio for each|steps must increase"):
            stopper.update(step, val, train_eval)
    assert stopper.history.steps.tolist() == [0, 10]
    with pytest.raises(ValueError, match="at least one"):
        Stopper([], ["c"])


@pytest.mark.parametrize("schedule", ["even", "doubling", "by chance"])
def test_a_run_that_overfits_is_stopped_whatever_its_steps(schedule):
    rng = np.random.default_rng(1)
    steps = {
        "even": np.arange(0, 3001, 5),
        "doubling": np.array([0, *CheckSchedule(5).checks(3000)]),
        "by chance": np.concatenate([[0], np.cumsum(rng.integers(1, 30, 200))]),
    }[schedule]
    fall = -0.5 * (1 - np.exp(-np.minimum(steps, 300) / 100))
    full = history(fall + 0.0008 * np.maximum(steps - 300, 0), -steps / 800, videos=8, jitter=0.005, spread=0.1)
    stopper = stopper_for(full)
    for check, step in enumerate(steps[1:], start=1):
        if stopper.update(int(step), full.val[check], full.train_eval[check]).action == "stop":
            break
    assert stopper.verdict.evidence["case"] in ("divergence", "plateau")
    assert 300 < step < 600
    assert abs(stopper.best_step - 300) < 80
