"""How fast `encode` is when the codec costs nothing, against bare PyAV on the same files and the same cores.

    python benchmarks/encode.py

The clock runs from a folder that was never looked at to a store: inspecting and hashing every file, looking for
near-duplicates, cutting, starting the Trainer, its workers and their decoding children, and writing are in it. The
figure of encode alone leaves out what comes before clips are known. Also the peak memory of encode over a base set,
over twice as many videos, and over videos four times as long, each in its own process: the proportional set size of
the process and all its children, sampled ten times a second.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
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
from vidlit.video.sources import Clip, SourceVideo

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


def make_clips(folder: Path, video: Path, count: int, bucket: Bucket, per_video: int = 1) -> list[Clip]:
    """Clips over as many links to one video: other names, the same bytes."""
    clips = []
    for number in range(count):
        path = folder / f"{video.stem}-{number:04d}.mp4"
        if not path.exists():
            os.link(video, path)
        source = SourceVideo(path, path.name, "a drifting texture", path.name)
        clips += [
            Clip(f"{path.name}@{part}", source, part * bucket.num_frames / FPS, FPS, bucket, f"{number:064x}")
            for part in range(per_video)
        ]
    return clips


def bare(job: tuple[Path, Bucket]) -> int:
    """What one would write in a notebook: decode the frames in order, resize each, keep them."""
    path, (num_frames, height, width) = job
    clip = np.empty((num_frames, height, width, 3), np.uint8)
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1  # one process per core
        for number, frame in zip(range(num_frames), container.decode(video=0), strict=False):
            clip[number] = frame.reformat(width, height, "rgb24").to_ndarray()
    return len(clip)


def time_bare(clips: list[Clip], cores: int) -> float:
    """Seconds of bare PyAV, one process per core, started before the clock."""
    with multiprocessing.get_context("fork").Pool(cores) as pool:
        began = time.perf_counter()
        list(pool.imap_unordered(bare, [(clip.source.path, clip.bucket) for clip in clips]))
        return time.perf_counter() - began


def time_encode(clips: list[Clip], folder: Path) -> float:
    """Seconds of a whole call of encode."""
    began = time.perf_counter()
    report = encode(
        clips,
        LatentStore(folder),
        Recipes(IDENTITY),
        FreeEncoders,
        trainer_options={"accelerator": "cpu", "devices": 1},
    )
    assert report.encoded == len(clips), report
    return time.perf_counter() - began


def time_planned(source: Path, folder: Path, bucket: Bucket) -> float:
    """Seconds of planning a folder, which reads and hashes every file, and of encoding what it gives."""
    began = time.perf_counter()
    clips = plan_clips(source, [bucket], FPS).clips
    seconds = time.perf_counter() - began
    return seconds + time_encode(list(clips), folder)


def make_source(folder: Path, video: Path, count: int) -> Path:
    """A folder of videos with captions: of other bytes, the same pictures."""
    folder.mkdir()
    for number in range(count):
        more = number.to_bytes(8, "big")
        # A box that players skip (ISO/IEC 14496-12, 8.1.2).
        (folder / f"{number:04d}.mp4").write_bytes(video.read_bytes() + (16).to_bytes(4, "big") + b"free" + more)
        (folder / f"{number:04d}.txt").write_text("a drifting texture")
    return folder


def peak_memory(clips: list[Clip], folder: Path) -> float:
    """MiB of this process and its children while encoding."""
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, sum(map(proportional_set, family(os.getpid()))) / 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    time_encode(clips, folder)
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
    bucket = Bucket.parse(BUCKETS[0])
    video, count, per_video = {
        "base": ("short.mp4", 24, 1),
        "twice the videos": ("short.mp4", 48, 1),
        "4x the length": ("long.mp4", 12, 4),
    }[case]
    clips = make_clips(folder, folder / video, count, bucket, per_video)
    print(peak_memory(clips, folder / f"store-{case}"))


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
        source = make_source(folder / "source", folder / "short.mp4", options.videos)
        print(
            f"{'bucket':<14}{'bare PyAV':>16}{'plan, encode':>16}{'ratio':>8}{'lowest':>8}{'encode alone':>16}  ratio"
        )
        for text in BUCKETS:
            bucket = Bucket.parse(text)
            clips = make_clips(folder, folder / "short.mp4", options.videos, bucket)
            turns = [
                (
                    time_bare(clips, cores),
                    time_planned(source, folder / f"store-planned-{text}-{number}", bucket),
                    time_encode(clips, folder / f"store-{text}-{number}"),
                )
                for number in range(options.rounds)
            ]
            frames = len(clips) * bucket.num_frames
            bare, planned, alone = (
                f"{frames / statistics.median(times):.0f} frames/s" for times in zip(*turns, strict=True)
            )
            ratios = [reference / ours for reference, ours, _ in turns]
            ratio_alone = statistics.median(reference / ours for reference, _, ours in turns)
            print(
                f"{text:<14}{bare:>16}{planned:>16}{statistics.median(ratios):>8.2f}{min(ratios):>8.2f}"
                f"{alone:>16}{ratio_alone:>8.2f}"
            )
        for case in ("base", "twice the videos", "4x the length"):
            command = [sys.executable, __file__, "--memory", case, name]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"peak memory, {case:<17}{float(run.stdout):>8.0f} MiB")


if __name__ == "__main__":
    main()
