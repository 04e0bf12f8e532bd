from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pages import block, module_of
from vidlit import plugins
from vidlit.commands.cli.parse_only import ParseOnly
from vidlit.errors import UserError
from vidlit.video.buckets import ASPECT_RATIOS, Bucket, BucketBudget, nearest_bucket

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
FACTORS = [(8, 32), (4, 16), (6, 16)]  # LTX; Wan and HunyuanVideo; Mochi


def test_text_form_round_trips():
    assert Bucket.parse("17x48x80") == Bucket(17, 48, 80)
    assert str(Bucket.parse(" 17 X 48 x 80 ")) == "17x48x80"


@pytest.mark.parametrize("text", ["", "17x48", "17x48x80x3", "axbxc", "0x48x80", "-1x48x80", "17x48x8.5", "17x48x²"])
def test_other_text_is_refused(text):
    with pytest.raises(UserError, match="17x48x80"):
        Bucket.parse(text)


def test_tokens():
    assert Bucket(17, 64, 96).tokens(temporal=8, spatial=32) == 3 * 2 * 3
    assert Bucket(1, 64, 96).tokens(temporal=4, spatial=16) == 1 * 4 * 6


def test_check_names_the_nearest_valid_bucket():
    Bucket(17, 64, 96).check(8, 32)
    with pytest.raises(UserError, match=r"16x64x100.*nearest that fits is 17x64x96"):
        Bucket(16, 64, 100).check(8, 32)
    with pytest.raises(UserError, match="1x32x32"):
        Bucket(2, 3, 4).check(8, 32)


def test_nearest_takes_shape_first_then_frames_then_area():
    wide, long, large, square = Bucket(9, 48, 80), Bucket(17, 48, 80), Bucket(17, 96, 160), Bucket(17, 64, 64)
    assert nearest_bucket(49, 480, 800, [wide, long, large, square]) == large
    assert nearest_bucket(49, 90, 150, [wide, long, large, square]) == long
    assert nearest_bucket(9, 480, 800, [wide, long, large, square]) == wide
    assert nearest_bucket(49, 480, 500, [wide, long, large, square]) == square


def test_nearest_never_enlarges_or_stretches_unless_told():
    buckets = [Bucket(17, 96, 160)]
    assert nearest_bucket(17, 95, 160, buckets) is None
    assert nearest_bucket(17, 95, 160, buckets, upscale=True) == buckets[0]
    assert nearest_bucket(16, 96, 160, buckets, upscale=True) is None


def test_a_moving_picture_stays_one():
    still, moving = Bucket(1, 64, 64), Bucket(9, 48, 80)
    assert nearest_bucket(20, 500, 500, [still, moving]) == moving
    assert nearest_bucket(1, 500, 500, [still, moving]) == still
    assert nearest_bucket(5, 500, 500, [still, moving]) == still


@given(
    num_frames=st.integers(1, 200),
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    buckets=st.lists(st.builds(Bucket, st.integers(1, 200), st.integers(1, 3000), st.integers(1, 3000))),
)
def test_nearest_fits_and_ignores_order(num_frames, height, width, buckets):
    bucket = nearest_bucket(num_frames, height, width, buckets)
    assert nearest_bucket(num_frames, height, width, buckets[::-1]) == bucket
    fits = [b for b in buckets if b.num_frames <= num_frames and b.height <= height and b.width <= width]
    assert (bucket in fits) if fits else (bucket is None)


@given(
    factors=st.sampled_from(FACTORS),
    steps=st.lists(st.integers(0, 15), min_size=1, max_size=3),
    max_tokens=st.integers(200, 50_000),
    max_pixels=st.none() | st.integers(32 * 32, 1920 * 1080),
)
def test_derived_buckets_are_valid_and_within_budget(factors, steps, max_tokens, max_pixels):
    temporal, spatial = factors
    budget = BucketBudget([temporal * k + 1 for k in steps], max_tokens, max_pixels)
    buckets = budget.buckets(temporal, spatial)
    assert buckets == sorted(set(buckets))
    for bucket in buckets:
        bucket.check(temporal, spatial)
        assert bucket.tokens(temporal, spatial) <= max_tokens
        assert max_pixels is None or bucket.height * bucket.width <= max_pixels


def test_derived_buckets_have_the_shapes_asked_for():
    buckets = BucketBudget([49], max_pixels=480 * 832, aspect_ratios=[16 / 9, 1.0]).buckets(4, 16)
    shapes = sorted(bucket.width / bucket.height for bucket in buckets)
    assert shapes == pytest.approx([1.0, 16 / 9], rel=0.05)
    assert all(bucket.height * bucket.width > 0.9 * 480 * 832 for bucket in buckets)
    assert len(BucketBudget([9, 17], max_tokens=4000).buckets(8, 32)) == 2 * len(ASPECT_RATIOS)


def test_derive_needs_a_budget_that_is_enough():
    with pytest.raises(UserError, match="max_tokens"):
        BucketBudget([17]).buckets(8, 32)
    with pytest.raises(UserError, match="raise it or shorten"):
        BucketBudget([17], max_tokens=2).buckets(8, 32)
    with pytest.raises(UserError, match="nearest that fits is 17x32x32"):
        BucketBudget([18], max_tokens=200).buckets(8, 32)


def test_the_page_adds_a_policy_that_a_yaml_names(tmp_path, monkeypatch):
    (tmp_path / "squares.yaml").write_text(block("extending/bucket_policy.md", "squares.yaml"))
    monkeypatch.setitem(plugins._active, "squares.py", "squares")  # as --plugin does
    with module_of("extending/bucket_policy.md", "squares.py", tmp_path) as module:
        words = ["fit", "--config", str(QUICKSTART), "--config", str(tmp_path / "squares.yaml")]
        named = ParseOnly(words).config.fit.data.buckets
        assert named.class_path == "squares.Squares"
        policy = module.Squares(**named.init_args)
        assert policy.buckets(4, 16) == [Bucket(9, 48, 48), Bucket(9, 64, 64), Bucket(17, 48, 48), Bucket(17, 64, 64)]
        assert policy.buckets(8, 32) == [Bucket(9, 64, 64), Bucket(17, 64, 64)]


@pytest.mark.parametrize(
    "spelling",
    [
        "{num_frames: [9], max_tokens: 80}",
        "{class_path: BucketBudget, init_args: {num_frames: [9], max_tokens: 80}}",
        "{class_path: vidlit.video.buckets.BucketBudget, init_args: {num_frames: [9], max_tokens: 80}}",
        "{class_path: vidlit.data.datamodule.BucketBudget, init_args: {num_frames: [9], max_tokens: 80}}",
    ],
)
def test_a_budget_is_named_in_all_the_ways_it_was(spelling):
    named = ParseOnly(["fit", "--config", str(QUICKSTART), f"--data.buckets={spelling}"]).config.fit.data.buckets
    assert BucketBudget(**named.init_args) == BucketBudget([9], max_tokens=80)
