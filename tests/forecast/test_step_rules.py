"""What is reckoned from other steps, against the steps themselves."""

from dataclasses import replace

import pytest

from tests.forecast.test_step_memory import wan_of
from vidlit.forecast import memory_forecast
from vidlit.forecast.card import parse_memory
from vidlit.forecast.memory_forecast import AUDITS, CHECKS, CLIPS, TRAINING, RunSetting, adjusted, training_peak
from vidlit.forecast.remedies import (
    Option,
    _cast_always,
    _small_moments,
    _swapping_few,
    _tiled_decoding,
    _tiled_encoding,
    resolved,
    swap,
)
from vidlit.forecast.step_rules import twice_the_samples
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
def test_moments_in_8_bits(tmp_path):
    pytest.importorskip("torchao.optim")
    run = option(tmp_path, num_layers=12, gradient_checkpointing=True, compile=False)
    run = replace(run, setting=replace(run.setting, bucket=Bucket(5, 32, 32)))  # weights are most of it
    agree(_small_moments(run))
    assert peak(_small_moments(run).exact()) < 0.8 * peak(run)


@pytest.mark.slow
def test_twice_the_samples_are_not_reckoned_too_few(tmp_path):
    run = lora(tmp_path, base_dtype="bfloat16", gradient_checkpointing=True, compile=False)
    twice = replace(run, setting=replace(run.setting, batch_size=2)).by_rule(run, twice_the_samples)
    assert peak(twice.exact()) <= peak(twice) <= 1.1 * peak(twice.exact())


@pytest.mark.slow
def test_where_the_least_does_not_fit_nothing_else_is_run(tmp_path, monkeypatch):
    asked = []
    measure = memory_forecast.step_memory
    monkeypatch.setattr(memory_forecast, "step_memory", lambda *given: asked.append(given) or measure(*given))
    chosen = resolved(lora(tmp_path, base_dtype="bfloat16"), 1.0)
    assert chosen.module.memory.gradient_checkpointing is True
    assert len(asked) == 1


@pytest.mark.slow
def test_what_only_one_phase_takes_less_of_is_tried_where_that_one_takes_most(tmp_path, monkeypatch):
    run = lora(tmp_path, base_dtype="bfloat16", gradient_checkpointing=True)
    run = replace(run, setting=replace(run.setting, audits=True))
    for highest, changes in ((AUDITS, 1), (TRAINING, 0)):
        peaks = dict.fromkeys((CLIPS, TRAINING, CHECKS, AUDITS), 1.0) | {highest: 2.0}
        monkeypatch.setattr(Option, "peaks", lambda run, peaks=peaks: peaks)
        assert len([change for change in (_tiled_decoding(run), _tiled_encoding(run)) if change]) == changes


@pytest.mark.slow
def test_blocks_wait_in_main_memory_only_where_it_does_not_fit(tmp_path):
    run = lora(tmp_path, base_dtype="bfloat16", gradient_checkpointing=True, compile=False)
    every = swap(run)
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
