"""Real-size transformers on one GPU, trained by vidlit's module and Trainer and by a plain loop, in one run.

    python benchmarks/gpu.py                         # LTX-Video 2B and Wan 2.1 1.3B, LoRA and all weights
    python benchmarks/gpu.py --models ltx --methods full --steps 30
    python benchmarks/gpu.py --small                 # tiny, on a CPU: does it run?

Weights are random and latents are noise: speed and memory do not depend on what they hold. Nothing but torch,
lightning, diffusers and peft is needed, and nothing is downloaded. The plain loop is what public example scripts do:
bfloat16 autocast, gradient checkpointing in every block, AdamW as it comes, clipping, `loss.item()` at every step; for
a LoRA the frozen weights are in bfloat16. vidlit's side is `VideoDiffusionModule` under Lightning's Trainer with fused
AdamW and, on a GPU, compiled blocks; `--recompute` says in which blocks it recomputes activations.

MFU: operations that the model itself needs (recomputed ones do not count, so both sides do the same work) over the time
of a step, as a share of the device's peak in bfloat16. `waiting` is the share of the time without a batch. Steps before
`--warmup` are not measured. Memory is the most that tensors took.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import diffusers
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # from a checkout, without installing it

from vidlit.diffusion.batch import Conditioning, LatentBatch
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.models.adapters import LoRA
from vidlit.models.family import Family
from vidlit.training.flops import flops_of_a_sample, peak_flops
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.peak_memory import peak_memory

RANK = 32
LTX = {
    "pipeline": "LTXPipeline",
    "class": "LTXVideoTransformer3DModel",
    "vae": "AutoencoderKLLTXVideo",
    "text": (128, 4096),
    "config": {},
}
WAN = {
    "pipeline": "WanPipeline",
    "class": "WanTransformer3DModel",
    "vae": "AutoencoderKLWan",
    "text": (512, 4096),
    "config": {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},
}
TINY = {
    "ltx": {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 2}
    | {"caption_channels": 16},
    "wan": {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2, "text_dim": 16}
    | {"freq_dim": 16},
}
MODELS = {"ltx": ("LTX-Video 2B", LTX, (121, 480, 704)), "wan": ("Wan 2.1 1.3B", WAN, (81, 480, 832))}
"""Name, parts and the usual size of a clip in frames, height and width."""


class Clips(Dataset):
    """Latents that are noise, and prompts, in batches; made once, read by a DataLoader as encoded clips are."""

    def __init__(self, shape: tuple[int, ...], text: tuple[int, int], batch_size: int, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(4, *shape, generator=generator).bfloat16()
        self.prompts = torch.randn(4, *text, generator=generator).bfloat16()
        self.batch_size, self.count = batch_size, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LatentBatch:
        rows = [(index + k) % 4 for k in range(self.batch_size)]
        mask = torch.ones(len(rows), self.prompts.shape[1], dtype=torch.bool)
        numbers = torch.tensor(rows)
        return LatentBatch(
            self.latents[rows].clone(), Conditioning(self.prompts[rows].clone(), mask, {}), numbers, numbers
        )


def write_base(folder: Path, name: str, small: bool) -> tuple[int, int]:
    """Configs of a base without weights; returns the shape of its prompts."""
    _, parts, _ = MODELS[name]
    config = TINY[name] if small else parts["config"]
    for part, class_name, values in (("transformer", parts["class"], config), ("vae", parts["vae"], {})):
        model_class = getattr(diffusers, class_name)
        with torch.device("meta"):
            made = model_class(**values) if part == "transformer" else model_class()
        (folder / part).mkdir(parents=True)
        made.save_config(folder / part)
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": parts["pipeline"]}))
    return (8, 16) if small else parts["text"]


def random_transformer(
    family: Family, dtype: torch.dtype, expert: str = "transformer", *, device: torch.device
) -> torch.nn.Module:
    """One of a family's experts, of a base that has a config only, made on the device."""
    model_class = getattr(diffusers, family.transformer_class)
    config = model_class.load_config(family.base / expert)
    torch.manual_seed(0)
    with torch.device(device):
        transformer = model_class.from_config(config)
    exact = getattr(transformer, "_keep_in_fp32_modules", None) or []  # as from_pretrained leaves them
    for name, parameter in transformer.named_parameters():
        if not any(part in name.split(".") for part in exact):
            parameter.data = parameter.data.to(dtype)
    return transformer


def loader(clips: Clips, device: torch.device) -> DataLoader:
    """Batches, two steps ahead on a GPU machine."""
    workers = 2 if device.type == "cuda" else 0
    return DataLoader(clips, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda")


class Clock(Callback):
    """Seconds of the steps after the warm-up, and those without a batch."""

    def __init__(self, warmup: int, device: torch.device) -> None:
        self.warmup, self.device = warmup, device
        self.began = self.ended = self.waited = self.last = 0.0
        self.steps = 0

    def tick(self, index: int) -> None:
        """A batch is here."""
        if index == self.warmup:
            synchronize(self.device)
            self.began = time.perf_counter()
        elif index > self.warmup:
            self.waited += time.perf_counter() - self.last

    def tock(self, index: int) -> None:
        """A step was done, or at least given to the device."""
        self.last = time.perf_counter()
        self.steps = index + 1 - self.warmup

    def stop(self) -> None:
        """All was done."""
        synchronize(self.device)
        self.ended = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx: int) -> None:
        """A batch is here."""
        self.tick(batch_idx)

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        """A step was given to the device."""
        self.tock(batch_idx)

    def on_train_end(self, trainer: Trainer, pl_module) -> None:
        """All was done."""
        self.stop()


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_vidlit(module: VideoDiffusionModule, clips: Clips, clock: Clock, folder: Path) -> None:
    """Steps under Lightning's Trainer, as `vidlit fit` runs them, without checks."""
    trainer = Trainer(
        accelerator="gpu" if clock.device.type == "cuda" else "cpu",
        devices=1,
        max_steps=len(clips),
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[clock],
    )
    trainer.fit(module, loader(clips, clock.device))


def run_plain(family: Family, lora: bool, clips: Clips, clock: Clock) -> None:
    """Steps of a plain loop."""
    device = clock.device
    transformer = random_transformer(family, torch.bfloat16 if lora else torch.float32, device=device)
    if lora:
        LoRA(rank=RANK, alpha=RANK).apply(transformer, family)
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    transformer.enable_gradient_checkpointing()
    transformer.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    flow: RectifiedFlow = family.noising()
    for index, batch in enumerate(loader(clips, device)):
        clock.tick(index)
        latents = batch.latents.to(device, non_blocking=True).float()
        conditioning = batch.conditioning.to(device)
        noise = torch.randn_like(latents)
        sigmas = flow.at(latents[0, 0].numel()).sample_sigmas(len(latents), torch.Generator(device))
        with torch.autocast(device.type, torch.bfloat16):
            predicted = family.velocity(transformer, flow.add_noise(latents, noise, sigmas), sigmas, conditioning)
            loss = torch.nn.functional.mse_loss(predicted.float(), noise - latents)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        clock.tock(index)
    clock.stop()


def measure(name: str, lora: bool, options: argparse.Namespace, device: torch.device) -> Iterator[dict]:
    """Both sides, one after the other; a row each."""
    title, _, size = MODELS[name]
    if options.small:
        size = (9, 64, 64)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        prompt = write_base(folder / "base", name, options.small)
        module = VideoDiffusionModule(
            str(folder / "base"),
            adapter=LoRA(rank=RANK, alpha=RANK) if lora else None,
            optimizer=partial(torch.optim.AdamW, lr=1e-4, fused=True),
            memory=Memory("bfloat16" if lora else "float32", options.recompute, options.compile),
        )
        shape = module.family.latent_shape(*size)
        clips = Clips(shape, prompt, options.batch_size, options.warmup + options.steps)
        tokens = shape[1] * shape[2] * shape[3]
        flops = flops_of_a_sample(module.family, module.structure(), clips[0])  # as perf/mfu counts them
        for side in ("plain loop", "vidlit"):
            clock = Clock(options.warmup, device)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            try:
                if side == "vidlit":
                    module.family.load_transformer = partial(random_transformer, module.family, device=device)
                    run_vidlit(module, clips, clock, folder)
                else:
                    run_plain(module.family, lora, clips, clock)
            except torch.OutOfMemoryError:
                yield {"model": title, "trains": "LoRA" if lora else "all", "side": side, "ms a step": "out of memory"}
                continue
            memory = peak_memory(device)
            seconds = (clock.ended - clock.began) / clock.steps
            peak = peak_flops(device, low_precision=True)
            done = flops * options.batch_size
            yield {
                "model": title,
                "trains": "LoRA" if lora else "all",
                "side": side,
                "ms a step": round(1000 * seconds, 1),
                "tokens/s": round(options.batch_size * tokens / seconds),
                "MFU": f"{100 * done / seconds / peak:.1f} %" if peak else "unknown device",
                "waiting": f"{100 * clock.waited / (clock.ended - clock.began):.1f} %",
                "peak GB": round(memory / 1e9, 2),
            }


def main(words: list[str] | None = None) -> list[dict]:
    """Print the table; return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="measured")
    parser.add_argument("--warmup", type=int, default=5, help="steps before, not measured; compilation falls in here")
    parser.add_argument("--recompute", type=int, default=1, help="activations in every k-th block; 0 for none")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="vidlit's blocks")
    parser.add_argument("--small", action="store_true", help="tiny models and clips")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    options = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.compile is None:
        options.compile = device.type == "cuda"
    if device.type == "cpu" and not options.small:
        raise SystemExit("no GPU is here: --small runs tiny models on the CPU.")
    rows = []
    for name in options.models:
        for method in options.methods:
            for row in measure(name, method == "lora", options, device):
                if not rows:
                    print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
                print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
                rows.append(row)
    if device.type == "cuda":
        print(f"\n{torch.cuda.get_device_name(device)}, torch {torch.__version__}, diffusers {diffusers.__version__}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
