"""The peak of training is not that of encoding before it, nor of samples between steps."""

import pytest
import torch

from vidlit.training.peak_memory import begin_phase, not_counted, peak_memory

GPU = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """What torch would say of a GPU: bytes that are allocated, and the most since the last reset."""
    held = {"now": 0, "peak": 0, "emptied": 0}

    def allocate(number):
        held["now"] += number
        held["peak"] = max(held["peak"], held["now"])

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: held.update(peak=held["now"]))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.update(emptied=held["emptied"] + 1))
    yield allocate
    begin_phase(GPU)


def test_each_phase_has_a_peak_of_its_own(card):
    card(1000), card(-1000)  # encoding
    assert peak_memory(GPU) == 1000
    begin_phase(GPU)
    card(100)
    assert peak_memory(GPU) == 100


def fail(card):
    card(900), card(-900)
    raise RuntimeError


def test_samples_between_steps_do_not_count(card):
    begin_phase(GPU)
    card(300), card(-200)
    with not_counted(GPU):
        card(900), card(-900)
    assert peak_memory(GPU) == 300
    with pytest.raises(RuntimeError), not_counted(GPU):
        fail(card)
    assert peak_memory(GPU) == 300
    card(400), card(-400)
    assert peak_memory(GPU) == 500


def test_a_process_on_a_cpu_has_one_peak():
    cpu = torch.device("cpu")
    before = peak_memory(cpu)
    begin_phase(cpu)
    with not_counted(cpu):
        pass
    assert peak_memory(cpu) >= before
