import pytest

from vidlit.stopping.schedule import MIN_CHECKS, audit_evaluations, audit_interval, check_schedule


@pytest.mark.parametrize("max_steps", [2000, 10_000, 200_000])
@pytest.mark.parametrize("batch_size", [4, 8, 64])
@pytest.mark.parametrize("num_clips", [1, 8, 20, 300])
def test_long_runs_keep_checks_within_their_share(max_steps, batch_size, num_clips):
    chosen = check_schedule(max_steps, batch_size, num_clips, 4)
    assert chosen.share <= 0.05 * 1.01  # whole clips and steps
    # 2NK / (3BM), as stated
    assert chosen.share == pytest.approx(2 * chosen.num_clips * 4 / (3 * batch_size * chosen.interval))
    assert max_steps // chosen.interval >= MIN_CHECKS
    assert chosen.num_clips <= num_clips
    if chosen.num_clips < num_clips:  # no more clips left out than need be
        more = 2 * (chosen.num_clips + 1) * 4 / (3 * batch_size * (max_steps // MIN_CHECKS))
        assert more > 0.05


def test_all_clips_are_scored_where_that_can_be_afforded():
    assert check_schedule(20_000, 8, 20, 4).num_clips == 20
    assert check_schedule(20_000, 8, 20, 4).interval == 134  # ceil(2 * 20 * 4 / (3 * 8 * 0.05))


@pytest.mark.parametrize("max_steps", [16, 100, 500, 1999])
def test_short_runs_have_their_checks_first(max_steps):
    chosen = check_schedule(max_steps, 1, 40, 4)
    assert max_steps // chosen.interval >= MIN_CHECKS
    assert chosen.num_clips == 8
    assert chosen.share > 0.05


def test_the_shortest_and_the_endless_run():
    assert check_schedule(5, 1, 2, 4).interval == 1
    endless = check_schedule(-1, 2, 30, 4)
    assert endless.num_clips == 30
    assert endless.share <= 0.05


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
