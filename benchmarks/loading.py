"""How fast training samples come off the disk.

    python benchmarks/loading.py
    python benchmarks/loading.py --cold   # no file is in the page cache when a contender begins

`LatentDataset` in a DataLoader against bare reads of the same bytes in the same order, and against what other trainers
do in a DataLoader: safetensors files that are mapped into memory, one for a sample's latents and one for its prompt
(musubi-tuner), or one file per sample read with `torch.load` (most others). All contenders take turns on the same
samples; the median round counts, and shares and gains are medians of each round's own ratio.

Bare reads are the least there is to do: the shards are open already, and each batch is read into memory that is used
again; or what a person would write who knows where the bytes lie: open, seek, read, each sample into fresh memory. The
loaders run in the training process, where gains are by CPU seconds, too, and with two workers each.

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
from safetensors import safe_open
from safetensors.torch import save_file
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


class MappedFiles(FilePerSample):
    """What musubi-tuner does: tensors of mapped safetensors files."""

    def __getitem__(self, index: int) -> LatentSample:
        with safe_open(self.folder / f"{index:06d}_latents.safetensors", "pt") as file:
            latents = file.get_tensor("latents")
        with safe_open(self.folder / f"{index:06d}_prompt.safetensors", "pt") as file:
            prompt = file.get_tensor("prompt_embeds")
        return LatentSample(latents, prompt, row=index, key=index)


def write(folder: Path, count: int, shape: tuple[int, ...], width: int) -> LatentDataset:
    """The same samples as shards and as single files."""
    store, items, latent_keys, prompt_keys = LatentStore(folder / "store"), [], [], []
    (folder / "files").mkdir()
    for number in range(count):
        latents = torch.randn(shape).bfloat16()
        prompt = torch.randn(TOKENS, width).bfloat16()
        torch.save({"latents": latents, "prompt_embeds": prompt}, folder / "files" / f"{number:06d}.pt")
        save_file({"latents": latents}, folder / "files" / f"{number:06d}_latents.safetensors")
        save_file({"prompt_embeds": prompt}, folder / "files" / f"{number:06d}_prompt.safetensors")
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


def speed(batches: Iterator[object], num_batches: int) -> tuple[float, float]:
    """Batches a second, and a CPU second of this process, from the second on: starting workers does not count."""
    next(batches)
    began, worked = time.perf_counter(), time.process_time()
    for batch in batches:  # noqa: B007 - kept until the next one is there
        pass
    count = num_batches - 1
    return count / (time.perf_counter() - began), count / (time.process_time() - worked)


def forget(folder: Path) -> None:
    """Put all files of a folder out of the page cache."""
    os.sync()  # what is not on the disk yet stays in it
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def compare(folder: Path, size: str, options: argparse.Namespace) -> str:
    """One line of the table."""
    shape, width = SIZES[size]
    dataset = write(folder, options.samples, shape, width)
    mapped, pickled = (kind(folder / "files", options.samples) for kind in (MappedFiles, FilePerSample))
    order = torch.randperm(options.samples, generator=torch.Generator().manual_seed(0)).tolist()
    batches = [order[start : start + options.batch_size] for start in range(0, len(order), options.batch_size)]

    def vidlit(workers: int) -> Iterator[object]:
        return iter(
            DataLoader(dataset.batches(), sampler=batches, batch_size=None, collate_fn=as_is, num_workers=workers)
        )

    def single(files: Dataset[LatentSample], workers: int) -> Iterator[object]:
        return iter(DataLoader(files, batch_sampler=batches, collate_fn=collate, num_workers=workers))

    ranges = places(dataset, batches)
    contenders: dict[str, Callable[[], Iterator[object]]] = {
        "bare r": lambda: reused_reads(folder / "store", ranges),
        "bare": lambda: fresh_reads(folder / "store", ranges),
        "vidlit": lambda: vidlit(0),
        "mapped": lambda: single(mapped, 0),
        "t.load": lambda: single(pickled, 0),
        "vidlit 2": lambda: vidlit(2),
        "mapped 2": lambda: single(mapped, 2),
        "t.load 2": lambda: single(pickled, 2),
    }
    rounds = []
    for _ in range(options.rounds):
        turn = {}
        for name, start in contenders.items():
            if options.cold:
                forget(folder)
            turn[name] = speed(start(), len(batches))
        rounds.append(turn)
    megabytes = 2 * (math.prod(shape) + TOKENS * width) / 1e6

    def gain(name: str, over: str, clock: int) -> float:
        return statistics.median(turn[name][clock] / turn[over][clock] for turn in rounds)

    speeds = [
        statistics.median(turn[name][0] for turn in rounds) * options.batch_size * megabytes for name in contenders
    ]
    cells = "".join(f"{value:>9.0f}" for value in speeds)
    gains = [
        gain("vidlit", "bare r", 0),
        gain("vidlit", "bare", 0),
        gain("vidlit", "mapped", 1),
        gain("vidlit", "mapped", 0),
        gain("vidlit 2", "mapped 2", 0),
        gain("vidlit", "t.load", 0),
    ]
    return f"{size:<16}{megabytes:>6.2f}{cells}" + "".join(f"{each:>9.2f}" for each in gains)


class Unchecked(TensorTable):
    """Reads that know of no checksums: what a table did before it had them."""

    def check(self, row: int, place: Sequence[int], buffer: memoryview) -> None:
        """Compare nothing."""


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
    parser.add_argument("--cold", action="store_true", help="put the files out of the page cache first")
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
    cache = "cold" if options.cold else "warm"
    print(f"{options.samples} samples in random order, batches of {options.batch_size}, {cache} page cache, MB/s;")
    print("r: into reused memory, 2: two workers each; then vidlit's speed over theirs, C: by CPU seconds")
    names = ("bare r", "bare", "vidlit", "mapped", "t.load", "vidlit 2", "mapped 2", "t.load 2")
    over = ("/bare r", "/bare", "/mapped C", "/mapped", "/mapped 2", "/t.load")
    print(f"{'sample':<16}{'MB':>6}" + "".join(f"{name:>9}" for name in (*names, *over)))
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            print(compare(Path(name), size, options), flush=True)


if __name__ == "__main__":
    main()
