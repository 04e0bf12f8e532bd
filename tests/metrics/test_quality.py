import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from vidlit.metrics.quality import Measured, quality


def random(rows, shift=0.0, seed=0):
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)) + shift


def test_distances_grow_with_what_differs_and_repeat():
    real = random(64)
    near, far = (quality(["fid", "kid", "mifid"], random(48, shift, seed=1), real) for shift in (0.0, 2.0))
    for name in ("fid", "kid", "mifid"):
        assert far[name] > near[name], name
    assert quality(["kid"], random(48, 2.0, seed=1), real)["kid"] == far["kid"]
    # Between normal distributions of the same covariance: the squared distance of the means.
    assert far["fid"] - near["fid"] == pytest.approx(8 * 2.0**2, rel=0.2)


def test_copies_look_perfect_to_fid_and_not_to_mifid():
    real = random(64)
    copies, fresh = real[:48] + 1e-4 * random(48, seed=2), random(48, seed=3)
    found = {name: [quality([name], made, real)[name] for made in (copies, fresh)] for name in ("fid", "mifid")}
    assert found["fid"][0] < found["fid"][1]
    assert found["mifid"][0] / found["fid"][0] > 10 * found["mifid"][1] / found["fid"][1]


def test_as_torchmetrics_with_all_at_once():
    metric = FrechetInceptionDistance(feature=Measured(8))
    real, generated = random(32), random(16, 1.0, seed=1)
    for rows in real.split(5):
        metric.update(rows, real=True)
    metric.update(generated, real=False)
    assert quality(["fid"], generated, real)["fid"] == pytest.approx(float(metric.compute()), rel=1e-4)


def test_one_clip_has_no_distribution():
    assert quality(["fid", "kid"], random(1), random(9)) == {}
