import math

import pytest

from vidlit.stopping.lost_diversity import judge_diversity, log_variety

STEPS = [0, 10, 20, 30]


def actions(*values):
    return [judge_diversity(STEPS[: k + 1], values[: k + 1]).action for k in range(len(values))]


def test_zero_is_as_varied_as_the_clips():
    assert log_variety(0.2, 0.2) == 0
    assert log_variety(0.6, 0.2) == pytest.approx(math.log(0.5))
    assert math.isnan(log_variety(math.nan, 0.2))
    assert log_variety(0.5, 1.0) > 0  # clips that are all the same have nothing to lose


def test_two_alarms_in_a_row_stop():
    assert actions(0.0, -0.1, -0.4, -0.5) == ["continue", "continue", "warn", "stop"]
    assert actions(0.0, -0.4, -0.1, -0.5) == ["continue", "warn", "continue", "warn"]


def test_a_base_that_begins_low_and_rises_is_left_alone():
    assert actions(-0.7, -0.6, -0.5, -0.45) == ["continue"] * 4
    assert actions(-0.7, -0.4, -0.5, -0.52) == ["continue"] * 4  # not 0.15 below its own highest
    assert actions(-0.7, -0.4, -0.56, -0.6) == ["continue", "continue", "warn", "stop"]


def test_what_it_says_and_shows():
    verdict = judge_diversity(STEPS, [-0.2, 0.05, -0.4, -0.69])
    assert verdict.evidence == {
        "step": 30,
        "log_ratio": -0.69,
        "highest": 0.05,
        "highest_step": 10,
        "limit": -0.35,
        "alarms": 2,
    }
    assert "variety is -50 %" in verdict.reason
    assert "+5 % at step 10" in verdict.reason
    assert "lower the learning rate" in verdict.reason
    assert "training prompts count, too" in judge_diversity([0], [0.0], on_training_prompts=True).reason


def test_where_nothing_can_be_compared():
    verdict = judge_diversity([0, 10], [math.nan, math.nan])
    assert verdict.action == "continue"
    assert "cannot be measured" in verdict.reason
    assert judge_diversity([0, 10, 20], [0.0, math.nan, -0.5]).action == "warn"


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="for 2 audits"):
        judge_diversity([0, 10], [0.0])
    with pytest.raises(ValueError, match="at least one"):
        judge_diversity([], [])
