"""Cost of planning batches: start, memory and time per batch at 1e4 to 1e7 clips, beside torch's own samplers.

    python benchmarks/sampler.py

Both plan batches of 4 clips, all from one index in one process: vidlit's in 12 buckets, mixed as the guarantees ask;
torch's in one, with `BatchSampler(RandomSampler(...))`, which has no buckets, no position to resume from and no ranks.
`start` is the time until the first batch, `bytes` the peak while it was made, per clip, without the caller's index.
`batch` is the mean over a whole pass, its shuffles included, and not under 20,000 batches; `longest` the longest wait
for one, when a large bucket is shuffled anew; `jump` the time to a batch a billion positions away.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler

from vidlit.data.batch_sampler import ResolutionBatchSampler
from vidlit.training.peak_memory import peak_memory

BATCH_SIZE = 4
BUCKETS = 12


def measure(make: Callable[[], Iterable[list[int]]], count: int) -> tuple[float, float, float, float]:
    """Start (s), peak bytes, mean (s) and longest (s) time per batch of `count` of what `make()` iterates over."""
    tracemalloc.start()
    next(iter(make()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    began = time.perf_counter()
    batches = iter(make())
    next(batches)
    start = time.perf_counter() - began
    return start, peak, *per_batch(batches, count)


def per_batch(batches: Iterator[list[int]], count: int) -> tuple[float, float]:
    """Mean and longest time of the next batches (s)."""
    ends = np.empty(count + 1)
    ends[0] = time.perf_counter()
    for i in range(count):
        next(batches)
        ends[i + 1] = time.perf_counter()
    return (ends[-1] - ends[0]) / count, np.diff(ends).max()


def endless(num_clips: int) -> Iterator[list[int]]:
    """Torch's shuffled batches, pass after pass."""
    sampler = BatchSampler(RandomSampler(range(num_clips)), BATCH_SIZE, drop_last=True)
    while True:
        yield from sampler


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=float, nargs="+", default=[1e4, 1e5, 1e6, 1e7])
    print(f"{'clips':>9}  {'':6} {'start s':>9} {'bytes/clip':>11} {'batch us':>9} {'longest ms':>10} {'jump ms':>8}")
    for num_clips in map(int, parser.parse_args().clips):
        buckets = np.random.default_rng(0).integers(0, BUCKETS, num_clips)
        sampler = ResolutionBatchSampler(buckets, BATCH_SIZE)
        began = time.perf_counter()
        sampler.batch_at(10**9)
        jump = f"{1e3 * (time.perf_counter() - began):8.1f}"
        for name, make in (
            ("vidlit", lambda: ResolutionBatchSampler(buckets, BATCH_SIZE)),  # noqa: B023
            ("torch", lambda: endless(num_clips)),  # noqa: B023
        ):
            start, peak, mean, longest = measure(make, max(20_000, num_clips // BATCH_SIZE))
            print(
                f"{num_clips:>9}  {name:6} {start:9.4f} {peak / num_clips:11.1f} {1e6 * mean:9.2f} "
                f"{1e3 * longest:10.1f} {jump if name == 'vidlit' else '':>8}"
            )
    print(f"peak resident memory of the whole run: {peak_memory(torch.device('cpu')) / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
