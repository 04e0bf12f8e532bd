"""Step time of `vidlit fit`, callbacks and CSV log on, beside a bare PyTorch loop over the same model and batches.

    python benchmarks/step_overhead.py                                  # the quickstart's 1.25 M parameters
    python benchmarks/step_overhead.py --heads 16 --num-layers 8        # 30 M and more: time and memory, aim 1.02
    python benchmarks/step_overhead.py --heads 1 --num-layers 1 --batch-size 1   # what a step costs at least, aim 3 ms

Both train the quickstart's base, or one of another size, on the quickstart's clips, from the same weights, in one
process and in turns. The bare loop does what any training must: load and collate a batch, draw noise and sigmas, loss,
backward, clip, step. `fit` does that through Lightning, and counts exposures, measures throughput, shows progress and
logs. Checks are not part of a step, so none falls into the measured steps.

Steps differ in cost, because resolutions do; the order of batches is the same for both. So each position of the run is
timed in every repetition, its median taken, and these are averaged: one disturbed step spoils nothing. CPU time of the
process (all threads) stands beside wall time: other programs on the machine hardly change it. Peak memory is that of
a process of its own for each loop.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vidlit.__main__ import main as vidlit
from vidlit.data.batching import Batching
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.demo_folder import Demo
from vidlit.data.split import Splitting
from vidlit.diffusion.loss import denoising_loss
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.models.family import open_family
from vidlit.training.module import VideoDiffusionModule

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
BUCKETS = ["9x64x64", "17x48x80"]
WARMUP_STEPS = 5
"""Not measured: first allocations, first shuffles."""


def now() -> tuple[float, float]:
    """Wall and CPU time in seconds."""
    return time.perf_counter(), time.process_time()


def time_fit(folder: Path, num_steps: int, batch_size: int) -> np.ndarray:
    """Wall and CPU seconds between the starts of consecutive steps of `vidlit fit`, (num_steps - 1, 2)."""
    starts: list[tuple[float, float]] = []
    training_step = VideoDiffusionModule.training_step

    def timed(self: VideoDiffusionModule, batch, batch_idx: int) -> torch.Tensor:
        starts.append(now())
        return training_step(self, batch, batch_idx)

    options = {
        "demo": "null",
        "data.source": folder / "demo" / "clips",
        "data.store": folder / "latents",
        "data.buckets": f"[{','.join(BUCKETS)}]",
        "data.batches.size": batch_size,
        "model.base": folder / "demo" / "base",
        "run.dir": folder / "runs",
        "trainer.max_steps": num_steps,
        "trainer.val_check_interval": 1_000_000,
        "samples.num_videos": 0,
    }
    words = ["fit", "--config", str(CONFIG), *(f"--{name}={value}" for name, value in options.items())]
    VideoDiffusionModule.training_step = timed
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            code = vidlit(words)
    finally:
        VideoDiffusionModule.training_step = training_step
    assert code == 0, code
    return np.diff(starts, axis=0)


def time_bare(folder: Path, num_steps: int, batch_size: int) -> np.ndarray:
    """The same of a loop without Lightning."""
    base = folder / "demo" / "base"
    data = LatentDataModule(
        folder / "demo" / "clips",
        folder / "latents",
        str(base),
        BUCKETS,
        16,
        split=Splitting(0.5),
        batches=Batching(batch_size),
    )
    family, flow = open_family(base, 16), RectifiedFlow()
    transformer = family.load_transformer().train()
    parameters = list(transformer.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))

    def model(*inputs: torch.Tensor) -> torch.Tensor:
        return family.velocity(transformer, *inputs)

    generator = torch.Generator().manual_seed(0)
    batches = iter(data.train_dataloader())
    starts = []
    for _ in range(num_steps):
        batch = next(batches)
        starts.append(now())
        noise = torch.randn(batch.latents.shape, generator=generator)
        sigmas = flow.sample_sigmas(len(noise), generator)
        loss = denoising_loss(model, flow, batch, noise, sigmas).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        warmup.step()
    return np.diff(starts, axis=0)


def resize(base: Path, heads: int, num_layers: int) -> int:
    """Put a transformer of another size into a base; returns its number of parameters."""
    from diffusers import LTXVideoTransformer3DModel

    config = json.loads((base / "transformer" / "config.json").read_text())
    config |= {"num_attention_heads": heads, "num_layers": num_layers}
    config["cross_attention_dim"] = heads * config["attention_head_dim"]
    transformer = LTXVideoTransformer3DModel.from_config(config)
    transformer.save_pretrained(base / "transformer")
    return sum(parameter.numel() for parameter in transformer.parameters())


def peak_memory(loop: str, folder: Path, batch_size: int, threads: int) -> float:
    """Most resident bytes of a process that runs one loop for a few steps."""
    code = (
        "import torch; from pathlib import Path; from benchmarks import step_overhead; "
        "from vidlit.training.peak_memory import peak_memory; "
        f"torch.set_num_threads({threads}); "
        f"step_overhead.LOOPS[{loop!r}](Path({str(folder)!r}), {2 * WARMUP_STEPS}, {batch_size}); "
        "print(peak_memory(torch.device('cpu')))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


LOOPS = {"bare PyTorch loop": time_bare, "vidlit fit": time_fit}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of each repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--heads", type=int, default=4, help="of 32 channels, in the transformer")
    parser.add_argument("--num-layers", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds: dict[str, list[np.ndarray]] = {name: [] for name in LOOPS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Demo(folder / "demo", num_videos=16, clips_per_video=4).write()
        parameters = resize(folder / "demo" / "base", options.heads, options.num_layers)
        time_fit(folder, 3, options.batch_size)  # encodes
        for _ in range(options.repetitions):
            for loop, measure in LOOPS.items():
                seconds[loop].append(measure(folder, options.steps, options.batch_size)[WARMUP_STEPS:])
        memory = {loop: peak_memory(loop, folder, options.batch_size, options.threads) for loop in LOOPS}
    means = {loop: np.median(times, axis=0).mean(axis=0) for loop, times in seconds.items()}
    print(
        f"{parameters / 1e6:.2f} M parameters, {options.batch_size} samples a step, {options.threads} threads, "
        f"{options.repetitions} x {options.steps} steps"
    )
    print(f"{'':20}{'wall ms':>10}{'ratio':>8}{'CPU ms':>10}{'ratio':>8}")
    bare = means["bare PyTorch loop"]
    for loop, mean in means.items():
        ratio = mean / bare
        print(f"{loop:20}{1000 * mean[0]:10.2f}{ratio[0]:8.3f}{1000 * mean[1]:10.2f}{ratio[1]:8.3f}")
    pairs = [fit.mean(axis=0) / bare.mean(axis=0) for bare, fit in zip(*seconds.values(), strict=True)]
    for column, what in enumerate(("wall", "CPU")):
        print(f"{what} ratio of each repetition: {', '.join(f'{ratio[column]:.3f}' for ratio in pairs)}")
    fixed = 1000 * (means["vidlit fit"] - bare)
    print(f"a step costs {fixed[0]:+.2f} ms of wall time and {fixed[1]:+.2f} ms of CPU time more")
    peaks = [memory[loop] / 1e9 for loop in LOOPS]
    print(f"peak memory {peaks[0]:.3f} GB bare, {peaks[1]:.3f} GB fit: {peaks[1] / peaks[0]:.3f}")
    print("aim: 1.02 for time and memory at 30 M parameters and more; 3 ms a step at any size")


if __name__ == "__main__":
    main()
