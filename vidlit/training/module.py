"""The LightningModule: a denoising transformer, its loss, its optimizer, little else."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from vidlit.diffusion.batch import Conditioning, LatentBatch, PromptBatch
from vidlit.diffusion.conditions import Condition, GivenFrames, of_own_frames, reads_references
from vidlit.diffusion.generate import generate
from vidlit.diffusion.noising import Noise, num_positions, start_noise
from vidlit.diffusion.streams import LATENTS, Given, by_stream
from vidlit.lightning_internals import datamodule_of, is_attached, settle_ddp
from vidlit.models.adapters import LoRA, LoRAFile, choose_trained, without_adapter
from vidlit.models.base_folder import read_config
from vidlit.models.device_memory import free_memory
from vidlit.models.family import open_family
from vidlit.models.parts import AudioChoice, ExpertChoice, chosen_parts, cut_to
from vidlit.training.averaging import EMA, AveragedWeights
from vidlit.training.blocks.attention import Kernel, prefer_kernel
from vidlit.training.blocks.context_parallel import split_context
from vidlit.training.blocks.sharding import shard
from vidlit.training.expert_weights import ExpertWeights
from vidlit.training.fit_check import check_checkpoint, check_shards, describe
from vidlit.training.memory import Memory
from vidlit.training.optimizers import apply_changes, hyperparameters, is_schedule_free, release, unscale, with_warmup
from vidlit.training.option_check import check_devices, check_options
from vidlit.training.step.gradients import BadStepPolicy, clip_gradients, gradient_norm, leave_out_bad
from vidlit.training.step.numbers import StepNumbers
from vidlit.training.step.objective import check_losses, training_loss
from vidlit.training.step.open_parts import TURN, OpenParts
from vidlit.training.step.preservation import Preservation

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler


class VideoDiffusionModule(LightningModule):
    r"""Fine-tunes the denoising transformer of a base on latents.

    Args:
        base: diffusers folder or hub name of the model to fine-tune.
        adapter: size of the LoRA to train; ``None`` to train the weights themselves.
        layers: pattern for the modules to train without an adapter, matched against whole names, e.g.
            ``transformer_blocks\.\d+\.attn1``; ``None`` for all.
        ema: moving average of the trained weights, used by validation, samples and export; ``None`` for no average.
        optimizer: optimizer, called with the trainable parameters and their names.
        lr_scheduler: learning-rate schedule, called with the optimizer and stepped after each optimizer step once the
            warm-up is over; ``None`` for a constant rate.
        warmup_steps: number of optimizer steps over which the learning rate rises linearly to its value; 0 for none.
        caption_dropout: share of the training samples whose caption is replaced by the empty one, so that guidance
            keeps working.
        preservation: captions at which a LoRA shall change nothing; ``None`` for none.
        noise: noise in training, and the noise levels at which clips are scored.
        conditions: latent frames that shares of the samples are given without noise, in training and validation alike,
            and samples start from where these are all (LTX-2, LTX-Video, Wan 2.2 TI2V-5B); or a reference video for
            every sample (LTX-2). ``None`` for text to video alone.
        memory: options that make the model fit into memory, and run fast in what is left.
        attention: kernel of attention on a CUDA GPU, where it does: ``cudnn``, ``flash``, ``flash3`` (the package
            flash-attn-3), ``efficient``, ``math``; or ``auto``, the one measured quickest for card and head size.
        expert: transformer to train of a base with one for high and one for low noise (Wan 2.2 A14B): ``high``, ``low``
            or ``both``. Trained together they take turns, and each is judged and kept by itself.
        bad_steps: treatment of steps whose loss or gradient is NaN or infinite.
        fps: frame rate of the clips; ``None`` for the family's own.
        audio: sound of a base that makes some: ``on`` trains it with the video, ``only`` by itself; or ``off``.
        context_parallel: number of ranks that share a sample, each with a part of its tokens, for clips too long for
            one GPU (Wan). The others of a number of ranks work on other samples.
        seed: seed of noise and sigmas, in training and validation.

    Raises:
        UserError: the base is no diffusers folder of a known family, takes no clean frames, or options
            contradict each other.
    """

    def __init__(
        self,
        base: str,
        adapter: LoRA | None = None,
        layers: str | None = None,
        ema: EMA | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        warmup_steps: int = 0,
        caption_dropout: float = 0.0,
        preservation: Preservation | None = None,
        noise: Noise = Noise(),  # noqa: B008 - frozen, as the two below
        conditions: list[Condition] | None = None,
        memory: Memory = Memory(),  # noqa: B008
        attention: Kernel = "auto",
        expert: ExpertChoice = "both",
        bad_steps: BadStepPolicy = BadStepPolicy(),  # noqa: B008
        fps: float | None = None,
        audio: AudioChoice = "off",
        context_parallel: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.base, self.family = base, open_family(base, fps, audio)
        self.adapter: LoRA | Mapping[str, LoRAFile] | None = adapter  # files, by the names of their experts
        self.layers = layers
        self.ema = ema
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.warmup_steps, self.caption_dropout = warmup_steps, caption_dropout
        self.preservation, self.context_parallel = preservation, context_parallel
        process = noise.process or self.family.noising()
        parts = cut_to(chosen_parts(self.family, expert), process)
        self.parts = OpenParts(parts, seed, TURN if memory.offload_experts else 1)
        levels = [level for part in parts for level in part.sigmas]
        self.noising = process.between(min(levels), max(levels))
        self.conditions, self.reads_references = of_own_frames(conditions), reads_references(conditions)
        self.num_strata, self.memory, self.bad_steps, self.seed = noise.num_strata, memory, bad_steps, seed
        self.attention, self._kernels = attention, ExitStack()
        self.is_schedule_free = is_schedule_free(optimizer)
        for name in self.expert_names:
            setattr(self, name, None)
        self.experts = ExpertWeights(self)
        self.averaged: AveragedWeights | None = None
        self._asked_numbers: list[dict[str, Any]] = []
        self._restored_numbers: list[dict[str, Any]] | None = None
        self.numbers = StepNumbers()
        self._no_prompt: Conditioning | None = None
        self.strict_loading = False  # a frozen base is not in the checkpoint; on_load_checkpoint checks the rest
        check_options(self)

    # -- the model

    def setup(self, stage: str) -> None:
        """Prefer an attention kernel from here on: backward passes ask for it, too."""
        self.teardown(stage)  # a run that failed has not
        config = read_config(self.family.base, self.expert_names[0])
        self._kernels = prefer_kernel(self.attention, config, self.trainer.strategy.root_device)

    def teardown(self, stage: str) -> None:
        """Leave torch's choice of kernels as it was."""
        self._kernels.close()

    def configure_model(self) -> None:
        """Load the transformer, once, when Lightning knows where it will live."""
        if self.is_loaded:
            return
        check_devices(self)
        self.load_base()
        training = is_attached(self) and self.trainer.state.fn == "fit"
        if training and (self.ema is not None or self.is_schedule_free):
            self.averaged = AveragedWeights(self.trainable_state())
        if training:
            settle_ddp(self.trainer, leaves_parameters=len(self.parts.parts) > 1)
            check_shards(self)

    def load_base(self) -> None:
        """Load the base's weights, and an untrained adapter where there is one; trained ones are gone first."""
        for name in self.expert_names:
            setattr(self, name, None)
        free_memory(self.device)
        for name in self.expert_names:
            setattr(self, name, self._load_expert(name))

    def _load_expert(self, name: str) -> nn.Module:
        transformer = self.experts.fresh(name)
        device = self.trainer.strategy.root_device if is_attached(self) else self.device
        whole, low = self.adapter is None and self.device_mesh is None, self._trains_in_bfloat16
        self.memory.apply(transformer, device, trains_in_bfloat16=low, trains_whole=whole)
        split_context(self, transformer)
        if self.device_mesh is not None:  # moves each block to its device when it is cut, never the whole model
            low_precision = self.trainer.precision == "bf16-mixed"
            shard(transformer, self.device_mesh, self.memory.base_dtype, low_precision=low_precision)
        return transformer.to(self.experts.device_of(name)).train()

    def adapter_of(self, expert: str) -> LoRA | LoRAFile | None:
        """The adapter of one of the base's transformers, by name; of files its own, if there is one."""
        return self.adapter.get(expert) if isinstance(self.adapter, Mapping) else self.adapter

    @property
    def _trains_in_bfloat16(self) -> bool:
        return is_attached(self) and self.trainer.precision == "bf16-true"

    @property
    def expert_names(self) -> list[str]:
        """Names of the base's transformers that are trained."""
        return list(dict.fromkeys(part.expert for part in self.parts.parts))

    @property
    def is_loaded(self) -> bool:
        """Whether the transformers are there."""
        return getattr(self, self.expert_names[0]) is not None

    @property
    def transformers(self) -> dict[str, nn.Module]:
        """The base's transformers that are trained, once they are loaded, by the names of the family's experts."""
        return {name: getattr(self, name) for name in self.expert_names}

    def forward(
        self, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning, expert: str | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Predicted velocity (B, C, F, H, W), or of each stream; see :class:`vidlit.diffusion.loss.VelocityModel`.

        ``expert`` names the transformer that is asked for all samples; without it each sample goes to its own.
        """
        # Frozen weights in fewer bits and trained ones in float32 meet in bfloat16.
        kept_small = self.memory.lowers_base or self._trains_in_bfloat16
        with torch.autocast(self.device.type, torch.bfloat16) if kept_small else nullcontext():
            return self.family.predict(self.experts, noisy, sigmas, conditioning, expert)

    # -- steps

    def training_step(self, batch: LatentBatch, batch_idx: int) -> dict[str, Tensor]:
        """Mean loss of a batch, by itself and with what is added; see :mod:`vidlit.training.step.objective`."""
        position = self.trainer.fit_loop.epoch_loop.total_batch_idx
        loss, added = training_loss(self, batch, position, position // self.trainer.accumulate_grad_batches)
        self.numbers.add(loss)
        return {"loss": loss + added}

    def prompt(self, caption: str) -> Conditioning:
        """A stored caption, as of one sample, on the device; the empty one, which steps ask for, stays there."""
        if not caption and self._no_prompt is not None:
            return self._no_prompt
        found: Conditioning = datamodule_of(self.trainer).prompt(caption).to(self.device)
        if not caption:
            self._no_prompt = found
        return found

    def base_only(self) -> AbstractContextManager[None]:
        """While it is open, a model with a LoRA is its base."""
        return without_adapter(self.transformers.values())

    def validation_step(self, batch: LatentBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Losses (B, num_strata) of every part; see :func:`vidlit.training.step.objective.check_losses`."""
        return check_losses(self, batch)

    def test_step(self, batch: LatentBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As :meth:`validation_step`; logs ``test/loss``, the mean over clips, strata and parts."""
        losses = self.validation_step(batch, batch_idx, dataloader_idx)
        scored = torch.cat([losses[part.name][batch.has(part.marker)] for part in self.parts.scored])
        mean, shared = scored.sum() / max(1, scored.numel()), self.trainer.world_size > 1
        self.log("test/loss", mean, batch_size=len(scored), on_epoch=True, sync_dist=shared)
        return losses

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Latents (B, ...) of each stream of prompts; the start noise is a function of a prompt's seed and number."""
        keys = list(zip(batch.seeds, batch.numbers, strict=True))
        starts = start_noise("predict", keys, self.family.stream_shapes(*batch.size))
        noise, null = {name: start.to(self.device) for name, start in starts.items()}, batch.null_conditioning
        return self.sample(noise, batch.conditioning, batch.num_steps, null, batch.guidance_scale, batch.given)

    @torch.no_grad()
    def sample(
        self,
        noise: Given,
        conditioning: Conditioning,
        num_steps: int,
        null_conditioning: Conditioning | None = None,
        guidance_scale: float = 1.0,
        given: GivenFrames | None = None,
    ) -> Given:
        """Walk from noise to latents (B, C, F, H, W), or those of each stream; see ``vidlit.diffusion.generate``.

        A distilled model is told the scale of guidance, and the negative prompt has no part.
        """
        picture = by_stream(noise)[LATENTS]
        if self.family.embeds_guidance:
            scale = torch.full((len(picture),), guidance_scale, device=picture.device)
            conditioning = conditioning.with_extras({"guidance": scale})
            null_conditioning, guidance_scale = None, 1.0
        scheduler = self.family.load_scheduler(num_steps, num_positions(picture.shape[1:]) + conditioning.num_given)
        was_training = self.training
        self.eval()
        latents = generate(self, scheduler, noise, conditioning, null_conditioning, guidance_scale, given)
        self.train(was_training)
        return latents

    # -- the optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over trainable parameters, with linear warm-up before the schedule."""
        optimizer = self.optimizer(list(self.trainable_state().items()))
        self._asked_numbers = hyperparameters(optimizer)
        schedule = with_warmup(optimizer, self.warmup_steps, self.lr_scheduler)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and leave the step out where the gradient is NaN or infinite, as it is where the loss was."""
        self.parts.drop_gradients(self.named_parameters())
        scaled = unscale(self.trainer, optimizer)  # float16's scaler sees to its own bad steps
        norm = gradient_norm(optimizer)
        reading = self.numbers.finish(norm, self.trainer, may_be_bad=not scaled)
        if not scaled:
            leave_out_bad(optimizer, norm, reading)
        clip_gradients(optimizer, norm, gradient_clip_val, gradient_clip_algorithm)

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient over all ranks, before it was clipped; asking waits for the device."""
        return self.numbers.last.grad_norm

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, and free the gradients: Lightning keeps them through the next forward pass, which needs the memory."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad(set_to_none=True)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move to a device, but for experts that wait on the CPU."""
        with self.experts.left_where_they_are():
            parent: Any = super()
            parent._apply(fn, recurse)
        return self

    def on_train_start(self) -> None:
        """Apply numbers of the optimizer that were changed since the checkpoint, which has brought its own along."""
        self.numbers, self._no_prompt = StepNumbers(), None  # a run before it may have ended within a step
        if self._restored_numbers is not None:
            schedules = [each.scheduler for each in self.trainer.lr_scheduler_configs]
            apply_changes(self.trainer.optimizers[0], schedules, self._restored_numbers, self._asked_numbers)
            self._restored_numbers = None

    def on_train_end(self) -> None:
        """Free the moments, which ``last.ckpt`` holds by now: Lightning would copy them to main memory."""
        self.refresh_average()
        release(self.trainer)

    def cpu(self) -> Self:
        """Move to main memory; not where Lightning's teardown asks for it: the weights are used where they are.

        They are exported and sampled from after that, and a copy of 20 GB takes seconds.
        """
        runs = is_attached(self) and self.trainer.state.stage is not None
        return self if runs else super().cpu()

    @property
    def schedule_free(self) -> Any:
        """The optimizer, where it is a schedule-free one: it has to be told when training begins."""
        optimizer: Any = self.trainer.optimizers[0]
        return optimizer if self.is_schedule_free else None

    def refresh_average(self) -> None:
        """Bring :attr:`averaged` up to date where a schedule-free optimizer holds the average."""
        attached = is_attached(self) and bool(self.trainer.optimizers)
        if self.averaged is not None and attached and self.schedule_free is not None:
            self.averaged.take_from_schedule_free(self.schedule_free)

    # -- what leaves

    def export(self, folder: Path) -> list[Path]:
        """Write what users take away; see :func:`vidlit.models.adapters.export_weights`. Every rank calls it.

        Returns:
            The files; none on other ranks than the first.
        """
        return self.experts.export(folder)

    def structure(self, expert: str = "transformer") -> nn.Module:
        """A transformer as it is trained, on the ``meta`` device: shapes without memory."""
        with torch.device("meta"):
            transformer = self.family.empty_transformer(expert)
            choose_trained(transformer, self.family, self.adapter_of(expert), self.layers, self.seed)
        return transformer

    # -- checkpoints

    def trainable_state(self) -> dict[str, nn.Parameter]:
        """Names and values of what training changes: the part of the weights that a checkpoint holds."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # of three overloads
        """Trained weights and their average; the frozen base is where it came from, and may be far larger."""
        self.refresh_average()
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in state.items() if name not in frozen}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what was trained, for when it does not fit, and with which numbers."""
        checkpoint["vidlit_model"] = describe(self.family, self.adapter, self.layers, self.ema)
        checkpoint["vidlit_optimizer"] = self._asked_numbers

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which weights do not fit before anything is loaded."""
        if not self.is_loaded:
            self.configure_model()
        self._restored_numbers = checkpoint.get("vidlit_optimizer")
        check_checkpoint(self, checkpoint)
