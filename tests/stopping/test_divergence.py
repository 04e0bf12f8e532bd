import json
import math

import numpy as np
import pytest

from vidlit.stopping.divergence import (
    DivergenceHistory,
    DivergenceSettings,
    best_check,
    conservative_check,
    judge_divergence,
)
from vidlit.stopping.schedule import CheckSchedule


def history(val, train_eval, videos=6, clips=2, jitter=0.01, spread=0.25, seed=0):
    """Clips of recordings around mean curves (J,); each recording has its own share of the curve."""
    rng = np.random.default_rng(seed)

    def around(curve):
        share = np.exp(rng.normal(0.0, spread, videos)).repeat(clips)
        values = np.asarray(curve)[:, None] * share / share.mean() + rng.normal(0, jitter, (len(curve), 1))
        values += rng.normal(0, jitter, (len(curve), videos * clips))
        values[0] = 0.0
        return values

    names = tuple(f"v{k // clips}" for k in range(videos * clips))
    return DivergenceHistory(np.arange(len(val)) * 10, around(val), around(train_eval), names, names)


def upto(full, check):
    return DivergenceHistory(
        full.steps[: check + 1],
        full.val[: check + 1],
        full.train_eval[: check + 1],
        full.val_videos,
        full.train_eval_videos,
    )


def replay(full, settings=None, warmup_steps=0):
    """All verdicts of a run up to the first stop."""
    verdicts = []
    for check in range(len(full.steps)):
        verdicts.append(judge_divergence(upto(full, check), settings, warmup_steps=warmup_steps))
        if verdicts[-1].action == "stop":
            break
    return verdicts


def overfitting(turn, checks, depth=0.6, slope=0.03):
    t = np.arange(checks + 1)
    return -depth * (1 - np.exp(-3.0 * np.minimum(t, turn) / turn)) + slope * np.maximum(t - turn, 0)


def falling(checks, depth=1.2, tau=12.0):
    return -depth * (1 - np.exp(-np.arange(checks + 1) / tau))


@pytest.mark.parametrize("videos", [4, 6, 12])
@pytest.mark.parametrize("turn", [6, 9, 12])
def test_a_short_run_that_overfits_stops_soon_after_its_turn(turn, videos):
    for seed in range(4):
        full = history(overfitting(turn, 30), falling(30), videos=videos, seed=seed)
        *before, last = replay(full, warmup_steps=20)
        check = len(before)
        assert last.action == "stop"
        assert turn < check <= turn + 10
        assert last.evidence["best_check"] == best_check(full)
        assert abs(last.evidence["best_check"] - turn) <= 3


def test_the_reason_names_divergence_with_its_numbers():
    last = replay(history(overfitting(9, 40, slope=0.05), falling(40), videos=8))[-1]
    assert last.signal == "divergence"
    assert last.evidence["case"] == "divergence"
    assert last.evidence["statistic"] > last.evidence["threshold"]
    assert last.evidence["gain"] == pytest.approx(0.6, abs=0.1)
    assert last.evidence["gap"] > 0.3
    lowest, now = (100 * math.expm1(value) for value in (-last.evidence["gain"], last.evidence["val_log_ratio"]))
    rise = f"from {lowest:+.1f} % against the base model at step {last.evidence['best_step']} to {now:+.1f} %"
    assert f"Overfitting: the validation loss has risen {rise}" in last.reason
    assert "over 8 recordings" in last.reason
    assert all(math.isfinite(v) for v in last.evidence.values() if not isinstance(v, str))
    json.dumps(last.evidence)


@pytest.mark.parametrize("checks", [24, 80, 200])
def test_a_run_that_keeps_improving_is_never_stopped(checks):
    t = np.arange(checks + 1)
    val = -0.3 * np.log1p(20 * t / checks) / np.log(21)
    for seed in range(3):
        verdicts = replay(history(val, 1.3 * val - 0.2 * t / checks, videos=10, seed=seed), warmup_steps=checks // 2)
        assert len(verdicts) == checks + 1
        assert not any(verdict.action == "stop" for verdict in verdicts)


def test_nothing_is_decided_in_the_warm_up():
    full = history(np.linspace(0, 1, 31), falling(30))
    verdicts = replay(full, warmup_steps=50)
    assert {verdict.evidence["case"] for verdict in verdicts[:15]} == {"warm-up"}
    assert verdicts[-1].action == "stop"


def test_a_plateau_with_a_falling_train_eval_is_warned_of_and_then_stopped():
    t = np.arange(121)
    val = -0.4 * (1 - np.exp(-t / 5.0))
    verdicts = replay(history(val, val - 0.01 * t, videos=8, jitter=0.002))
    last, cases = verdicts[-1], [verdict.evidence["case"] for verdict in verdicts]
    assert (last.action, last.evidence["case"]) == ("stop", "plateau")
    assert verdicts[cases.index("plateau")].action == "warn"
    assert len(verdicts) < 100
    assert "training subset's loss is still falling" in last.reason


def test_a_hump_that_has_passed_is_not_a_plateau():
    t = np.arange(121)
    flat = -0.6 * (1 - np.exp(-t / 6))
    train_eval = flat - 0.006 * t
    stops = []
    for centre in (None, 20, 30):
        hump = 0.03 * np.exp(-0.5 * ((t - centre) / 5.0) ** 2) if centre else 0.0
        last = replay(history(flat + hump, train_eval, jitter=0.003))[-1]
        assert (last.action, last.evidence["case"]) == ("stop", "plateau")
        stops.append(last.evidence["step"] // 10)
    # The window of a stop is the last 0.7 of the run: it waits until the hump has left it.
    assert stops[0] < 50
    assert stops[1] > 55
    assert stops[2] > 70


def test_a_plateau_with_a_flat_train_eval_is_not_a_reason_to_stop():
    val = -0.4 * (1 - np.exp(-np.arange(121) / 5.0))
    for seed in range(5):
        assert replay(history(val, 1.2 * val, videos=8, jitter=0.004, seed=seed))[-1].action != "stop"


def test_no_gain_stops_and_points_to_step_0():
    rising = 0.02 * np.arange(41)
    last = replay(history(rising, 0.5 * rising))[-1]
    assert (last.action, last.evidence["case"]) == ("stop", "no gain")
    assert (last.evidence["best_step"], last.evidence["gain"]) == (0, 0.0)
    assert "learning rate" in last.reason


def test_an_early_rise_that_passes_is_not_no_gain():
    t = np.arange(61)
    hump = 0.2 * np.exp(-0.5 * ((t - 4) / 2.0) ** 2)
    val = hump - 0.5 * (1 - np.exp(-t / 40.0))
    assert replay(history(val, val), warmup_steps=40)[-1].action != "stop"


def test_where_the_latest_check_is_the_best_it_says_still_improving():
    val = -0.4 * (1 - np.exp(-np.arange(31) / 30.0))
    verdict = replay(history(val, val, jitter=0.001))[-1]
    assert (verdict.action, verdict.evidence["case"]) == ("continue", "still improving")
    assert verdict.evidence["best_step"] == verdict.evidence["step"] == 300
    assert "Still improving: the validation loss is at its lowest" in verdict.reason


def test_without_scored_training_clips_a_rise_is_told_and_a_plateau_is_not():
    def alone(full):
        return DivergenceHistory(full.steps, full.val, full.val[:, :0], full.val_videos, ())

    last = replay(alone(history(overfitting(9, 40, slope=0.05), falling(40), videos=8)))[-1]
    assert (last.action, last.evidence["case"]) == ("stop", "divergence")
    assert "training subset" not in last.reason
    assert "gap" not in last.evidence
    t = np.arange(121)
    flat = -0.4 * (1 - np.exp(-t / 5.0))
    assert replay(alone(history(flat, flat - 0.01 * t, videos=8, jitter=0.002)))[-1].action == "continue"


def test_a_rise_of_one_source_video_is_not_enough():
    checks = 40
    flat = -0.5 * (1 - np.exp(-np.arange(checks + 1) / 3.0))
    full = history(flat, flat, videos=6, jitter=0.003)
    full.val[:, :2] += np.maximum(np.arange(checks + 1) - 12, 0)[:, None] * 0.03
    verdicts = replay(full)
    assert all(verdict.evidence["case"] != "divergence" for verdict in verdicts)
    assert verdicts[-1].evidence["statistic"] > verdicts[-1].evidence["threshold"]
    assert verdicts[-1].evidence["p_value"] > 0.05


@pytest.mark.parametrize("videos", [1, 2, 3])
def test_with_few_source_videos_it_says_so_waits_longer_and_still_stops(videos):
    slow = replay(history(overfitting(8, 40), 0.9 * overfitting(8, 40), videos=videos, spread=0.0, jitter=0.004))
    fast = replay(history(overfitting(8, 40), 0.9 * overfitting(8, 40), videos=8, spread=0.0, jitter=0.004))
    assert slow[-1].action == fast[-1].action == "stop"
    assert len(slow) > len(fast)
    assert f"Only {videos} validation recording" in slow[-1].reason
    assert slow[-1].evidence["held_out_videos"] == videos


def test_where_the_train_eval_rises_too_the_reason_says_unsteady():
    rising = overfitting(8, 40)
    assert "Unstable training" in replay(history(rising, rising, videos=8))[-1].reason


def test_a_loss_that_is_no_number_stops_at_once():
    full = history(overfitting(8, 10), falling(10))
    full.val[5, 3] = np.nan
    verdict = judge_divergence(upto(full, 5))
    assert (verdict.action, verdict.evidence["case"], verdict.fatal) == ("stop", "not finite", True)
    assert "step 50" in verdict.reason
    later = judge_divergence(full)  # a user whose policy only warns goes on
    assert later.evidence["case"] != "not finite"
    assert math.isfinite(later.evidence["gain"])


def test_the_verdict_depends_on_the_history_alone():
    full = history(overfitting(9, 30), falling(30))
    last = replay(full)[-1]
    again = judge_divergence(upto(full, last.evidence["step"] // 10))
    assert again == last
    order = np.random.default_rng(0).permutation(len(full.val_videos))
    shuffled = DivergenceHistory(
        full.steps,
        full.val[:, order],
        full.train_eval,
        tuple(full.val_videos[k] for k in order),
        full.train_eval_videos,
    )
    shuffled = judge_divergence(upto(shuffled, last.evidence["step"] // 10))
    assert shuffled.action == last.action
    assert shuffled.evidence["p_value"] == pytest.approx(last.evidence["p_value"])


@pytest.mark.parametrize("first", [1, 10, 37])
def test_a_turn_is_found_as_early_at_any_first_spacing(first):
    """The schedule that ships, from a first spacing of a thousandth of the turn to a few of it."""
    schedule = CheckSchedule(first)
    steps = np.array([0, *schedule.checks(4000)])
    turn = 400
    val = -0.6 * (1 - np.exp(-3.0 * np.minimum(steps, turn) / turn)) + 0.0006 * np.maximum(steps - turn, 0)
    full = history(val, -1.2 * (1 - np.exp(-steps / 500)), videos=8, jitter=0.006, spread=0.1)
    full = DivergenceHistory(steps, full.val, full.train_eval, full.val_videos, full.train_eval_videos)
    *before, last = replay(full, warmup_steps=40)
    assert (last.action, last.evidence["case"]) == ("stop", "divergence")
    assert turn < steps[len(before)] < 2 * turn
    assert abs(last.evidence["best_step"] - turn) < 0.3 * turn
    assert last.evidence["best_step"] in steps  # a check, not a mean of several


def test_a_check_that_was_not_finite_leaves_the_rows_as_they_are():
    full = history(overfitting(9, 30), falling(30), videos=8)
    stop = len(replay(full)) - 1
    full.val[4, 2] = np.nan
    verdicts = [judge_divergence(upto(full, check)) for check in range(stop + 1)]
    assert [check for check, verdict in enumerate(verdicts) if verdict.evidence["case"] == "not finite"] == [4]
    assert abs(len(replay_from(full, 5)) - 1 - stop) <= 2


def replay_from(full, check):
    """Verdicts from a check on, to the first stop, with all before it left out."""
    verdicts = [None] * check
    for now in range(check, len(full.steps)):
        verdicts.append(judge_divergence(upto(full, now)))
        if verdicts[-1].action == "stop":
            break
    return verdicts


def test_single_precision_histories_are_judged_alike():
    full = history(overfitting(9, 30), falling(30))
    single = DivergenceHistory(
        full.steps,
        full.val.astype(np.float32),
        full.train_eval.astype(np.float32),
        full.val_videos,
        full.train_eval_videos,
    )
    assert replay(single)[-1].evidence["step"] == replay(full)[-1].evidence["step"]


def test_best_and_conservative_checks():
    names = ("a", "b")
    curve = np.array([0.0, -0.5, -0.92, -0.95, -1.0, -0.8])
    val = np.stack([curve - 0.01, curve + 0.01], axis=1)
    val[0] = 0.0
    full = DivergenceHistory(np.arange(6) * 5, val, val, names, names)
    assert best_check(full) == 4
    assert conservative_check(full) == 2
    assert conservative_check(full, share=0.6) == 1


def test_a_check_that_is_low_in_one_video_alone_is_not_the_best():
    names = tuple("abcde")
    curve = np.array([0.0, -0.5, -0.9, -1.0, -0.9, -0.8, -0.7])
    val = np.repeat(curve[:, None], 5, axis=1)
    val[5, 2] -= 4.0
    full = DivergenceHistory(np.arange(7) * 5, val, val, names, names)
    assert best_check(full) == 3
    val[3, 0] = np.nan
    assert best_check(full) in (2, 4)


def test_histories_and_settings_are_checked():
    names = ("a", "b")
    zeros = np.zeros((3, 2))
    with pytest.raises(ValueError, match="val is"):
        DivergenceHistory(np.arange(3), np.zeros((3, 3)), zeros, names, names)
    with pytest.raises(ValueError, match="no validation clip"):
        DivergenceHistory(np.arange(3), np.zeros((3, 0)), zeros, (), names)
    with pytest.raises(ValueError, match="step 0"):
        DivergenceHistory(np.arange(1, 4), zeros, zeros, names, names)
    with pytest.raises(ValueError, match="step 0"):
        DivergenceHistory(np.arange(3), zeros + 1.0, zeros, names, names)
    with pytest.raises(ValueError, match="increase"):
        DivergenceHistory(np.array([0, 2, 2]), zeros, zeros, names, names)
    for wrong in (
        {"alpha": 0.7},
        {"min_excess": 0.0},
        {"confirm": -1.0},
        {"min_checks": 3},
        {"plateau_share": 1.0},
        {"plateau_checks": 8},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DivergenceSettings(**wrong)
