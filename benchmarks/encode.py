"""How fast `encode` is when the codec costs nothing, against bare PyAV on the same files and the same cores.

    python benchmarks/encode.py

The clock of encode begins with a folder that nothing is known of: inspecting its files (checksums, times of frames,
near-duplicates) and planning the clips, starting the Trainer, its workers and their decoding children, and writing the
store are in it. How much of it is inspecting and planning has a column of its own. Also the peak memory of all this
over a base set, over twice as many videos, and over videos four times as long, each in its own process: the
proportional set size of the process and all its children, sampled ten times a second.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
import torch

from vidlit.latents.encode.missing import encode
from vidlit.latents.recipe import Recipes
from vidlit.latents.store import LatentStore
from vidlit.models.encoders import ReadTokens
from vidlit.video.buckets import Bucket
from vidlit.video.cut import plan_clips
from vidlit.video.mp4 import write_mp4

IDENTITY = {"vae": "free-1", "text": "free-1"}
FPS = 24.0
SOURCE = (720, 1280)
BUCKETS = ("49x256x384", "49x480x704")


class FreeEncoders:
    """Takes one pixel in 8x32x32 and one vector for a caption."""

    identity = IDENTITY

    def to(self, device):
        """Nothing to move."""
        return self

    def encode_video(self, frames, sound):
        """(B, F, H, W, 3) to (B, 3, f, h, w)."""
        return {"latents": frames[:, ::8, ::32, ::32].permute(0, 4, 1, 2, 3).float()}

    def encode_captions(self, captions):
        """A vector each."""
        return [{"prompt_embeds": torch.zeros(1, 8)} for _ in captions]

    def read_tokens(self, captions):
        """All of them."""
        return [ReadTokens(0, "") for _ in captions]


def make_video(path: Path, num_frames: int) -> None:
    """A drifting photo-like texture with some noise, so that decoding is work."""
    rng = np.random.default_rng(0)
    height, width = SOURCE
    coarse = rng.integers(0, 255, (height // 8 + 16, width // 8 + 64, 3), np.uint8)
    texture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    noise = rng.integers(0, 24, (height, width, 3), np.uint8)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for number in range(num_frames):
        shift = 3 * number % 400
        frames[number] = texture[:height, shift : shift + width] // 2 + np.roll(noise, 7 * number, 1)
    write_mp4(path, frames, FPS)


def make_folder(folder: Path, video: Path, count: int) -> Path:
    """As many files with captions that hold the same frames and, after them, a box of other bytes each."""
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:04d}.mp4"
        shutil.copyfile(video, path)
        with path.open("ab") as file:
            file.write((12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big"))
        path.with_suffix(".txt").write_text("a drifting texture")
    return folder


def bare(job: tuple[Path, Bucket]) -> int:
    """What one would write in a notebook: decode the frames in order, resize each, keep them."""
    path, (num_frames, height, width) = job
    clip = np.empty((num_frames, height, width, 3), np.uint8)
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1  # one process per core
        for number, frame in zip(range(num_frames), container.decode(video=0), strict=False):
            clip[number] = frame.reformat(width, height, "rgb24").to_ndarray()
    return len(clip)


def time_bare(source: Path, bucket: Bucket, cores: int) -> float:
    """Seconds of bare PyAV, one process per core, started before the clock."""
    jobs = [(path, bucket) for path in sorted(source.glob("*.mp4"))]
    with multiprocessing.get_context("fork").Pool(cores) as pool:
        began = time.perf_counter()
        list(pool.imap_unordered(bare, jobs))
        return time.perf_counter() - began


def time_encode(source: Path, bucket: Bucket, folder: Path) -> tuple[float, float]:
    """Seconds from a folder of videos to a store, and those of them until the clips were known."""
    began = time.perf_counter()
    plan = plan_clips(source, [bucket], FPS, cache=folder / "files.json")
    planned = time.perf_counter() - began
    report = encode(
        plan.clips,
        LatentStore(folder),
        Recipes(IDENTITY),
        FreeEncoders,
        trainer_options={"accelerator": "cpu", "devices": 1},
    )
    assert report.encoded == len(plan.clips) > 0, report
    return time.perf_counter() - began, planned


def peak_memory(source: Path, bucket: Bucket, folder: Path) -> float:
    """MiB of this process and its children, from the folder of videos to the store."""
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, sum(map(proportional_set, family(os.getpid()))) / 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    time_encode(source, bucket, folder)
    done.set()
    watcher.join()
    return peak


def family(pid: int) -> list[int]:
    """A process and all that came from it."""
    try:
        lists = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # it ended meanwhile
        return []
    return [pid, *(member for text in lists for child in text.split() for member in family(int(child)))]


def proportional_set(pid: int) -> int:
    """KiB; pages that several processes share are counted once in all."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))


def memory_case(case: str, folder: Path) -> None:
    """Print the peak of one case."""
    video, count = {
        "base": ("short.mp4", 24),
        "twice the videos": ("short.mp4", 48),
        "4x the length": ("long.mp4", 12),  # of which four clips are cut
    }[case]
    source = make_folder(folder / f"videos-{case}", folder / video, count)
    print(peak_memory(source, Bucket.parse(BUCKETS[0]), folder / f"store-{case}"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=48, help="clips of one round")
    parser.add_argument("--rounds", type=int, default=5, help="bare and encode in turns; the median counts")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)  # case and folder, in a process of its own
    options = parser.parse_args()
    if options.memory:
        memory_case(options.memory[0], Path(options.memory[1]))
        return
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_video(folder / "short.mp4", 49)
        make_video(folder / "long.mp4", 196)
        print(
            f"{SOURCE[1]}x{SOURCE[0]} H.264, {options.videos} videos, {cores} cores, median of {options.rounds} rounds"
        )
        print(f"{'bucket':<14}{'bare PyAV':>16}{'encode':>16}{'ratio':>8}{'lowest':>8}{'of it planning':>16}")
        source = make_folder(folder / "videos", folder / "short.mp4", options.videos)
        for text in BUCKETS:
            bucket = Bucket.parse(text)
            reference, ours, planning = zip(
                *(
                    (time_bare(source, bucket, cores), *time_encode(source, bucket, folder / f"store-{text}-{number}"))
                    for number in range(options.rounds)
                ),
                strict=True,
            )
            frames = options.videos * bucket.num_frames
            speeds = [f"{frames / statistics.median(times):.0f} frames/s" for times in (reference, ours)]
            ratios = [one / other for one, other in zip(reference, ours, strict=True)]
            share = statistics.median(part / whole for part, whole in zip(planning, ours, strict=True))
            line = f"{text:<14}{speeds[0]:>16}{speeds[1]:>16}{statistics.median(ratios):>8.2f}{min(ratios):>8.2f}"
            print(f"{line}{share:>16.0%}")
        for case in ("base", "twice the videos", "4x the length"):
            command = [sys.executable, __file__, "--memory", case, name]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"peak memory, {case:<17}{float(run.stdout):>8.0f} MiB")


if __name__ == "__main__":
    main()
