import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidlit.stopping.exposure import (
    adjusted_exposure,
    band,
    forecast,
    judge_exposure,
    video_exposures,
)


@pytest.mark.parametrize(
    ("exposures", "name"),
    [
        (0, "conservative"),
        (10, "conservative"),
        (10.01, "moderate"),
        (50, "moderate"),
        (50.01, "high"),
        (99.9, "high"),
        (100, "risky"),
        (1000, "risky"),
    ],
)
def test_bands(exposures, name):
    assert band(exposures) == name


@pytest.mark.parametrize(
    ("videos", "exposures", "name"),
    [(100, 100, "risky"), (500, 20, "moderate"), (1000, 10, "conservative"), (5000, 2, "conservative")],
)
def test_ten_thousand_steps_at_batch_size_one(videos, exposures, name):
    found = forecast(10_000, batch_size=1, num_videos=videos, learning_rates=1e-4)
    assert (found.exposures, found.band) == (exposures, name)
    assert f"{exposures} times" in found.reason


def test_forecast_says_what_would_keep_it_moderate():
    found = forecast(10_000, batch_size=1, num_videos=100, learning_rates=1e-4)
    assert "At most 5,000 steps, or at least 200 videos" in found.reason
    assert band(5_000 / 100) == "moderate"
    assert band(10_000 / 200) == "moderate"
    assert found.steps_to_band == {"moderate": 1001, "high": 5001, "risky": 10_000}


@given(st.integers(1, 64), st.integers(1, 5000))
def test_forecast_bands_begin_where_the_band_changes(batch_size, videos):
    order = ["conservative", "moderate", "high", "risky"]
    for name, step in forecast(10, batch_size, videos, 1e-4).steps_to_band.items():
        assert order.index(band(step * batch_size / videos)) >= order.index(name)
        assert order.index(band((step - 1) * batch_size / videos)) < order.index(name)


def test_forecast_refuses_nothing():
    with pytest.raises(ValueError, match="num_videos must be at least 1"):
        forecast(10, 1, 0, 1e-4)


def test_adjusted_exposure_is_raw_exposure_at_the_reference_run():
    adjusted = adjusted_exposure(np.full(1000, 1e-4), batch_size=1, num_videos=100)
    assert adjusted[-1] == pytest.approx(10.0)


def test_adjusted_exposure_follows_the_schedule():
    warmup = np.concatenate([np.linspace(0.5e-4, 1e-4, 500), np.full(500, 1e-4)])
    steady = adjusted_exposure(np.full(1000, 1e-4), 1, 100)
    warmed = adjusted_exposure(warmup, 1, 100)
    assert warmed[499] == pytest.approx(0.75 * steady[499])
    assert warmed[-1] - warmed[499] == pytest.approx(5.0)


def test_adjusted_exposure_grows_with_the_rate_and_the_set_and_falls_with_the_batch():
    def end(rate=1e-4, batch=1, videos=100):  # at ten raw exposures
        return adjusted_exposure(np.full(10 * videos // batch, rate), batch, videos)[-1]

    assert end(rate=2e-4) == pytest.approx(20.0)
    assert end(batch=4) == pytest.approx(5.0)
    assert end(videos=400) == pytest.approx(10 * 4**0.45)
    assert end(rate=1.0) == pytest.approx(40.0)  # no factor is trusted beyond four
    assert end(rate=1e-9) == pytest.approx(2.5)


def test_exposures_of_a_videos_clips_add_up():
    assert video_exposures([3, 2, 5], ["a", "b", "a"]) == {"a": 8, "b": 2}


def test_risky_warns_and_the_cap_stops():
    assert judge_exposure([40, 60], peak_learning_rate=1e-4).action == "continue"
    risky = judge_exposure([100, 110], peak_learning_rate=1e-4, adjusted=80.0)
    assert risky.action == "warn"
    assert "105 times on average (at most 110): risky" in risky.reason
    assert risky.evidence == {"mean": 105.0, "min": 100.0, "max": 110.0, "band": "risky", "videos": 2, "adjusted": 80.0}
    json.dumps(risky.evidence)
    capped = judge_exposure([30, 30], peak_learning_rate=1e-4, hard_cap=30)
    assert (capped.action, capped.evidence["hard_cap"]) == ("stop", 30.0)
    assert "cap of 30" in capped.reason
    assert judge_exposure([29, 30], peak_learning_rate=1e-4, hard_cap=30).action == "continue"


@pytest.mark.parametrize(
    ("exposures", "rate", "said"),
    [(20, 4e-5, True), (30, 1e-5, True), (31, 4e-5, False), (10, 4e-5, False), (20, 1e-4, False)],
)
def test_low_learning_rates_go_further(exposures, rate, said):
    verdict = judge_exposure([exposures], peak_learning_rate=rate)
    assert ("relatively safe" in verdict.reason) is said
    assert ("relatively safe" in forecast(exposures, 1, 1, rate).reason) is said


def test_bad_arguments():
    with pytest.raises(ValueError, match="no videos"):
        judge_exposure([], peak_learning_rate=1e-4)
    with pytest.raises(ValueError, match="hard_cap"):
        judge_exposure([1], peak_learning_rate=1e-4, hard_cap=0)
