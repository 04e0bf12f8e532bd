"""The most memory that this process had while it trained."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vidlit.models.device_memory import free_memory

_before: dict[torch.device, float] = {}
"""Peaks of a phase up to when it was interrupted."""


def begin_phase(device: torch.device) -> None:
    """Give back what the phase before has left on a GPU, and count its peak from now on."""
    free_memory(device)
    _before.pop(device, None)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def not_counted(device: torch.device) -> Iterator[None]:
    """What a GPU holds while this is open is no part of the peak: samples that are drawn between steps."""
    if device.type != "cuda":
        yield
        return
    before = peak_memory(device)
    free_memory(device)  # a step's activations and a decoder's need blocks of other sizes
    try:
        yield
    finally:
        begin_phase(device)
        _before[device] = before


def peak_memory(device: torch.device) -> float:
    """Most bytes: allocated on a GPU in this phase, or resident in this process so far; those of now without a record.

    Args:
        device: a CPU's process has one peak for all its life.
    """
    if device.type == "cuda":
        return max(_before.get(device, 0.0), torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.is_file() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())) is not None:
        return 1024.0 * int(peak[1])  # ru_maxrss begins at what the process had that started this one
    try:
        import resource
    except ImportError:  # Windows keeps the peak elsewhere
        import psutil

        memory = psutil.Process().memory_info()
        return float(getattr(memory, "peak_wset", memory.rss))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(kilobytes) if sys.platform == "darwin" else 1024.0 * kilobytes
