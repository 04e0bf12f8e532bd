import json

import pytest

from vidlit.stopping.lost_diversity import judge_diversity


def judge(*values, bound=8.0):
    return judge_diversity([100 * k for k in range(len(values))], values, bound)


def test_samples_that_stay_different_go_on():
    verdict = judge(10, 9.5, 11)
    assert (verdict.signal, verdict.action) == ("diversity", "continue")
    assert "stay diverse" in verdict.reason
    json.dumps(verdict.evidence, allow_nan=False)


def test_one_alarm_warns_two_in_a_row_stop():
    assert judge(10, 6.9).action == "warn"
    assert judge(10, 6.9, 6.9).action == "stop"
    assert judge(10, 6.9, 9.0, 6.9).action == "warn"
    assert judge(10, 6.9, 6.9, 9.0).action == "continue"


def test_both_bounds_must_be_broken():
    assert judge(10, 7.1, 7.1).action == "continue"  # 71 % of the base model's
    assert judge(20, 9, 9).action == "continue"  # real clips are no more diverse
    assert judge(20, 7.9, 7.9).action == "stop"


def test_the_base_model_alone_is_no_alarm():
    verdict = judge(2.0)
    assert verdict.action == "continue"
    assert verdict.evidence["ratio"] == 1


def test_evidence_and_reason_hold_the_numbers():
    verdict = judge(10, 5, 4)
    assert verdict.evidence == {
        "step": 200,
        "rke": 4.0,
        "base_rke": 10.0,
        "ratio": 0.4,
        "real_bound": 8.0,
        "alarms": 2,
    }
    for part in ("step 200", "4 different", "40 %", "the 10 at step 0;", "8 or more"):
        assert part in verdict.reason


@pytest.mark.parametrize(("steps", "values"), [([], []), ([0, 1], [3.0])])
def test_every_audit_has_a_value(steps, values):
    with pytest.raises(ValueError, match="audits"):
        judge_diversity(steps, values, 8.0)
