"""What is reckoned from other steps, against the steps themselves."""

import pytest

from tests.forecast.test_step_memory import wan_of
from vidlit.forecast.card import parse_memory
from vidlit.forecast.memory_forecast import RunSetting, adjusted, training_peak
from vidlit.forecast.remedies import Option, _cast_always, _swap, _swapping_few, resolved
from vidlit.models.adapters import LoRA
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.video.buckets import Bucket

BUCKETS = [Bucket(9, 128, 128)]


def option(folder, num_layers=6, **memory):
    return Option(wan_of(folder, num_layers, **memory), RunSetting(BUCKETS[0], clip_val=1.0, audits=False), BUCKETS)


def lora(folder, **memory):
    module = wan_of(folder, 6)
    small = VideoDiffusionModule(module.base, LoRA(rank=4), memory=Memory(**memory))
    return Option(small, RunSetting(BUCKETS[0], clip_val=1.0, audits=False), BUCKETS)


def peak(run):
    return training_peak(adjusted(run.steps, run.module, run.setting)).total


def agree(run):
    assert run.rules
    assert peak(run) == pytest.approx(peak(run.exact()), rel=0.05)


@pytest.mark.parametrize("recomputed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_weights_that_are_cast_at_every_use(recomputed, tmp_path):
    agree(_cast_always(option(tmp_path, gradient_checkpointing=recomputed, compile=False)))


@pytest.mark.slow
def test_blocks_wait_in_main_memory_only_where_it_does_not_fit(tmp_path):
    run = lora(tmp_path, base_dtype="bfloat16", gradient_checkpointing=True, compile=False)
    every = _swap(run)
    assert every.module.memory.swap_blocks == 6
    assert _swapping_few(run, 1e12).module.memory.swap_blocks == 0
    assert _swapping_few(run, 1.0).module.memory.swap_blocks == 6


@pytest.mark.slow
def test_copies_of_weights_are_given_up_before_time_is(tmp_path):
    run = option(tmp_path, gradient_checkpointing="auto", compile=False)
    assert resolved(run, parse_memory("24GB").memory).module.memory.cast_once == "auto"
    small = resolved(run, 1.0).module.memory
    assert (small.gradient_checkpointing, small.cast_once) == (True, False)


@pytest.mark.slow
def test_decoding_in_tiles_is_chosen_where_it_does_not_fit_whole(tmp_path):
    run = option(tmp_path, tiled_decoding="auto", gradient_checkpointing=False)
    run = Option(run.module, RunSetting(BUCKETS[0]), BUCKETS)
    assert resolved(run, 1e12).module.memory.tiled_decoding is False
    assert resolved(run, 1.0).module.memory.tiled_decoding is True
