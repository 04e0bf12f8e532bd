"""What the shipped configs say of themselves can be read, and leads to the one that fits."""

import pytest
import yaml

from vidlit.commands.cli.configs import packaged_configs
from vidlit.commands.starting.shipped_configs import _PREFERRED, Card, choose, shipped_configs
from vidlit.errors import UserError

EVERY = shipped_configs()


def test_all_configs_for_clips_of_ones_own_are_there():
    loaded = {name: yaml.safe_load(path.read_text()) for name, path in packaged_configs().items()}
    own = {name for name, values in loaded.items() if values.get("data", {}).get("source") == "my_clips"}
    assert own == {config.name for config in EVERY.values()}
    assert set(_PREFERRED) < own


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_what_a_head_says_is_read(config):
    assert 4 < config.train_gigabytes() <= 60
    assert config.encode_gigabytes or not config.trains_adapter
    assert f"{config.train_gigabytes()} GB" in config.memory()
    assert 5 < len(config.title) < 40
    frames, pixels = config.multiples
    for bucket in config.buckets:
        bucket.check(frames, pixels)


def test_memory_in_int8_and_of_another_base():
    for family in ("ltx2", "hunyuan_video15"):
        assert EVERY[family].int8_gigabytes < 0.8 * EVERY[family].train_gigabytes()
    assert EVERY["mochi"].int8_gigabytes is None
    assert EVERY["cogvideox"].train_gigabytes("zai-org/CogVideoX-2b") == 21
    assert EVERY["wan2_1_1_3b"].train_gigabytes("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers") == 66


@pytest.mark.parametrize(
    ("gigabytes", "words", "chosen"),
    [
        (85.0, {}, "ltx2"),
        (51.5, {}, "ltx2"),
        (42.4, {}, "ltx2"),  # in int8
        (34.1, {}, "ltx2"),  # in int8
        (25.7, {}, "wan2_2_ti2v_5b"),
        (17.1, {}, "wan2_1_1_3b"),
        (12.9, {}, "ltx_video"),
        (8.6, {}, "ltx_video"),  # may not fit, and says so
        (85.0, {"family": "wan"}, "wan2_2_a14b"),
        (25.7, {"family": "wan"}, "wan2_2_ti2v_5b"),
        (25.7, {"family": "wan2_1_14b_fsdp"}, "wan2_1_14b_fsdp"),
        (25.7, {"base": "zai-org/CogVideoX-2b"}, "cogvideox"),
        (85.0, {"base": "Lightricks/LTX-2"}, "ltx2"),
        (85.0, {"base": "Wan-AI/Wan2.1-T2V-14B-Diffusers"}, "wan2_1_14b_fsdp"),
        (85.0, {"base": "someone/mochi", "family": "mochi"}, "mochi"),
    ],
)
def test_what_fits_is_chosen(gigabytes, words, chosen):
    assert choose(Card("a card", gigabytes, 1), **words).family == chosen


def test_a_config_for_eight_gpus_fits_eight():
    fsdp = EVERY["wan2_1_14b_fsdp"]
    assert not fsdp.fits(Card("a card", 85.0, 1))
    assert fsdp.fits(Card("a card", 85.0, 8))


def test_without_a_gpu_the_smallest():
    assert choose(Card()).family == "ltx_video"
    assert choose(Card(), family="wan").family == "wan2_1_1_3b"
    assert str(Card()) == "no CUDA GPU"
    assert str(Card("a card", 85.1, 4)) == "4 x a card, 85 GB"


def test_a_base_nobody_knows_needs_its_family():
    with pytest.raises(UserError, match="--family ltx_video or"):
        choose(Card(), base="someone/else")
