"""Real-size transformers on one GPU, trained by a plain loop and by vidlit's module and Trainer, in one run.

    python benchmarks/gpu.py                         # LTX-Video 2B and Wan 2.1 1.3B, all weights and LoRA: 6 minutes
    python benchmarks/gpu.py --models ltx2 wan5b --methods lora
    python benchmarks/gpu.py --models wan --rows vidlit fit --cards 24 48     # as --fit-to chooses for such cards
    python benchmarks/gpu.py --small                 # tiny, on a CPU: does it run?

Weights are random and latents are noise: speed and memory do not depend on what they hold. Nothing but torch,
lightning, diffusers and peft is needed (torchao where 8 or 4 bits are chosen), and nothing is downloaded. The rows of
a model (`--rows`):

- plain, "plain loop": what public example scripts do: bfloat16 autocast, diffusers' gradient checkpointing of every
  block, AdamW as it comes, clipping, `loss.item()` at every step; for a LoRA the frozen weights are in bfloat16;
- tuned, "plain loop, tuned": the same without `loss.item()` and with all that vidlit's defaults are: compiled blocks,
  fused AdamW, the attention kernel, the same blocks recomputed, all but their attention;
- vidlit: `VideoDiffusionModule` under Lightning's Trainer with the options that ship, recomputing as few blocks as the
  forecast says that this GPU must; `--recompute` says otherwise;
- accumulated, "vidlit, 4 batches a step": where all weights of LTX-Video are trained, whose optimizer is a quarter of
  a step;
- float8, "vidlit, float8 products", where it is asked for: with `model.memory.float8_matmuls`, MFU of the same peak;
- fit, "vidlit, fit to 24 GB": the same with the options that `vidlit plan --fit-to 24GB` writes ("settings"), and no
  more memory than such a card has, whatever this one has. One row for cards for which it chooses alike.

ms: of a batch of one. MFU: operations that the model itself needs (recomputed ones do not count, so all rows do the
same work) over that time, as a share of the device's peak in bfloat16. Steps before `--warmup` are not measured; what
they took, compilation among it, is "first s". Memory is what was forecast of the steps, the most that tensors took
(allocated), by how much the forecast was off, and what the allocator took (reserved). Forecasts take 5 to 30 CPU
seconds a row of a model. Rows for which `--seconds` leave no time are left out, and named.
"""

import argparse
import gc
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import diffusers
import torch
import torch._dynamo
import yaml
from lightning.pytorch import Callback, Trainer

sys.path.insert(0, str(Path(__file__).parents[1]))  # from a checkout, without installing it

from benchmarks.memory_measured import foretold, off
from benchmarks.random_bases import BASES, TINY_SIZE, Clips, random_transformer, write_base
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.errors import UserError
from vidlit.forecast.before_fit import words
from vidlit.forecast.card import CONTEXT, GraphicsCard, card_here, parse_memory
from vidlit.forecast.memory_forecast import RunSetting
from vidlit.forecast.remedies import Option, fit_to, resolved
from vidlit.forecast.sample_shapes import prompt_shape
from vidlit.forecast.step_memory import CannotRunError
from vidlit.latents.quiet_lightning import BARE_TRAINER, quiet_lightning
from vidlit.models.adapters import LoRA
from vidlit.models.family import Family
from vidlit.training.blocks.attention import prefer_kernel
from vidlit.training.flops import flops_of_a_sample, peak_flops
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.peak_memory import peak_memory

RANK, ACCUMULATED = 32, 4
COLUMNS = ["model", "clip", "trains", "side", "ms", "MFU", "forecast GB", "allocated GB", "off", "reserved GB"]
COLUMNS += ["first s", "recomputed", "settings"]
SIDES = {
    "vidlit": "vidlit",
    "tuned": "plain loop, tuned",
    "plain": "plain loop",
    "accumulated": f"vidlit, {ACCUMULATED} batches a step",
    "float8": "vidlit, float8 products",
}


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
    trainer.fit(module, clips.loader(clock.device))


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
        for index, batch in enumerate(clips.loader(device)):
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
    folder: Path
    """of the base"""

    def rows(self) -> Iterator[dict]:
        """Of every side that is asked for."""
        base = BASES[self.name]
        write_base(self.folder, self.name, self.options.small)
        about = {"model": base.title, "clip": str(self.run.setting.bucket), "trains": "LoRA" if self.lora else "all"}
        for each in self.options.rows:
            if each == "accumulated" and (self.name != "ltx" or self.lora):
                continue
            title = SIDES.get(each, "vidlit, fit to " + " and ".join(map(str, self.options.cards)) + " GB")
            if time.perf_counter() > self.options.until:
                yield about | {"side": title, "ms": "left out: no time"}
            elif each == "fit":
                yield from (about | row for row in self.fitted())
            else:
                yield about | {"side": title} | self.side(each)

    @cached_property
    def run(self) -> Option:
        """Of the forecasts, which share the steps that they run."""
        size = TINY_SIZE if self.options.small else BASES[self.name].size
        recompute = {} if self.options.recompute is None else {"gradient_checkpointing": self.options.recompute}
        module = VideoDiffusionModule(
            str(self.folder),
            adapter=LoRA(rank=RANK, alpha=RANK) if self.lora else None,
            optimizer=partial(torch.optim.AdamW, lr=1e-4, fused=True),
            memory=Memory("bfloat16" if self.lora else "float32", **recompute),
        )
        return Option(module, RunSetting(size, clip_val=1.0, on_gpu=self.device.type == "cuda"), [size])

    @cached_property
    def shipped(self) -> Option:
        """With what is chosen for the device that is here."""
        card = card_here(self.device) if self.device.type == "cuda" else None
        try:
            with quiet_lightning():
                run = self.run if card is None else resolved(self.run, card.memory)
        except CannotRunError:
            run = self.run
        settled = run.module.memory.settled(self.device)
        return run.with_memory("", gradient_checkpointing=settled.gradient_checkpointing)

    def side(self, name: str) -> dict:
        """The row of one that is no card's."""
        accumulate, run = ACCUMULATED if name == "accumulated" else 1, self.shipped
        if name == "plain":
            return self.measured(partial(self.plain, None), 1)
        if name == "tuned":
            made = self.measured(partial(self.plain, run.module.memory.settled(self.device)), 1)
        else:
            run = run.with_memory("", float8_matmuls=name == "float8")
            made = self.measured(partial(self.vidlit, run, self.device, accumulate), accumulate)
        run = replace(run, setting=replace(run.setting, accumulate=accumulate))
        return with_forecast(made, run) | {"recomputed": run.module.memory.gradient_checkpointing}

    def fitted(self) -> Iterator[dict]:
        """Rows of what is chosen for smaller cards."""
        found: dict[str, tuple[Option, list[int]]] = {}
        for gigabytes in self.options.cards:
            memory = parse_memory(f"{gigabytes}GB").memory
            with quiet_lightning():
                run = fit_to(resolved(self.run, memory), memory)
            said = (
                words(run) if run.needs <= memory else f"does not fit: needs {run.needs / 1e9:.0f} GB with {words(run)}"
            )
            found.setdefault(said, (run, []))[1].append(gigabytes)
        for said, (run, cards) in found.items():
            card = parse_memory(f"{min(cards)}GB")
            row = {"side": f"vidlit, fit to {' and '.join(map(str, cards))} GB", "settings": said}
            if run.needs > card.memory:
                yield row | {"ms": f"does not fit: needs {run.needs / 1e9:.0f} GB"}
                continue
            if time.perf_counter() > self.options.until:
                yield row | {"ms": "left out: no time"}
                continue
            with no_more_than(card, self.device):
                made = self.measured(partial(self.vidlit, run, torch.device("cpu"), 1), 1)
            yield row | with_forecast(made, run) | {"recomputed": run.module.memory.gradient_checkpointing}

    def vidlit(self, run: Option, made_on: torch.device, accumulate: int, clips: Clips, clock: Clock) -> None:
        """Steps as a run makes them."""
        given = run.module
        module = VideoDiffusionModule(
            str(self.folder), adapter=given.adapter, optimizer=given.optimizer, memory=given.memory
        )
        module.family.load_transformer = partial(random_transformer, module.family, device=made_on)
        run_vidlit(module, clips, clock, self.folder, accumulate)

    def plain(self, memory: Memory | None, clips: Clips, clock: Clock) -> None:
        """Steps of a plain loop."""
        run_plain(self.run.module.family, self.lora, clips, clock, memory)

    def measured(self, train: Callable[[Clips, Clock], None], accumulate: int) -> dict:
        """A row's figures.

        Args:
            train: a batch for each of the clips.
            accumulate: batches of a step.
        """
        family = self.run.module.family
        clips = Clips(family.latent_shape(*self.run.setting.bucket), prompt_shape(family))
        flops = flops_of_a_sample(family, self.run.module.structure(), clips[0])  # as perf/mfu counts them
        warmup, steps = (accumulate * -(-number // accumulate) for number in (self.options.warmup, self.options.steps))
        clips.count, clock = warmup + steps, Clock(warmup, self.device)
        free(self.device)
        try:
            train(clips, clock)
        except torch.OutOfMemoryError:
            return {"ms": "out of memory"}
        except (UserError, ImportError) as error:  # without torchao
            return {"ms": str(error)}
        seconds = (clock.ended - clock.began) / clock.steps
        peak, on_gpu = peak_flops(self.device, low_precision=True), self.device.type == "cuda"
        return {
            "ms": round(1000 * seconds, 1),
            "MFU": f"{100 * flops / seconds / peak:.1f} %" if peak else "unknown device",
            "allocated GB": round(peak_memory(self.device) / 1e9, 2),
            "reserved GB": round(torch.cuda.max_memory_reserved(self.device) / 1e9, 2) if on_gpu else None,
            "first s": round(clock.first, 1),
        }


def with_forecast(row: dict, run: Option) -> dict:
    """A row with what was forecast of the steps of a run beside what they took."""
    try:
        with quiet_lightning():
            forecast = foretold(run.module, run.setting)
    except CannotRunError:
        return row
    row |= {"forecast GB": float(f"{forecast:.3g}")}
    if run.setting.on_gpu and "allocated GB" in row:  # a CPU's process has more in its memory than tensors
        row |= {"off": off(forecast, row["allocated GB"])}
    return row


@contextmanager
def no_more_than(card: GraphicsCard, device: torch.device) -> Iterator[None]:
    """While it is open, tensors get no more of a GPU than another card has."""
    if device.type != "cuda":
        yield
        return
    free(device)
    share = (card.memory - CONTEXT) / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


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
    parser.add_argument("--models", nargs="+", choices=list(BASES), default=["ltx", "wan"])
    parser.add_argument("--methods", nargs="+", choices=["lora", "full"], default=["full", "lora"])
    parser.add_argument("--steps", type=int, default=6, help="measured")
    parser.add_argument("--warmup", type=int, default=3, help="steps before, not measured; compilation falls in here")
    parser.add_argument("--recompute", type=share, help="of the blocks: true, false, a share; else as it ships")
    parser.add_argument("--rows", nargs="+", choices=[*SIDES, "fit"], default=list(SIDES)[:-1], help="of each model")
    parser.add_argument("--cards", nargs="+", type=int, default=[24, 48, 80], help="GB of those that rows are fit to")
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
        with tempfile.TemporaryDirectory() as folder:
            for row in Case(name, method == "lora", options, device, Path(folder)).rows():
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
