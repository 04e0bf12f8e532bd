"""The LightningModule: a denoising transformer, its loss, its optimizer, little else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from vidlit.data.batch import Conditioning, LatentBatch, PromptBatch
from vidlit.diffusion.generate import generate
from vidlit.diffusion.loss import denoising_loss, paired_losses
from vidlit.diffusion.noising import RectifiedFlow, keyed_generator, without_first_frame
from vidlit.errors import UserError
from vidlit.models.adapters import LoRA, LoRAFile, export_weights
from vidlit.models.family import open_family

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler


class VideoDiffusionModule(LightningModule):
    """Fine-tunes the denoising transformer of a base on latents.

    Args:
        base: diffusers folder or hub name of the model to start from.
        noising: the forward process and how training draws its sigmas; ``None`` takes the family's own.
        adapter: train a LoRA of this size; ``None`` trains all weights.
        optimizer: called with the trainable parameters.
        lr_scheduler: called with the optimizer and stepped after each optimizer step once the warm-up is over;
            ``None`` keeps the rate constant.
        warmup_steps: optimizer steps over which the learning rate rises linearly to its value; 0 for none.
        num_strata: noise levels at which each held-out clip is scored at every check.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        fps: frames per second of the clips; ``None`` takes the family's own.
        first_frame: share of the training samples that are given their first latent frame without noise and learn to
            go on from it, for families that can (LTX-Video, Wan 2.2 TI2V-5B). Held-out clips are scored with the same
            share, always the same ones at the same noise levels. At 1 the model is image-to-video alone: its samples
            start from their clip's first frame; below 1 they start from noise.
        seed: of noise and sigmas, in training and validation.

    Raises:
        UserError: the base is no diffusers folder of a known family, or does not take a first frame.
    """

    def __init__(
        self,
        base: str,
        noising: RectifiedFlow | None = None,
        adapter: LoRA | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        warmup_steps: int = 0,
        num_strata: int = 4,
        gradient_checkpointing: bool = False,
        fps: float | None = None,
        first_frame: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.base = base
        self.family = open_family(base, fps)
        self.noising = noising or self.family.noising()
        self.adapter: LoRA | LoRAFile | None = adapter
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.warmup_steps = warmup_steps
        self.num_strata = num_strata
        self.gradient_checkpointing = gradient_checkpointing
        self.first_frame = first_frame
        self.seed = seed
        if first_frame and not self.family.takes_first_frame:
            raise UserError(
                f"model.first_frame is {first_frame:g}, but {base} takes no frame without noise: of the families here "
                "LTX-Video and Wan 2.2 TI2V-5B do. An image-to-video base is always given its first frame."
            )
        if not 0 <= first_frame <= 1:
            raise UserError(f"model.first_frame is {first_frame:g}: it is a share, from 0 to 1.")
        self.transformer: nn.Module | None = None
        self.strict_loading = False  # a frozen base is not in the checkpoint; on_load_checkpoint checks the rest

    def configure_model(self) -> None:
        """Load the transformer, once, when Lightning knows where it will live."""
        if self.transformer is None:
            self.load_base()

    def load_base(self) -> None:
        """Load the base's weights, and an untrained adapter where there is one; also over trained ones."""
        self.transformer = self.family.load_transformer()
        if self.adapter is not None:
            # Fresh adapter weights are the only ones drawn here: keyed, so that they do not depend on what ran before.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(keyed_generator("adapter", self.seed).initial_seed())
                self.adapter.apply(self.transformer, self.family)
        if self.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()  # type: ignore[operator]
        self.transformer.to(self.device).train()

    def forward(self, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """Predicted velocity (B, C, F, H, W); see :class:`vidlit.diffusion.loss.VelocityModel`."""
        assert self.transformer is not None
        return self.family.velocity(self.transformer, noisy, sigmas, conditioning)

    def training_step(self, batch: LatentBatch, batch_idx: int) -> Tensor:
        """Mean loss of a batch.

        Noise and sigma of a sample are a function of (seed, position in the run, its row in the global batch): no two
        ranks share noise, a resumed run draws the same, and so does one with the global batch spread over other ranks.
        """
        position = self.trainer.fit_loop.epoch_loop.total_batch_idx
        first_row = self.global_rank * len(batch.latents)
        rows = range(first_row, first_row + len(batch.latents))
        generators = [keyed_generator("train", self.seed, position, row, device=self.device) for row in rows]
        noising = self.noising.at(batch.latents[0, 0].numel())
        sigmas = torch.cat([noising.sample_sigmas(1, generator) for generator in generators])
        if self.first_frame > 0:
            draws = torch.cat([torch.rand(1, generator=each, device=self.device) for each in generators])
            sigmas = without_first_frame(sigmas, draws < self.first_frame, batch.latents.shape[2])
        shape = batch.latents.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=each, device=self.device) for each in generators])
        loss = denoising_loss(self, noising, batch, noise, sigmas).mean()
        # Lightning counts logged steps from 0 and once per batch; "step" in the log overrides that.
        stepped = float(self.trainer.global_step + 1)
        shared = self.trainer.world_size > 1
        self.log_dict({"train/loss": loss, "step": stepped}, batch_size=len(noise), sync_dist=shared)
        return loss

    def validation_step(self, batch: LatentBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Losses (B, num_strata) at each clip's own noise and sigmas; callbacks reduce and log them."""
        return paired_losses(self, self.noising, batch, self.seed, self.num_strata, self.first_frame)

    def test_step(self, batch: LatentBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """As :meth:`validation_step`; logs ``test/loss``, the mean over clips and strata."""
        losses = self.validation_step(batch, batch_idx, dataloader_idx)
        shared = self.trainer.world_size > 1
        self.log("test/loss", losses.mean(), batch_size=len(losses), on_epoch=True, sync_dist=shared)
        return losses

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Latents (B, C, F, H, W) of prompts; the start noise of each is a function of its seed and number."""
        shape = self.family.latent_shape(*batch.size)
        keys = zip(batch.seeds, batch.numbers, strict=True)
        noise = torch.stack([torch.randn(shape, generator=keyed_generator("predict", *key)) for key in keys])
        return self.sample(
            noise.to(self.device), batch.conditioning, batch.num_steps, batch.null_conditioning, batch.guidance_scale
        )

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        num_steps: int,
        null_conditioning: Conditioning | None = None,
        guidance_scale: float = 1.0,
        first_frame: Tensor | None = None,
    ) -> Tensor:
        """Walk from noise to latents (B, C, F, H, W) on the family's schedule; see :func:`generate`."""
        scheduler = self.family.load_scheduler(num_steps, noise[0, 0].numel())
        was_training = self.training
        self.eval()
        latents = generate(self, scheduler, noise, conditioning, null_conditioning, guidance_scale, first_frame)
        self.train(was_training)
        return latents

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over trainable parameters, with linear warm-up before the schedule."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        schedules: list[Any] = []
        if self.warmup_steps > 0:
            first, last = 1 / self.warmup_steps, self.warmup_steps - 1
            schedules.append(torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=first, total_iters=last))
        if self.lr_scheduler is not None:
            schedules.append(self.lr_scheduler(optimizer))
        if not schedules:
            return optimizer
        if len(schedules) == 2:
            schedules = [torch.optim.lr_scheduler.SequentialLR(optimizer, schedules, milestones=[self.warmup_steps])]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedules[0], "interval": "step"}}

    def export(self, folder: Path) -> list[Path]:
        """Write what users take away; see :func:`vidlit.models.adapters.export_weights`."""
        assert self.transformer is not None
        return export_weights(self.family, self.transformer, folder)

    def trainable_state(self) -> dict[str, Tensor]:
        """Names and values of what training changes: the part of the weights that a checkpoint holds."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base out: it is where it came from, and may be a thousand times larger."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which weights do not fit before anything is loaded."""
        if self.transformer is None:
            self.configure_model()
        wanted = {name: tuple(value.shape) for name, value in self.trainable_state().items()}
        stored = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        wrong = sorted(name for name, shape in wanted.items() if stored.get(name) != shape)
        extra = sorted(name for name in stored if name not in self.state_dict())
        if wrong or extra:
            raise UserError(
                f"The checkpoint does not fit this model: {len(wrong)} of {len(wanted)} trained weights are missing or "
                f"of another shape ({', '.join(wrong[:3]) or 'none'}), {len(extra)} are unknown here "
                f"({', '.join(extra[:3]) or 'none'}). Use the base and adapter it was trained with."
            )
