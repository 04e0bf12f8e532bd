import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidlit.stopping.rows import condense, row_length, row_numbers
from vidlit.stopping.schedule import MAX_ROWS, CheckSchedule


def by_hand(steps, values, length):
    """Row 0 = step 0; row i = the mean of the checks in ((i - 1) d, i d]."""
    rows = [values[0]]
    for i in range(1, -(-steps[-1] // length) + 1):
        inside = [value for step, value in zip(steps, values, strict=True) if (i - 1) * length < step <= i * length]
        rows.append(np.mean(inside, axis=0))
    return np.array(rows)


@pytest.mark.parametrize("first", [1, 7])
def test_the_schedule_is_seen_as_sixteen_to_thirty_two_even_rows(first):
    schedule = CheckSchedule(first)
    checks = [0, *schedule.checks(512 * first)]
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, len(checks), 3))
    for now in range(1, len(checks)):
        steps = np.array(checks[: now + 1])
        assert row_length(steps) == schedule.spacing(steps[-1] - 1) == steps[-1] - steps[-2]
        rows = condense(values[:, : now + 1], row_numbers(steps))
        for run in range(2):
            np.testing.assert_allclose(rows[run], by_hand(steps, values[run, : now + 1], row_length(steps)))
        assert rows.shape[1] - 1 == min(now, steps[-1] // row_length(steps))
        assert now < 32 or 16 <= rows.shape[1] - 1 <= MAX_ROWS


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200))
def test_any_steps_give_at_most_thirty_two_rows_and_none_empty(gaps):
    steps = np.concatenate([[0], np.cumsum(gaps)])
    numbers = row_numbers(steps)
    assert numbers[-1] <= MAX_ROWS
    assert np.array_equal(np.unique(numbers), np.arange(numbers[-1] + 1))
    values = np.arange(len(steps), dtype=float)[:, None]
    np.testing.assert_allclose(condense(values, numbers), by_hand(steps, values, row_length(steps)))


def test_step_0_alone():
    assert row_numbers(np.array([0])).tolist() == [0]


def test_a_row_without_a_usable_check_is_left_out():
    rows = condense(np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 1, 1, 3]))
    assert rows.tolist() == [[0.0], [3.0], [6.0]]
