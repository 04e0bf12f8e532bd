import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidlit.stopping.schedule import (
    FIRST_SHARE,
    CheckSchedule,
    audit_evaluations,
    audit_interval,
    check_schedule,
    scored_train_clips,
    scored_val_clips,
)


def test_thirty_two_checks_then_sixteen_for_every_doubling():
    assert CheckSchedule(1).checks(32) == list(range(1, 33))
    schedule = CheckSchedule(7)
    assert schedule.checks(32 * 7) == list(range(7, 225, 7))
    assert schedule.checks(64 * 7)[32:] == list(range(238, 449, 14))
    assert [len(schedule.checks(7 * n)) for n in (32, 64, 128, 256)] == [32, 48, 64, 80]
    assert [schedule.spacing(step) for step in (0, 223, 224, 447, 448, 896)] == [7, 7, 14, 14, 28, 56]
    assert CheckSchedule(7, doubles=False).checks(1001) == list(range(7, 1002, 7))


def test_the_last_step_is_checked():
    assert CheckSchedule(7).checks(20) == [7, 14, 20]
    assert CheckSchedule(7).checks(3) == [3]


@given(st.integers(1, 300), st.integers(1, 50_000))
def test_every_check_is_a_multiple_of_the_spacing_before_it(first, until):
    """So that Lightning, which asks for a remainder, finds it."""
    schedule = CheckSchedule(first)
    checks = set(schedule.checks(until))
    assert checks == {step for step in range(1, until) if step % schedule.spacing(step - 1) == 0} | {until}


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("evaluations", [2, 24, 40, 300])
def test_checks_begin_at_their_share_and_fall_below_it(batch_size, evaluations):
    endless = check_schedule(batch_size, evaluations)
    assert endless.share(evaluations, batch_size, -1) <= FIRST_SHARE + 1e-9
    if endless.first > 1:
        assert evaluations / (3 * batch_size * (endless.first - 1)) > FIRST_SHARE
    shares = [endless.share(evaluations, batch_size, 32 * endless.first * n) for n in (1, 2, 4, 8)]
    assert shares[0] <= FIRST_SHARE + 1e-9
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.5 * shares[0]


def test_the_first_spacing_follows_from_the_cost_of_a_check():
    # c = 24 / 3 = 8 steps; 8 / 0.3 = 26.7
    assert [check_schedule(batch, 24).first for batch in (1, 4, 64)] == [27, 7, 1]


def test_clips_are_scored_of_as_many_recordings_as_there_are():
    assert [scored_val_clips(groups) for groups in (1, 6, 12, 16, 50)] == [4, 6, 12, 16, 16]
    assert [scored_train_clips(clips) for clips in (1, 8, 16, 40)] == [4, 4, 4, 10]


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("steps", [-1, 1500, 10_000])
def test_audits_keep_to_their_share(batch, steps):
    """Step 0's and all later ones together, whatever is planned, but where two would cost more."""
    audit, step = audit_evaluations(16, 6), 3 * batch
    interval = audit_interval(audit, step, steps, 0.1)
    ends = 20 * interval
    assert (ends // interval) * audit <= 0.1 * step * ends + audit
    assert audit_interval(audit, step, 10 * steps, 0.1) == interval  # planning ten times as many changes nothing


def test_interval_leaves_two_audits_even_in_the_shortest_run():
    assert audit_interval(128.0, 3.0, 100, 0.1) == 50
    assert audit_interval(128.0, 3.0, 1, 0.1) == 1
    assert audit_interval(1e-9, 20.0, 100, 0.1) == 1


def test_an_audit_costs_its_denoising_and_decoding():
    assert audit_evaluations(16, 6) == 16 * 8
