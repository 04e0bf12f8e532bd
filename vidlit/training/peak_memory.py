"""The most memory that this process ever had."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> float:
    """Most bytes so far: allocated on a GPU, or resident in this process; those of now where no system keeps a peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
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
