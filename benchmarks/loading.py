"""How fast training samples come off the disk.

    python benchmarks/loading.py

`LatentDataset` in a DataLoader against bare reads of the same bytes in the same order, and against one file per
sample read with `torch.load`. All contenders take turns on the same files, in one process and with two workers; the
median round counts. Bare reads are `os.pread` of the very byte ranges, known beforehand, in the main process, each
batch kept until the next one is there.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from vidlit.data.batch import LatentSample, collate
from vidlit.data.dataset import LatentDataset
from vidlit.data.recipe import LatentRecipe, PromptRecipe
from vidlit.data.store import Item, LatentStore

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


def bare_reads(dataset: LatentDataset, root: Path, batches: list[list[int]]) -> Iterator[list[bytes]]:
    """The ranges of the shards, nothing else; where they are is known beforehand."""
    tables = (dataset._latents, dataset._prompts)
    descriptors = {shard: os.open(root / shard, os.O_RDONLY) for table in tables for shard in table.shards}
    places = [
        [
            (descriptors[t.shards[t.shard_codes[row]]], 2 * math.prod(t.layout(row)[0]), int(t.offsets[row]))
            for row in batch
            for t in tables
        ]
        for batch in batches
    ]
    for batch in places:
        yield [os.pread(*place) for place in batch]
    for descriptor in descriptors.values():
        os.close(descriptor)


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
        return iter(DataLoader(dataset.batches(), sampler=batches, batch_size=None, num_workers=workers))

    def torch_load(workers: int) -> Iterator[object]:
        return iter(DataLoader(files, batch_sampler=batches, collate_fn=collate, num_workers=workers))

    contenders: list[Callable[[], Iterator[object]]] = [
        lambda: bare_reads(dataset, folder / "store", batches),
        lambda: vidlit(0),
        lambda: torch_load(0),
        lambda: vidlit(2),
        lambda: torch_load(2),
    ]
    rounds = [[speed(start(), len(batches)) for start in contenders] for _ in range(options.rounds)]
    megabytes = 2 * (math.prod(shape) + TOKENS * width) / 1e6
    speeds = [statistics.median(column) * options.batch_size * megabytes for column in zip(*rounds, strict=True)]
    share = statistics.median(vidlit / bare for bare, vidlit, *_ in rounds)
    gain = statistics.median(vidlit / torch_load for _, vidlit, torch_load, *_ in rounds)
    gain_2 = statistics.median(vidlit / torch_load for *_, vidlit, torch_load in rounds)
    cells = "".join(f"{value:>12.0f}" for value in speeds)
    return f"{size:<16}{megabytes:>7.3f}{cells}{share:>10.2f}{gain:>8.1f}x{gain_2:>8.1f}x"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.samples} samples in random order, batches of {options.batch_size}, warm page cache, MB/s,")
    print(f"median of {options.rounds} rounds; shares and gains are medians of each round's own ratio")
    print(
        f"{'sample':<16}{'MB':>7}{'bare reads':>12}{'vidlit':>12}{'torch.load':>12}{'2 workers':>12}{'2 workers':>12}"
        f"{'of bare':>10}{'gain':>9}{'gain 2w':>9}"
    )
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            print(compare(Path(name), size, options), flush=True)


if __name__ == "__main__":
    main()
