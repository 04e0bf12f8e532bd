import numpy as np
import pytest

from vidlit.stopping.drift import LIMIT, judge_drift, relative_drift


def test_drift_is_a_share_of_the_base_s_square():
    base = np.array([[3.0, 4.0], [0.0, 5.0]])
    assert relative_drift(base, base) == 0
    assert relative_drift(base * 1.1, base) == pytest.approx(0.01)
    assert relative_drift(base + np.array([[0, 0], [5, 0]]), base) == pytest.approx(25 / 50)
    with pytest.raises(ValueError, match="shape"):
        relative_drift(base[0], base)
    with pytest.raises(ValueError, match="nothing but zeros"):
        relative_drift(base, 0 * base)


def test_the_last_check_is_judged():
    calm = judge_drift([2 * LIMIT, 0.5 * LIMIT])
    assert calm.action == "continue"
    assert calm.evidence == {"drift": 0.5 * LIMIT, "limit": LIMIT, "checks": 2}
    far = judge_drift([0.001, 0.25], limit=0.2)
    assert (far.action, far.evidence["case"]) == ("stop", "forgetting")
    assert "moved by 25 % from the base model's, more than 20 %: the model forgets" in far.reason


def test_what_is_no_number_is_left_to_the_losses():
    verdict = judge_drift([0.1, float("nan")])
    assert verdict.action == "continue"
    assert verdict.evidence == {"case": "not finite"}


@pytest.mark.parametrize(("drifts", "limit"), [([], 0.1), ([0.1], 0.0)])
def test_what_cannot_be_judged(drifts, limit):
    with pytest.raises(ValueError, match=r"no check|positive"):
        judge_drift(drifts, limit)
