"""The options of ``vidlit predict``, and what Lightning's prediction loop is given for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vidlit.data.datamodule import LatentDataModule
from vidlit.errors import UserError
from vidlit.models.adapters import LORA_NAME, lora_files, of_experts
from vidlit.runs.directory import RunDirectory
from vidlit.sampling.prediction_writer import PredictionWriter, Weights
from vidlit.sampling.prompts import PromptDataModule, read_prompts
from vidlit.sampling.sampler import Sampling
from vidlit.training.module import VideoDiffusionModule
from vidlit.video.buckets import Bucket


@dataclass(frozen=True)
class Predict:
    """Videos for prompts, with the weights of a checkpoint (``--ckpt_path``), a LoRA file, or the base itself.

    Steps, seed and guidance are those of ``--samples``. The start noise of a video is a function of its seed and its
    place in the list: not of batches, ranks or other prompts.

    Args:
        prompts: text file (one prompt per line), CSV file (``prompt``, and ``seed``, ``resolution`` as
            HEIGHTxWIDTH, ``num_frames`` where rows differ, ``image`` and ``last_image`` for a first and a last frame),
            prompt in quotes, or list of these.
        output: folder for an mp4 and a JSON file per prompt.
        lora: LoRA file, of this project or another, or the folder or run with it, or with one for each expert. A file
            that does not say of which expert it is belongs to that of ``model.expert``.
        size: size of videos whose prompt names none, as FRAMESxHEIGHTxWIDTH; ``None`` for the largest of
            ``data.buckets``.
        batch_size: number of videos sampled at once.
        overwrite: whether to replace existing files.
    """

    prompts: str | list[str] | None = None
    output: Path = Path("predictions")
    lora: Path | None = None
    size: str | None = None
    batch_size: int = 1
    overwrite: bool = False

    def prepare(
        self, module: VideoDiffusionModule, data: LatentDataModule, sampling: Sampling, checkpoint: str | None
    ) -> tuple[PromptDataModule, PredictionWriter]:
        """Read the prompts and tell the module of its LoRA.

        Args:
            module: to sample from.
            data: whose buckets are the usual sizes.
            sampling: steps, seed and guidance.
            checkpoint: that the trainer will load; ``None`` for none.

        Raises:
            UserError: there is no prompt, a file cannot be read or is there already, or two weights are asked for.
        """
        size = Bucket.parse(self.size) if self.size else max(data.buckets, key=lambda bucket: bucket.tokens(1, 1))
        sources = [self.prompts] if isinstance(self.prompts, str) else self.prompts or []
        prompts = read_prompts(sources, sampling.seed, size)
        weights = self._weights(module, checkpoint)
        writer = PredictionWriter(self.output, prompts, sampling, weights, self.overwrite)
        if self.batch_size < 1:
            raise UserError(f"--batch_size is {self.batch_size}: it must be at least 1.")
        loader = PromptDataModule(
            module.family,
            prompts,
            sampling.num_steps,
            sampling.guidance_scale,
            sampling.negative_prompt,
            self.batch_size,
            conditions=module.conditions,
            with_references=module.reads_references,
        )
        return loader, writer

    def _weights(self, module: VideoDiffusionModule, checkpoint: str | None) -> Weights:
        if self.lora is None:
            if checkpoint is None:
                module.adapter = None  # an untrained one changes nothing
            return Weights(checkpoint or module.base, [Path(checkpoint)] if checkpoint else [])
        if checkpoint is not None:
            raise UserError("--ckpt_path and --lora are both given: name the weights of one.")
        files = lora_files(RunDirectory(self.lora).weights, self.lora)
        if not files:
            what = "no such file" if not self.lora.exists() else f"no {LORA_NAME}.safetensors or {LORA_NAME}_* is there"
            raise UserError(f"--lora {self.lora}: {what}.")
        chosen = module.expert_names[0] if len(module.expert_names) == 1 else None
        module.adapter = of_experts(module.family, files, chosen)
        paths = [file.path for file in files]
        return Weights(", ".join(map(str, paths)), paths)
