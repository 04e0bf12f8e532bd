"""How fast training samples come off the disk.

    python benchmarks/loading.py

`LatentDataset` in a DataLoader against bare reads of the same bytes in the same order, and against one file per
sample, latents and prompt in it, read with `torch.load` in a DataLoader, too. All contenders take turns on the same
files, from a warm page cache; the median round counts, and shares and gains are medians of each round's own ratio.

Bare reads are what a person would write who knows where the bytes lie: open, seek, read, each sample into fresh memory,
or with the shards open already and into memory that is used again. One process does them. The loaders run in the
training process and, in the last columns, with two workers each.

    python benchmarks/loading.py --checking

What checksums cost instead: the same reads once each tensor has been compared with its checksum, as in all passes but
the first, against reads that know of no checksums, and the first pass, which compares, against these.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from vidlit.diffusion.batch import LatentSample, collate
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.recipe import LatentRecipe, PromptRecipe
from vidlit.latents.shards import TensorTable
from vidlit.latents.store import Item, LatentStore

TOKENS = 48  # of a caption, without padding
SIZES = {  # latents (C, F, H, W) and width of the prompt embeddings
    "quickstart": ((16, 3, 8, 8), 64),
    "LTX 25x256x384": ((128, 4, 8, 12), 4096),
    "LTX 49x512x768": ((128, 7, 16, 24), 4096),
    "Wan 81x480x832": ((16, 21, 60, 104), 4096),
}


class FilePerSample(Dataset[LatentSample]):
    """What most trainers do."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LatentSample:
        return LatentSample(**torch.load(self.folder / f"{index:06d}.pt"), row=index, key=index)


def write(folder: Path, count: int, shape: tuple[int, ...], width: int) -> LatentDataset:
    """The same samples as shards and as single files."""
    store, items, latent_keys, prompt_keys = LatentStore(folder / "store"), [], [], []
    (folder / "files").mkdir()
    for number in range(count):
        latents = torch.randn(shape).bfloat16()
        prompt = torch.randn(TOKENS, width).bfloat16()
        torch.save({"latents": latents, "prompt_embeds": prompt}, folder / "files" / f"{number:06d}.pt")
        latent = LatentRecipe(f"{number:064x}", 0.0, 24.0, "49x512x768", "random", "bfloat16", "none")
        caption = PromptRecipe(f"caption {number}", "random", "bfloat16")
        items += [Item(latent, {"latents": latents}), Item(caption, {"prompt_embeds": prompt})]
        latent_keys.append(latent.key)
        prompt_keys.append(caption.key)
        if sum(item.nbytes for item in items) > 2**26 or number == count - 1:
            store.write(items)
            items = []
    store.compact()
    return LatentDataset(store, [str(number) for number in range(count)], latent_keys, prompt_keys)


def places(dataset: LatentDataset, batches: list[list[int]]) -> list[list[tuple[str, int, int]]]:
    """For each batch shard, offset and number of bytes of all that is to be read."""
    tables = (dataset._latents, dataset._prompts)
    return [
        [
            (table.shards[shard], offset, 2 * math.prod(table.layouts[layout][0]))
            for row in batch
            for table in tables
            for shard, offset, layout, _ in [table.places[row].tolist()]
        ]
        for batch in batches
    ]


def fresh_reads(root: Path, batches: list[list[tuple[str, int, int]]]) -> Iterator[list[bytes]]:
    """Open, seek, read: each batch is kept until the next one is there."""
    for batch in batches:
        read = []
        for shard, offset, size in batch:
            with open(root / shard, "rb", buffering=0) as file:
                file.seek(offset)
                read.append(file.read(size))
        yield read


def reused_reads(root: Path, batches: list[list[tuple[str, int, int]]]) -> Iterator[memoryview]:
    """The least there is to do: into one and the same memory, from shards that are open."""
    descriptors = {shard: os.open(root / shard, os.O_RDONLY) for batch in batches for shard in {s for s, *_ in batch}}
    memory = memoryview(bytearray(max(sum(size for *_, size in batch) for batch in batches)))
    for batch in batches:
        start = 0
        for shard, offset, size in batch:
            os.preadv(descriptors[shard], [memory[start : start + size]], offset)
            start += size
        yield memory
    for descriptor in descriptors.values():
        os.close(descriptor)


def as_is(batch: object) -> object:
    """A collate function for what is a batch already; torch's default walks through it."""
    return batch


def speed(batches: Iterator[object], num_batches: int) -> float:
    """Batches a second, from the second on: starting workers does not count."""
    next(batches)
    began = time.perf_counter()
    for batch in batches:  # noqa: B007 - kept until the next one is there
        pass
    return (num_batches - 1) / (time.perf_counter() - began)


def compare(folder: Path, size: str, options: argparse.Namespace) -> str:
    """One line of the table."""
    shape, width = SIZES[size]
    dataset = write(folder, options.samples, shape, width)
    files = FilePerSample(folder / "files", options.samples)
    order = torch.randperm(options.samples, generator=torch.Generator().manual_seed(0)).tolist()
    batches = [order[start : start + options.batch_size] for start in range(0, len(order), options.batch_size)]

    def vidlit(workers: int) -> Iterator[object]:
        return iter(
            DataLoader(dataset.batches(), sampler=batches, batch_size=None, collate_fn=as_is, num_workers=workers)
        )

    def torch_load(workers: int) -> Iterator[object]:
        return iter(DataLoader(files, batch_sampler=batches, collate_fn=collate, num_workers=workers))

    ranges = places(dataset, batches)
    contenders: list[Callable[[], Iterator[object]]] = [
        lambda: fresh_reads(folder / "store", ranges),
        lambda: reused_reads(folder / "store", ranges),
        lambda: vidlit(0),
        lambda: torch_load(0),
        lambda: vidlit(2),
        lambda: torch_load(2),
    ]
    rounds = [[speed(start(), len(batches)) for start in contenders] for _ in range(options.rounds)]
    megabytes = 2 * (math.prod(shape) + TOKENS * width) / 1e6
    speeds = [statistics.median(column) * options.batch_size * megabytes for column in zip(*rounds, strict=True)]
    ratios = [
        (ours / fresh, ours / reused, ours / load, ours_2 / load_2)
        for fresh, reused, ours, load, ours_2, load_2 in rounds
    ]
    shares = [statistics.median(column) for column in zip(*ratios, strict=True)]
    cells = "".join(f"{value:>11.0f}" for value in speeds)
    return f"{size:<16}{megabytes:>6.2f}{cells}{shares[0]:>9.2f}{shares[1]:>9.2f}{shares[2]:>8.1f}x{shares[3]:>8.1f}x"


class Unchecked(TensorTable):
    """Reads that know of no checksums: what a table did before it had them."""

    def read_into(self, row: int, place: Sequence[int], buffer: memoryview) -> None:
        """Fill a buffer with the bytes of a row."""
        self._files.read_into(self.shards[place[0]], place[1], buffer)


def compare_checking(folder: Path, size: str, options: argparse.Namespace) -> str:
    """What comparing with checksums costs, in the training process: one line of the table."""
    shape, width = SIZES[size]
    dataset = write(folder, options.samples, shape, width)
    tables = (dataset._latents, dataset._prompts)
    order = torch.randperm(options.samples, generator=torch.Generator().manual_seed(0)).tolist()
    batches = [order[start : start + options.batch_size] for start in range(0, len(order), options.batch_size)]

    def seconds(kind: type[TensorTable], is_checked: int) -> float:
        for table in tables:
            table.__class__ = kind
            table._is_checked[:] = bytes([is_checked]) * len(table)
        began = time.perf_counter()
        for rows in batches:
            dataset.read_batch(rows)
        return time.perf_counter() - began

    contenders = [(Unchecked, 1), (TensorTable, 1), (TensorTable, 0)]
    ratios = []
    for number in range(options.rounds + 1):
        turn = {contender: 0.0 for contender in contenders}
        for _ in range(max(1, round(200 / len(batches)))):  # long enough for the clock where samples are small
            for contender in contenders if number % 2 else contenders[::-1]:
                turn[contender] += seconds(*contender)
        unchecked, later, first = (turn[contender] for contender in contenders)
        if number:  # the first round warms the page cache
            ratios.append((later / unchecked - 1, first / unchecked - 1))
    costs = [100 * statistics.median(column) for column in zip(*ratios, strict=True)]
    return f"{size:<16}{costs[0]:>+16.1f} %{costs[1]:>+16.0f} %"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--checking", action="store_true", help="what comparing with checksums costs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.checking:
        print(f"{options.samples} samples, batches of {options.batch_size}: time beyond that of unchecked reads")
        print(f"{'sample':<16}{'later passes':>18}{'the first':>18}")
        for size in SIZES:
            with tempfile.TemporaryDirectory() as name:
                print(compare_checking(Path(name), size, options), flush=True)
        return
    print(f"{options.samples} samples in random order, batches of {options.batch_size}, MB/s; r: into reused memory,")
    print("2: two workers each; shares of both bare reads, gains over torch.load")
    names = ("bare reads", "bare r", "vidlit", "torch.load", "vidlit 2", "t.load 2")
    columns = "".join(f"{name:>11}" for name in names)
    print(f"{'sample':<16}{'MB':>6}{columns}{'of bare':>9}{'of r':>9}{'gain':>9}{'gain 2':>9}")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            print(compare(Path(name), size, options), flush=True)


if __name__ == "__main__":
    main()
