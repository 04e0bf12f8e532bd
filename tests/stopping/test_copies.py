import json
import math

import numpy as np
import pytest

from vidlit.stopping.copies import copy_limit, judge_copies, min_copies

N = 16
BASE = [0.95] * N


def judge(*rows, limit=0.6):
    steps = [100 * k for k in range(len(rows))]
    return judge_copies(
        steps, rows, limit, [f"audit_{k:02d}.mp4" for k in range(N)], [f"film_{k}@0-1" for k in range(N)]
    )


def with_low(*low):
    return [*low, *BASE[len(low) :]]


def test_limit_is_lower_where_held_out_clips_come_nearer():
    assert copy_limit([0.9, 0.7]) == 0.6
    assert copy_limit([0.9, 0.5]) == 0.5
    assert copy_limit([0.9, math.nan]) == 0.6
    assert copy_limit([]) == 0.6


def test_new_clips_are_no_reason():
    verdict = judge(BASE, BASE)
    assert verdict.signal == "copies"
    assert verdict.action == "continue"
    assert verdict.evidence["copies"] == 0
    assert verdict.reason == "No copies in 16 samples."


def test_one_clip_may_be_chance_two_are_an_alarm_two_alarms_stop():
    assert judge(BASE, with_low(0.5)).action == "continue"
    assert judge(BASE, with_low(0.5, 0.5)).action == "warn"
    assert judge(BASE, with_low(0.5, 0.5), with_low(0.5, 0.5)).action == "stop"


def test_alarms_must_be_in_a_row():
    alarm = with_low(0.5, 0.5)
    assert judge(BASE, alarm, BASE, alarm).action == "warn"
    assert judge(BASE, alarm, BASE, alarm, alarm).action == "stop"
    assert judge(BASE, alarm, alarm, BASE).action == "continue"


def test_a_quarter_of_sure_copies_stops_at_once():
    assert judge(BASE, with_low(0.3, 0.3, 0.3)).action == "warn"
    assert judge(BASE, with_low(0.3, 0.3, 0.3, 0.3)).action == "stop"
    assert judge(BASE, with_low(0.34, 0.34, 0.34, 0.34)).action == "warn"


def test_nothing_counts_below_the_limit_of_real_clips():
    assert judge(BASE, with_low(*[0.3] * 8), limit=0.25).action == "continue"


def test_what_the_base_model_copied_was_not_learned_here():
    base = with_low(0.2, 0.2, 0.2, 0.2)
    assert judge(base).action == "continue"
    verdict = judge(base, with_low(0.1, 0.1, 0.1, 0.1))
    assert verdict.action == "continue"
    assert verdict.evidence["base_copies"] == 4
    assert judge(base, with_low(0.1, 0.1, 0.1, 0.1, 0.5, 0.5)).action == "warn"


def test_evidence_names_the_worst_copy_and_what_it_copies():
    base = with_low(0.2)
    verdict = judge(base, with_low(0.05, 0.5, 0.4))
    assert verdict.evidence["sample"] == "audit_02.mp4"  # the first was like that before
    assert verdict.evidence["nearest_clip"] == "film_2@0-1"
    assert verdict.evidence["ratio"] == 0.4
    assert verdict.evidence["ratio_min"] == 0.05
    assert verdict.evidence["copies"] == 2
    for part in ("2 copies of training clips in 16 samples", "audit_02.mp4", "film_2@0-1", "0.40 of", "step 100"):
        assert part in verdict.reason
    json.dumps(verdict.evidence, allow_nan=False)


def test_clips_without_a_ratio_are_passed_over():
    nan = math.nan
    verdict = judge(BASE, [nan, 0.5, 0.5, *BASE[3:]])
    assert verdict.action == "warn"
    verdict = judge([nan] * N, [nan] * N)
    assert verdict.action == "continue"
    assert "single training recording" in verdict.reason
    json.dumps(verdict.evidence, allow_nan=False)


def test_small_audits_need_two_clips_too():
    def few(row):
        return judge_copies([0, 10], [[0.9] * 4, row], 0.6, list("abcd"), list("wxyz")).action

    assert few([0.1, 0.9, 0.9, 0.9]) == "continue"
    assert few([0.1, 0.1, 0.9, 0.9]) == "stop"


@pytest.mark.parametrize(
    ("steps", "rows", "samples", "nearest"),
    [([], np.zeros((0, 2)), "ab", "cd"), ([0], [[0.5] * 3], "ab", "cd"), ([0], [[0.5] * 2], "ab", "c")],
)
def test_shapes_must_agree(steps, rows, samples, nearest):
    with pytest.raises(ValueError, match="ratios are"):
        judge_copies(steps, rows, 0.6, samples, nearest)


def test_an_alarm_takes_more_copies_where_videos_have_one_clip_each():
    assert min_copies(["a", "b", "c"]) == 3
    assert min_copies(["a", "a", "b", "b"]) == 2
    assert min_copies(["a", "a", "b"]) == 2
    assert min_copies(["a", "a", "b", "c", "d"]) == 3
    names = ["s"] * 8
    ratios = [[1.0] * 8, [0.5, 0.5, *[1.0] * 6], [0.5, 0.5, *[1.0] * 6]]
    assert judge_copies([0, 1, 2], ratios, 0.6, names, names).action == "stop"
    assert judge_copies([0, 1, 2], ratios, 0.6, names, names, alarm=3).action == "continue"
