"""What grows with the number of clips: the start of a run on a complete store, and the search for near-duplicates.

    python benchmarks/scale.py start_up          # at 10,000 and 100,000 clips; --sizes 1000000 for a million
    python benchmarks/scale.py near_duplicates   # at 10,000 and 100,000 videos

CPU seconds of each part of the start of a `fit`, in order, in a process of its own, and its peak memory (VmHWM): of the
first rank, and of another one, which is sent what the first one found. The
clips are objects as planning makes them, eight a video, which has a caption; the store has an index with all of them
and one shard, as far as its size tells. Reading the folder's files, and looking for near-duplicates, are not among the
parts of the start.

Near-duplicates are sought among videos of random pictures, 20 hashes each at four a second. One of a hundred is another
one encoded anew (up to six bits of each hash changed), and one of a hundred a part of that one.
"""

import argparse
import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from vidlit.data.datamodule import LatentDataModule
from vidlit.data.demo_folder import Demo
from vidlit.data.exposure_table import write_exposures
from vidlit.diffusion.batch import clip_key
from vidlit.latents.index import SCHEMA, write_index
from vidlit.latents.store_folder import mark, unique_name
from vidlit.sampling.audit import MAX_OWN_CLIPS, Audit
from vidlit.sampling.sampler import Sampling
from vidlit.stopping.exposure import video_exposures
from vidlit.training.peak_memory import peak_memory
from vidlit.video.buckets import Bucket
from vidlit.video.cut import DatasetPlan
from vidlit.video.repeats.duplicates import Fingerprint, Ties, find_near_duplicates, tie_groups
from vidlit.video.sources import Clip, SourceVideo

BUCKET, FPS, OF_A_VIDEO = Bucket(17, 64, 64), 16.0, 8
SHARD = "shards/17x64x64-0000000000000001-00000001.safetensors"
PROMPTS = "prompts/0000000000000001-00000001.safetensors"
BYTES = 2 * 64


def make_clips(count: int) -> tuple[Clip, ...]:
    """As planning makes them."""
    clips = []
    for number in range(-(-count // OF_A_VIDEO)):
        name = f"video_{number:07d}"
        source = SourceVideo(Path(f"/nowhere/{name}.mp4"), f"{name}.mp4", f"caption of {name}", name)
        clips += [
            Clip(f"{name}.mp4@{part}.000-{part}.875", source, float(part), FPS, BUCKET, f"{number:064x}")
            for part in range(OF_A_VIDEO)
        ]
    return tuple(clips[:count])


def opened(folder: Path, count: int) -> LatentDataModule:
    """A data module whose folder was planned already."""
    data = LatentDataModule(folder / "clips", folder / f"store_{count}", str(folder / "base"), [str(BUCKET)], fps=FPS)
    data.__dict__["plan"] = DatasetPlan(
        folder / "clips", "metadata.csv", FPS, (BUCKET,), make_clips(count), (), (), (), (), ()
    )
    return data


def write_store(folder: Path, count: int) -> None:
    """The index of a store that has all clips, and shards of the size that it says."""
    data = opened(folder, count)
    rows: dict[str, list[object]] = {name: [] for name in SCHEMA.names}

    def add(recipe: object, tensor: str, shard: str, number: int, clip: Clip | None) -> None:
        ingredients = recipe.ingredients
        for name in SCHEMA.names:
            rows[name].append(ingredients.get(name))
        for name, value in {
            "kind": recipe.kind,
            "key": recipe.key,
            "clip_id": "" if clip is None else clip.clip_id,
            "video": "" if clip is None else clip.source.video,
            "group": "" if clip is None else clip.source.group,
            "tensor": tensor,
            "shard": shard,
            "offset": number * BYTES,
            "layout": "bfloat16 4x2x8" if tensor == "latents" else "bfloat16 4x16",
            "checksum": 0,
        }.items():
            rows[name][-1] = value

    for number, clip in enumerate(data.plan.clips):
        add(data.recipes.latent(clip), "latents", SHARD, number, clip)
    for number, caption in enumerate(dict.fromkeys(clip.source.caption for clip in data.plan.clips)):
        add(data.recipes.prompt(caption), "prompt_embeds", PROMPTS, number, None)
    root = data.store.storage.root
    mark(data.store.storage)
    for name in (SHARD, PROMPTS):
        (root / name).parent.mkdir(exist_ok=True)
        with (root / name).open("wb") as file:
            file.truncate(count * BYTES)
    write_index(data.store.storage, f"index/{unique_name()}.parquet", pa.table(rows, SCHEMA))


def start_up(folder: Path, count: int, is_first: bool, results: object) -> None:
    """What a rank of a fit does before its first step, and at a check, by parts."""
    torch.set_num_threads(1)
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        began = time.process_time()
        found = work()
        spent[name] = spent.get(name, 0.0) + time.process_time() - began
        return found

    before = peak_memory(torch.device("cpu"))
    data: LatentDataModule = timed("clips", lambda: opened(folder, count))
    if is_first:
        timed("what is missing", lambda: data.encode(accelerator="cpu", devices=1))
    timed("split, usage", lambda: (data.split, data.usage))
    timed("scored clips", lambda: (data.scored_clips, data.train_eval_clips))
    if is_first:
        timed("identity", lambda: data.clip_identity.digests)
        sets = timed(
            "datasets", lambda: [data.dataset(data.train_clips, for_training=True), data.dataset(data.val_clips)]
        )
        (folder / "datasets").write_bytes(pickle.dumps(sets))
        del sets
    else:  # what the first one sends
        timed("datasets", lambda: pickle.loads((folder / "datasets").read_bytes()))
    timed("sampler", lambda: next(iter(data.sampler(1, 0))))
    keys = timed("exposure keys", lambda: [clip_key(clip.clip_id) for clip in data.train_clips])
    counts = np.zeros(len(keys), np.int64)

    def check() -> None:
        assert data.scored_clips
        assert data.train_eval_clips
        video_exposures(counts, [clip.source.group for clip in data.train_clips])

    timed("a check", check)
    if is_first:
        audit = timed("what an audit reads", lambda: Audit(data, None, 8, Sampling(1, 0, 1.0, "")))
        assert len(audit.own_clips) <= MAX_OWN_CLIPS
        timed("exposures' file", lambda: write_exposures(folder / "exposure.csv", data.split, counts.tolist()))
        timed("one clip's dataset", lambda: data.dataset(data.train_clips[:1]))
    results.put((spent, (peak_memory(torch.device("cpu")) - before) / 1e9, before / 1e9))


def print_start_up(sizes: list[int]) -> list[dict[str, float]]:
    """A column a size."""
    columns, totals = [], []
    for count in sizes:
        with tempfile.TemporaryDirectory() as name:
            Demo(Path(name), num_videos=1, clips_per_video=1).write()
            write_store(Path(name), count)
            context = multiprocessing.get_context("spawn")
            results = context.Queue()
            for is_first in (True, False):
                process = context.Process(target=start_up, args=(Path(name), count, is_first, results))
                process.start()
                spent, gigabytes, before = results.get()
                process.join()
                columns.append(spent)
                seconds = sum(spent.values())
                totals.append({"clips": count, "CPU seconds": seconds, "GB": gigabytes, "GB of imports": before})
    print(f"{'clips':<22}" + "".join(f"{count:>12,}{'':>12}" for count in sizes))
    print(f"{'CPU seconds of rank':<22}" + f"{'0':>12}{'another':>12}" * len(sizes))
    for part in columns[0]:
        print(f"{part:<22}" + "".join(f"{column.get(part, 0.0):>12.2f}" for column in columns))
    for row in ("CPU seconds", "GB", "GB of imports"):
        print(f"{row if row != 'CPU seconds' else 'all':<22}" + "".join(f"{total[row]:>12.2f}" for total in totals))
    return totals


def look(pictures: np.ndarray) -> Fingerprint:
    """What is known of a video of pictures, four a second."""
    text = [f"{code:016x}" for code in pictures.tolist()]
    spread = tuple(text[len(text) // 8 :: len(text) // 4][:4])
    return Fingerprint(spread, tuple((number / 4, code) for number, code in enumerate(text)))


def near_duplicates(count: int, results: object) -> None:
    """Seek what was planted."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 2**64, (count, 20), dtype=np.uint64)
    copies = np.arange(0, count - 2, 100)
    pictures[copies + 1] = pictures[copies]
    for _ in range(6):
        pictures[copies + 1] ^= np.uint64(1) << generator.integers(0, 64, (len(copies), 20)).astype(np.uint64)
    videos = {f"video_{number:07d}": look(row) for number, row in enumerate(pictures)}
    for number in copies.tolist():  # a part of the first, from its second second on
        videos[f"video_{number + 2:07d}"] = look(pictures[number, 8:])
    del pictures
    before, began = peak_memory(torch.device("cpu")), time.process_time()
    pairs = find_near_duplicates(videos)
    seconds = time.process_time() - began
    added = set(list(videos)[::100])  # one of a hundred comes later
    began = time.process_time()
    ties = Ties()
    for first, second, _ in pairs:
        ties.tie(first, second)
    late = {ties.root(video) for video in added}
    find_near_duplicates(videos, [pair for pair in pairs if ties.root(pair[0]) not in late], added)
    seconds_added = time.process_time() - began
    named = {pair[:2] for pair in pairs}
    group = tie_groups([(video, video) for video in videos], named)
    tied = [[group[f"video_{row + more:07d}"] == group[f"video_{row:07d}"] for row in copies] for more in (1, 2)]
    results.put(
        {
            "videos": count,
            "CPU seconds": seconds,
            "for 1 % new ones": seconds_added,
            "GB": peak_memory(torch.device("cpu")) / 1e9,
            "GB of the fingerprints": before / 1e9,
            "copies found": np.mean(tied[0]),
            "parts found": np.mean(tied[1]),
            "pairs": len(pairs),
        }
    )


def print_near_duplicates(sizes: list[int]) -> list[dict[str, float]]:
    """A line a size."""
    rows = []
    for count in sizes:
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=near_duplicates, args=(count, results))
        process.start()
        rows.append(results.get())
        process.join()
        print("  ".join(f"{name} {value:,.2f}" for name, value in rows[-1].items()), flush=True)
    return rows


def main(words: list[str] | None = None) -> list[dict[str, float]]:
    """Print a table; return its totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["start_up", "near_duplicates"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args(words)
    return (print_start_up if options.what == "start_up" else print_near_duplicates)(options.sizes)


if __name__ == "__main__":
    main()
