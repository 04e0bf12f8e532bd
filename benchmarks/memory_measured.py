"""The forecast of a training step beside what a GPU had allocated at most.

    python -m benchmarks.memory_measured     # about 5 CPU seconds a row; no GPU, no weights

Measured by `benchmarks/gpu.py` on an H200 with torch 2.11 in November 2026: one clip, bf16-mixed, fused AdamW, a LoRA
of rank 32 on a base in bfloat16, compiled blocks. Where all blocks were recomputed weights were cast at each use,
where none was, once a step.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.published import write_published
from vidlit.forecast.memory_forecast import RunSetting, adjusted, measured_steps, training_peak
from vidlit.models.adapters import LoRA
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.video.buckets import Bucket

LTX, WAN = "Lightricks/LTX-Video", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
SIZE = {LTX: "121x480x704", WAN: "49x480x832"}


class Measured(NamedTuple):
    """A row: gigabytes (10^9 bytes) that tensors took at most."""

    base: str
    lora: bool
    recomputed: bool
    gigabytes: float


MEASURED = (
    Measured(LTX, False, False, 42.61),
    Measured(LTX, False, True, 31.24),
    Measured(LTX, True, False, 16.29),
    Measured(LTX, True, True, 6.60),
    Measured(WAN, False, False, 74.79),
    Measured(WAN, False, True, 24.64),
    Measured(WAN, True, False, 45.33),
)


def foretold(module: VideoDiffusionModule, setting: RunSetting) -> float:
    """What is forecast of a module's training steps, in gigabytes."""
    return training_peak(adjusted(measured_steps(module, setting), module, setting)).total / 1e9


def off(forecast: float, measured: float) -> str:
    """By how much a forecast is, in words."""
    return f"{100 * (forecast / measured - 1):+.1f} %"


def forecast(row: Measured) -> float:
    """What is forecast for a row, in gigabytes."""
    memory = Memory("bfloat16" if row.lora else "float32", row.recomputed, compile=True, cast_once=not row.recomputed)
    optimizer = partial(torch.optim.AdamW, lr=1e-4, fused=True)
    with tempfile.TemporaryDirectory() as folder:
        base = write_published(row.base, Path(folder))
        adapter = LoRA(rank=32, alpha=32) if row.lora else None
        module = VideoDiffusionModule(str(base), adapter, optimizer=optimizer, memory=memory)
        return foretold(module, RunSetting(Bucket.parse(SIZE[row.base]), clip_val=1.0))


def main() -> None:
    """Print the table."""
    print("| base, clip | trains | recomputed | forecast GB | measured GB | difference |\n|---|---|---|---|---|---|")
    for row in MEASURED:
        found = forecast(row)
        how = "a LoRA" if row.lora else "all weights", "all blocks" if row.recomputed else "none"
        figures = f"{found:.1f} | {row.gigabytes:.1f} | {off(found, row.gigabytes)}"
        print(f"| {row.base}, {SIZE[row.base]} | {' | '.join(how)} | {figures} |")


if __name__ == "__main__":
    main()
