import numpy as np
import pytest

from vidlit.stopping import curves


@pytest.mark.parametrize(
    ("freedom", "t", "tail"),  # scipy.stats.t.sf
    [
        (1, 1.0, 0.25),
        (1, -3.0, 0.8975836176504333),
        (2, 2.0, 0.09175170953613698),
        (3, 0.5, 0.32572393154212174),
        (5, 2.015048372669157, 0.05),
        (11, 1.795884818704043, 0.05),
        (30, 1.6972608943617378, 0.05),
    ],
)
def test_student_tail(freedom, t, tail):
    assert curves.student_tail(np.array(t), freedom) == pytest.approx(tail, abs=1e-6)


def test_student_tail_against_simulated_t():
    rng = np.random.default_rng(0)
    for freedom in (1, 2, 5, 8):
        draws = rng.standard_t(freedom, 200_000)
        for t in (-1.0, 0.3, 2.0):
            assert curves.student_tail(np.array(t), freedom) == pytest.approx((draws > t).mean(), abs=0.005)


def test_p_greater_has_its_level_under_the_null():
    values = np.random.default_rng(1).standard_normal((20_000, 6))
    assert (curves.p_greater(values) < 0.05).mean() == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize("trend", [0.0, 0.5, -2.0])
def test_jitter_does_not_see_the_trend(trend):
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((300, 120))
    steps = np.arange(120)
    found = curves.jitter(noise + trend * steps + 0.03 * trend * steps**2)  # nor a bend
    assert np.median(found) == pytest.approx(1.25, abs=0.25)
    assert np.quantile(found, 0.05) > 0.75


def test_jitter_is_not_missed_where_neighbours_move_together():
    rng = np.random.default_rng(3)
    white = rng.standard_normal((200, 240))
    walk = white.copy()
    for j in range(1, 240):
        walk[:, j] = 0.5 * walk[:, j - 1] + np.sqrt(0.75) * white[:, j]
    found = curves.jitter(walk)
    assert np.median(found) == pytest.approx(1.0, abs=0.15)
    near = 1.4826 * np.median(np.abs(np.diff(walk, n=3)), axis=1) / np.sqrt(20.0)
    assert np.median(near) < 0.7  # what neighbours alone say


def test_jitter_of_a_noise_free_curve_has_a_floor():
    assert curves.jitter(np.zeros(9)) == pytest.approx(1e-6)


def test_lowest_average_against_a_loop():
    curve = np.random.default_rng(4).standard_normal((50, 30))
    for width in (1, 3, 11):
        lowest, end = curves.lowest_average(curve, width)
        for run in range(50):
            averages = [curve[run, j - width + 1 : j + 1].mean() for j in range(width - 1, 30)]
            assert lowest[run] == pytest.approx(min(averages))
            assert end[run] == int(np.argmin(averages)) + width - 1


def test_window_mean_against_a_loop():
    values = np.random.default_rng(5).standard_normal((4, 20, 3))
    first, last = np.array([0, 3, 5, 19]), np.array([2, 3, 19, 19])
    found = curves.window_mean(values, first, last)
    for run in range(4):
        np.testing.assert_allclose(found[run], values[run, first[run] : last[run] + 1].mean(axis=0))


def test_by_video_counts_each_video_once():
    clips = np.array([[1.0, 3.0, 10.0], [0.0, 2.0, 5.0]])
    np.testing.assert_allclose(curves.by_video(clips, ("a", "a", "b")), [[2.0, 10.0], [1.0, 5.0]])


def test_scores_leave_out_what_one_video_does_at_one_check():
    rng = np.random.default_rng(3)
    level = rng.uniform(-2.0, -1.0, 10)
    clips = level + 0.01 * rng.standard_normal((40, 10))
    clips[0] = 0.0
    quiet = curves.without_jumps(clips.mean(axis=1), clips)
    clips[20, 4] -= 5.0  # one video jumps
    clips[30] -= 0.1  # all of them fall
    scores = curves.without_jumps(clips.mean(axis=1), clips)
    assert clips.mean(axis=1).argmin() == 20
    assert scores.argmin() == 30
    assert scores[20] == pytest.approx(quiet[20], abs=0.01)
    assert scores[30] == pytest.approx(clips[30].mean(), abs=0.01)


def test_scores_do_not_change_with_later_checks():
    clips = np.random.default_rng(4).standard_normal((3, 30, 12)).cumsum(axis=1)
    scores = curves.without_jumps(clips.mean(axis=2), clips)
    for check in (1, 5, 17, 30):
        part = clips[:, :check]
        np.testing.assert_allclose(curves.without_jumps(part.mean(axis=2), part), scores[:, :check])


def test_scores_of_few_videos_are_the_curve():
    clips = np.random.default_rng(5).standard_normal((30, 4))
    curve = clips.mean(axis=1)
    np.testing.assert_array_equal(curves.without_jumps(curve, clips), curve)
