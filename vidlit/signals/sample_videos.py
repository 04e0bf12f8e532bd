"""Sample videos: audited while training for copies and diversity, and made from the kept weights at the end."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from vidlit.diffusion.streams import LATENTS
from vidlit.metrics.quality import Quality
from vidlit.models.features import FeatureExtractor, LatentFeatures
from vidlit.runs.logged_names import AUDIT_SHARE
from vidlit.sampling.audit import Audit, one_a_caption
from vidlit.sampling.own_prompts import OwnPrompts
from vidlit.sampling.rendering import load_decoder, write_samples
from vidlit.sampling.sampler import Sampling, own_randomness, sample_clips
from vidlit.signals.overfit_stopping import OverfitStopping
from vidlit.signals.signal import Signal
from vidlit.stopping.schedule import TRAINING_EVALUATIONS, audit_evaluations, audit_interval
from vidlit.stopping.verdict import Verdict
from vidlit.training.peak_memory import not_counted
from vidlit.training.run_callback import RunCallback

if TYPE_CHECKING:
    from vidlit.data.datamodule import LatentDataModule
    from vidlit.video.sources import Clip


class SampleVideos(RunCallback):
    """Generates videos with fixed prompts and noise, to detect copies and lost diversity, and to watch.

    An audit generates ``num_audit`` clips, half from training and half from validation captions, at step 0 and then as
    often as ``max_share`` allows; logs ``copies/count``, ``copies/gap``, ``copies/ratio_min``, ``diversity/log_ratio``
    and ``perf/audit_share`` (of the time); and writes them to ``samples/step_XXXXXX/audit_*.mp4``. When training is
    over, a few videos from captions of validation clips follow (of training clips where there are none), made with
    the weights that are kept. ``prompts`` of your own are sampled at each audit and at the end, into
    ``samples/step_XXXXXX/prompt_*.mp4``, with the steps, seed and guidance of the end: as ``vidlit predict`` would.

    All are written with a JSON file beside each, and shown in W&B, TensorBoard and MLflow where these are used. The
    start noise is keyed by (seed, clip), so two runs, or two steps of one, can be compared side by side. ``vidlit
    predict`` uses these steps, seed and guidance, too.

    Args:
        num_videos: number of videos sampled at the end of training; 0 for none.
        num_steps: number of denoising steps.
        seed: seed of the starting noise.
        guidance_scale: scale of guidance away from the negative prompt, at twice the cost; 1 for none.
        negative_prompt: prompt that guidance steers away from; the empty prompt by default.
        num_audit: number of samples in an audit: 16, of eight training and eight validation prompts, tell copies
            reliably; 0 for no audits. Where only the sound is trained there are none: they look at the picture.
        audit_steps: number of denoising steps in an audit; few are enough, as its samples are only compared and
            memorised clips appear in few steps.
        every_num_checks: number of checks from one audit to the next; ``None`` for as many audits as ``max_share``
            allows, but at least two.
        max_share: largest share of the cost of training that audits may add.
        features: features that ``metrics`` compare by; ``None`` for latents.
        metrics: distances between an audit's samples and the training clips to log as ``quality/<name>``: ``fid``,
            ``kid``, ``mifid``. They have no say in stopping, and mean little below hundreds of samples (``num_audit``).
        prompts: file of your own prompts: text with one a line, or CSV as ``vidlit predict`` reads it; ``None`` for
            none. They count in ``max_share``.
    """

    section = "samples"

    def __init__(
        self,
        num_videos: int = 4,
        num_steps: int = 30,
        seed: int = 0,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        num_audit: int = 16,
        audit_steps: int = 6,
        every_num_checks: int | None = None,
        max_share: float = 0.1,
        features: FeatureExtractor | None = None,
        metrics: list[Quality] | None = None,
        prompts: Path | None = None,
    ) -> None:
        self.num_videos = num_videos
        self.sampling = Sampling(num_steps, seed, guidance_scale, negative_prompt)
        self.num_audit = num_audit
        self.audit_steps = audit_steps
        self.every_num_checks = every_num_checks
        self.max_share = max_share
        self.features = features or LatentFeatures()
        self.metrics = metrics or []
        self.prompts = prompts
        self.audit: Audit | None = None
        self.own: OwnPrompts | None = None
        """The user's prompts."""
        self._last = 0
        """Step of the latest audit."""
        self._interval: int | None = None
        """Optimizer steps between audits, where checks are not counted."""
        self._checks = 0
        self._audit_seconds = 0.0
        self._start_time = time.monotonic()

    def signals(self) -> list[Signal]:
        """The callbacks that judge what the audits find; none without audits."""
        if not self.num_audit:
            return []
        return [CopiesSignal(self), DiversitySignal(self)]

    def make_audit(self, datamodule: LatentDataModule, held_out: Sequence[Clip] | None = None) -> Audit | None:
        """An audit as these options say; none with ``num_audit`` 0, or where the picture, which it looks at, stays.

        Args:
            datamodule: training clips and the latents of all.
            held_out: clips that were not trained on; ``None`` for the validation clips.
        """
        if not self.num_audit or all(part.stream != LATENTS for part in datamodule.family.parts):
            return None
        # Unguided: what a model has memorised shows as well, at half the cost. A distilled model is told its scale.
        scale = self.sampling.guidance_scale if datamodule.family.embeds_guidance else 1.0
        sampling = replace(self.sampling, num_steps=self.audit_steps, guidance_scale=scale)
        return Audit(datamodule, self.features, self.num_audit, sampling, self.metrics, held_out)

    # -- while training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the prompts."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.audit = self.make_audit(self.data)
            if self.prompts is not None:
                device = trainer.strategy.root_device
                self.own = OwnPrompts(self.prompts, self.sampling, self.module, self.data, device)
            self._start_time = time.monotonic()

    def on_validation_epoch_end(self, *_: Any) -> None:
        """Audit where one is due: before ``OverfitStopping`` asks, which it does when validation has ended."""
        if (self.audit is None and self.own is None) or self.trainer.state.fn != "fit":
            return
        if not self.trainer.sanity_checking and not self._is_due():
            return
        began = time.monotonic()
        step = self._last = self.trainer.global_step
        numbers: dict[str, float] = {}
        with not_counted(self.module.device):
            if self.audit is not None:
                self.audit.prepare(self.trainer, self.module)
                self.audit.run(self.trainer, self.module, step, self.run.samples(step))
                numbers = self.audit.numbers()
            if self.own is not None:
                self.own.sample(self.trainer, step, self.run.samples(step))
        self._audit_seconds += time.monotonic() - began
        if self.trainer.sanity_checking:  # self.log is off then
            for logger in self.trainer.loggers if numbers else ():
                logger.log_metrics(numbers, step=0)
            return
        share = self._audit_seconds / (time.monotonic() - self._start_time)
        self.module.log_dict(
            {**numbers, AUDIT_SHARE.name: share, "step": float(self.trainer.global_step)},
            batch_size=1,
            rank_zero_only=False,
        )

    def _is_due(self) -> bool:
        """At the first check at or after each multiple of the interval, which is chosen once, from counts alone."""
        self._checks += 1
        if self.every_num_checks is not None:
            return self._checks % self.every_num_checks == 0
        if self._interval is None:
            samples = self.data.samples_per_batch * self.trainer.accumulate_grad_batches
            cost = audit_evaluations(self.num_audit, self.audit_steps) if self.audit is not None else 0.0
            self._interval = audit_interval(
                cost + (self.own.evaluations() if self.own is not None else 0.0),
                TRAINING_EVALUATIONS * samples,
                self.trainer.max_steps,
                self.max_share,
            )
        return self.trainer.global_step // self._interval > self._last // self._interval

    def sample_now(self) -> bool:
        """Sample what audits do, and the user's prompts, with the weights as they are; nothing is judged or remembered.

        Returns:
            Whether there was anything to sample.
        """
        step, folder = self.trainer.global_step, self.run.samples(self.trainer.global_step)
        with not_counted(self.module.device):
            if self.audit is not None:
                self.audit.show(self.trainer, self.module, step, folder)
            elif self.num_videos > 0:
                self._sample_clips(step)
            if self.own is not None:
                self.own.sample(self.trainer, step, folder)
        return self.audit is not None or self.num_videos > 0 or self.own is not None

    # -- when it is over

    def on_fit_end(self, *_: Any) -> None:
        """Sample with the weights that are kept."""
        kept_step = next((each.kept_step for each in self.others(OverfitStopping)), self.trainer.global_step)
        with not_counted(self.module.device):
            if self.num_videos > 0:
                self._sample_clips(kept_step)
            if self.own is not None:
                self.own.sample(self.trainer, kept_step, self.run.samples(kept_step))

    def _sample_clips(self, kept_step: int) -> None:
        """Sample captions of validation clips, and write them."""
        clips = one_a_caption(self.data.val_clips or self.data.train_clips)[: self.num_videos]
        with own_randomness(self.module.device):
            family, device = self.module.family, self.module.device
            vae, decode_sound = load_decoder(self.module), family.load_sound_decoder(device)
            samples = sample_clips(
                self.trainer,
                self.module,
                self.data,
                clips,
                self.sampling,
                kept_step,
                vae,
                decode_sound=decode_sound,
            )
        if self.trainer.is_global_zero:
            write_samples(self.run.samples(kept_step), samples, self.module.family.fps)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to audit and judge as the uninterrupted one."""
        if self.audit is None and self.own is None:
            return {}
        audit = {} if self.audit is None else self.audit.state_dict()
        return {**audit, "checks": self._checks, "interval": self._interval, "last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; an interval that was set holds over one that was chosen."""
        if not state_dict:
            return
        if self.audit is not None:
            self.audit.load_state_dict(state_dict)
        self._checks, self._interval = state_dict["checks"], state_dict["interval"]
        audited = state_dict.get("steps") or [0]
        self._last = state_dict.get("last", audited[-1])  # earlier versions say the steps alone


class SampleSignal(Signal):
    """One judgement of what the audits of :class:`SampleVideos` found; between audits it stays.

    Args:
        samples: whose audits.
    """

    def __init__(self, samples: SampleVideos) -> None:
        self.samples = samples

    def verdict(self) -> Verdict:
        """Of the latest audit."""
        if self.samples.audit is None:
            return Verdict(self.name, "continue", "Nothing is audited: training leaves the picture as it is.")
        return self.judge(self.samples.audit)

    @abstractmethod
    def judge(self, audit: Audit) -> Verdict:
        """What it says of the audits so far."""


class CopiesSignal(SampleSignal):
    """Are samples copies of training clips?"""

    name = "copies"
    section = ""  # SampleVideos makes it
    title = "copies"
    judges = "whether samples are copies of training clips"
    because = "samples came too near to training clips"

    def judge(self, audit: Audit) -> Verdict:
        """See :meth:`Audit.copies`."""
        return audit.copies()


class DiversitySignal(SampleSignal):
    """Do samples grow alike?"""

    name = "diversity"
    section = ""  # SampleVideos makes it
    title = "lost diversity"
    judges = "how different samples are from each other"
    because = "samples grew alike"

    def judge(self, audit: Audit) -> Verdict:
        """See :meth:`Audit.diversity`."""
        return audit.diversity()
