"""Real-size transformers on one GPU, trained by a plain loop and by vidlit's module and Trainer, in one run.

    python benchmarks/gpu.py                         # LTX-Video 2B and Wan 2.1 1.3B, all weights and LoRA: 6 minutes
    python benchmarks/gpu.py --models ltx2 wan5b --methods lora
    python benchmarks/gpu.py --small                 # tiny, on a CPU: does it run?

Weights are random and latents are noise: speed and memory do not depend on what they hold. Nothing but torch,
lightning, diffusers and peft is needed, and nothing is downloaded. The rows of a model:

- "plain loop": what public example scripts do: bfloat16 autocast, diffusers' gradient checkpointing of every block,
  AdamW as it comes, clipping, `loss.item()` at every step; for a LoRA the frozen weights are in bfloat16;
- "plain loop, tuned": the same without `loss.item()` and with all that vidlit's defaults are: compiled blocks, fused
  AdamW, the attention kernel, the same blocks recomputed, all but their attention;
- "vidlit": `VideoDiffusionModule` under Lightning's Trainer with the options that ship; `--recompute` says otherwise;
- "vidlit, 4 batches a step": where all weights of LTX-Video are trained, whose optimizer is a quarter of a step.

ms: of a batch of one. MFU: operations that the model itself needs (recomputed ones do not count, so all rows do the
same work) over that time, as a share of the device's peak in bfloat16. Steps before `--warmup` are not measured; what
they took, compilation among it, is "first s". Memory is the most that tensors took (allocated), and the allocator
(reserved). Rows for which `--seconds` leave no time are left out, and named.
"""

import argparse
import gc
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch._dynamo
import yaml
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # from a checkout, without installing it

from vidlit.diffusion.batch import Conditioning, LatentBatch
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.latents.quiet_lightning import BARE_TRAINER
from vidlit.models.adapters import LoRA
from vidlit.models.family import Family
from vidlit.training.blocks.attention import prefer_kernel
from vidlit.training.flops import flops_of_a_sample, peak_flops
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.peak_memory import peak_memory

RANK, ACCUMULATED = 32, 4
COLUMNS = "model,clip,trains,side,ms,MFU,allocated GB,reserved GB,first s,recomputed".split(",")
WAN = {"pipeline": "WanPipeline", "class": "WanTransformer3DModel", "vae": "AutoencoderKLWan", "text": (512, 4096)}
TINY_WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2, "text_dim": 16}
MODELS: dict[str, dict[str, Any]] = {
    "ltx": {
        "title": "LTX-Video 2B",
        "size": (121, 480, 704),
        "pipeline": "LTXPipeline",
        "class": "LTXVideoTransformer3DModel",
        "vae": "AutoencoderKLLTXVideo",
        "text": (128, 4096),
        "tiny": {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 2}
        | {"caption_channels": 16},
    },
    "wan": WAN
    | {
        "title": "Wan 2.1 1.3B",
        "size": (49, 480, 832),
        "config": {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},
        "tiny": TINY_WAN | {"freq_dim": 16},
    },
    "wan5b": WAN
    | {
        "title": "Wan 2.2 TI2V-5B",
        "size": (49, 704, 1280),
        "config": {"num_attention_heads": 24, "attention_head_dim": 128, "ffn_dim": 14336, "num_layers": 30}
        | {"in_channels": 48, "out_channels": 48},
        "tiny": TINY_WAN | {"freq_dim": 16, "in_channels": 48, "out_channels": 48},
        "vae_config": {"z_dim": 48, "base_dim": 160, "decoder_base_dim": 256, "is_residual": True, "in_channels": 12}
        | {"out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
        | {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
        "index": {"expand_timesteps": True},
    },
    "ltx2": {
        "title": "LTX-2 19B",
        "size": (121, 512, 768),
        "pipeline": "LTX2Pipeline",
        "class": "LTX2VideoTransformer3DModel",
        "vae": "AutoencoderKLLTX2Video",
        "text": (1024, 3840),
        "tiny": {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24, "num_layers": 2}
        | {"audio_num_attention_heads": 2, "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16}
        | {"caption_channels": 16, "rope_type": "split"},
    },
}
"""Of each its parts, what differs from their classes' defaults, and the size of a clip in frames, height and width."""


class Clips(Dataset):
    """Latents that are noise, and prompts, one a batch; made once, read by a DataLoader as encoded clips are."""

    def __init__(self, shape: tuple[int, ...], text: tuple[int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(4, *shape, generator=generator).bfloat16()
        self.prompts = torch.randn(4, *text, generator=generator).bfloat16()
        self.count = 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LatentBatch:
        rows = [index % 4]
        numbers = torch.tensor(rows)
        return LatentBatch(
            self.latents[rows].clone(), Conditioning(self.prompts[rows].clone(), None, {}), numbers, numbers
        )


def write_base(folder: Path, name: str, small: bool) -> tuple[int, int]:
    """Configs of a base without weights; returns the shape of its prompts."""
    parts = MODELS[name]
    config = parts["tiny"] if small else parts.get("config", {})
    for part, class_name, values in (
        ("transformer", parts["class"], config),
        ("vae", parts["vae"], parts.get("vae_config", {})),
    ):
        with torch.device("meta"):
            made = getattr(diffusers, class_name)(**values)
        (folder / part).mkdir(parents=True)
        made.save_config(folder / part)
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": parts["pipeline"], **parts.get("index", {})}))
    return (8, 16) if small else parts["text"]


def random_transformer(
    family: Family, dtype: torch.dtype, expert: str = "transformer", *, device: torch.device
) -> torch.nn.Module:
    """One of a family's experts, of a base that has a config only, made on the device."""
    model_class = getattr(diffusers, family.transformer_class)
    config = model_class.load_config(family.base / expert)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # made in float32 first, 19B weights would not fit
    try:
        with torch.device(device):
            transformer = model_class.from_config(config)
    finally:
        torch.set_default_dtype(torch.float32)
    exact = getattr(transformer, "_keep_in_fp32_modules", None) or []  # as from_pretrained leaves them
    for name, parameter in transformer.named_parameters():
        is_exact = any(part in name.split(".") for part in exact)
        parameter.data = parameter.data.to(torch.float32 if is_exact else dtype)
    return transformer


def loader(clips: Clips, device: torch.device) -> DataLoader:
    """Batches, two steps ahead on a GPU machine."""
    workers = 2 if device.type == "cuda" else 0
    return DataLoader(clips, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda")


class Clock(Callback):
    """Seconds of the steps after the warm-up, and of all before."""

    def __init__(self, warmup: int, device: torch.device) -> None:
        self.warmup, self.device = warmup, device
        self.began = self.ended = 0.0
        self.made, self.first, self.steps = time.perf_counter(), 0.0, 0

    def tick(self, index: int) -> None:
        """A batch is here."""
        if index == self.warmup:
            synchronize(self.device)
            self.began = time.perf_counter()
            self.first = self.began - self.made

    def tock(self, index: int) -> None:
        """A step was done, or at least given to the device."""
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


def run_vidlit(module: VideoDiffusionModule, clips: Clips, clock: Clock, folder: Path, accumulate: int) -> None:
    """Steps under Lightning's Trainer, as `vidlit fit` runs them, without checks."""
    trainer = Trainer(
        accelerator="gpu" if clock.device.type == "cuda" else "cpu",
        devices=1,
        max_steps=len(clips) // accumulate,
        accumulate_grad_batches=accumulate,
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        limit_val_batches=0,
        default_root_dir=folder,
        callbacks=[clock],
        **BARE_TRAINER,
    )
    trainer.fit(module, loader(clips, clock.device))


def run_plain(family: Family, lora: bool, clips: Clips, clock: Clock, memory: Memory | None) -> None:
    """Steps of a plain loop; with what vidlit's options do to a transformer where they are given."""
    device, tuned = clock.device, memory is not None
    transformer = random_transformer(family, torch.bfloat16 if lora else torch.float32, device=device)
    if lora:
        LoRA(rank=RANK, alpha=RANK).apply(transformer, family)
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    if memory is None:
        transformer.enable_gradient_checkpointing()
    else:
        memory.apply(transformer, device, trains_in_bfloat16=False, trains_whole=not lora)
    transformer.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=tuned)
    flow: RectifiedFlow = family.noising()
    with prefer_kernel("auto", transformer.config, device) if tuned else nullcontext():
        for index, batch in enumerate(loader(clips, device)):
            clock.tick(index)
            latents = batch.latents.to(device, non_blocking=True).float()
            conditioning = batch.conditioning.to(device)
            if not tuned:  # as tokenizers give it, though nothing is padded
                ones = torch.ones(conditioning.prompt_embeds.shape[:2], dtype=torch.bool)
                conditioning = conditioning._replace(prompt_attention_mask=ones)
            noise = torch.randn_like(latents)
            sigmas = flow.at(latents[0, 0].numel()).sample_sigmas(len(latents), torch.Generator(device))
            with torch.autocast(device.type, torch.bfloat16):
                predicted = family.velocity(transformer, flow.add_noise(latents, noise, sigmas), sigmas, conditioning)
                loss = torch.nn.functional.mse_loss(predicted.float(), noise - latents)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if not tuned:
                loss.item()
            clock.tock(index)
        clock.stop()


@dataclass
class Case:
    """A model, and what of it is trained; one row after the other."""

    name: str
    lora: bool
    options: argparse.Namespace
    device: torch.device

    def rows(self) -> Iterator[dict]:
        """Of every side."""
        parts, small = MODELS[self.name], self.options.small
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            prompt = write_base(folder / "base", self.name, small)
            module = self.module(folder)
            shape = module.family.latent_shape(*((9, 64, 64) if small else parts["size"]))
            clips = Clips(shape, prompt)
            # As perf/mfu counts them.
            flops = flops_of_a_sample(module.family, module.structure(), clips[0])
            settled, sides = module.memory.settled(self.device), ["vidlit", "plain loop, tuned", "plain loop"]
            if self.name == "ltx" and not self.lora:
                sides.append(f"vidlit, {ACCUMULATED} batches a step")
            for side in [side for side in sides if self.options.plain or side != "plain loop"]:
                row = {"model": parts["title"], "clip": "x".join(map(str, parts["size"]))}
                row |= {"trains": "LoRA" if self.lora else "all", "side": side}
                if time.perf_counter() > self.options.until:
                    yield row | {"ms": "left out: no time"}
                    continue
                accumulate = ACCUMULATED if side.endswith("a step") else 1
                warmup, steps = (
                    accumulate * -(-number // accumulate) for number in (self.options.warmup, self.options.steps)
                )
                clips.count, clock = warmup + steps, Clock(warmup, self.device)
                free(self.device)
                try:
                    if side.startswith("vidlit"):
                        run_vidlit(self.module(folder), clips, clock, folder, accumulate)
                    else:
                        run_plain(module.family, self.lora, clips, clock, settled if side.endswith("tuned") else None)
                except torch.OutOfMemoryError:
                    yield row | {"ms": "out of memory"}
                    continue
                yield row | self.figures(clock, flops) | {"recomputed": settled.gradient_checkpointing}

    def module(self, folder: Path) -> VideoDiffusionModule:
        """As it ships."""
        recompute = {} if self.options.recompute is None else {"gradient_checkpointing": self.options.recompute}
        module = VideoDiffusionModule(
            str(folder / "base"),
            adapter=LoRA(rank=RANK, alpha=RANK) if self.lora else None,
            optimizer=partial(torch.optim.AdamW, lr=1e-4, fused=True),
            memory=Memory("bfloat16" if self.lora else "float32", **recompute),
        )
        module.family.load_transformer = partial(random_transformer, module.family, device=self.device)
        return module

    def figures(self, clock: Clock, flops: int) -> dict:
        """Of the steps that were measured."""
        seconds = (clock.ended - clock.began) / clock.steps
        peak = peak_flops(self.device, low_precision=True)
        on_gpu = self.device.type == "cuda"
        return {
            "ms": round(1000 * seconds, 1),
            "MFU": f"{100 * flops / seconds / peak:.1f} %" if peak else "unknown device",
            "allocated GB": round(peak_memory(self.device) / 1e9, 2),
            "reserved GB": round(torch.cuda.max_memory_reserved(self.device) / 1e9, 2) if on_gpu else None,
            "first s": round(clock.first, 1),
        }


def free(device: torch.device) -> None:
    """Give back what the row before held."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def share(text: str) -> bool | float | int:
    """Of the blocks, as `model.memory.gradient_checkpointing` takes it."""
    return yaml.safe_load(text)


def main(words: list[str] | None = None) -> list[dict]:
    """Print the table; return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["ltx", "wan"])
    parser.add_argument("--methods", nargs="+", choices=["lora", "full"], default=["full", "lora"])
    parser.add_argument("--steps", type=int, default=6, help="measured")
    parser.add_argument("--warmup", type=int, default=3, help="steps before, not measured; compilation falls in here")
    parser.add_argument("--recompute", type=share, help="of the blocks: true, false, a share; else as it ships")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True, help="the plain loop's row")
    parser.add_argument("--seconds", type=float, default=340, help="after which no row is begun any more")
    parser.add_argument("--small", action="store_true", help="tiny models and clips")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    options = parser.parse_args(words)
    options.until = time.perf_counter() + options.seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.small:
        raise SystemExit("no GPU is here: --small runs tiny models on the CPU.")
    rows: list[dict] = []
    for name, method in itertools.product(options.models, options.methods):
        for row in Case(name, method == "lora", options, device).rows():
            if not rows:
                print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
            print("| " + " | ".join(str(row.get(column, "")) for column in COLUMNS) + " |", flush=True)
            rows.append(row)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if device.type == "cuda":
        print(f"\n{torch.cuda.get_device_name(device)}, torch {torch.__version__}, diffusers {diffusers.__version__}")
    return rows


if __name__ == "__main__":
    main()
