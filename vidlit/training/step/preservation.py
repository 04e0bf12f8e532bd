"""Preservation: at captions without the subject, the trained model goes on predicting what its base predicts.

The clips' own noisy latents are shown with another caption, so that no further clips are needed: what ai-toolkit calls
differential output preservation. DreamBooth's prior preservation (https://arxiv.org/abs/2208.12242) samples clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidlit.diffusion.caption_dropout import drop_captions
from vidlit.diffusion.loss import noisy_inputs, velocity_errors
from vidlit.diffusion.noising import keyed_generator
from vidlit.diffusion.streams import Given, by_stream
from vidlit.errors import UserError

if TYPE_CHECKING:
    from vidlit.diffusion.batch import LatentBatch
    from vidlit.diffusion.loss import VelocityModel
    from vidlit.diffusion.rectified_flow import RectifiedFlow
    from vidlit.training.module import VideoDiffusionModule


@dataclass
class Preservation:
    """Keeps a LoRA from changing what the model does at captions without its subject.

    Captions that drift is measured at are held out, where as many others are left: at captions that it trains on, drift
    would tell how well it trains.

    Args:
        captions: captions without the subject, such as ``a woman walks down a street`` where a clip's has a name for
            the woman; or a text file with one a line.
        weight: weight of this loss, a mean squared distance of velocities, beside the denoising loss.
        share: share of the training steps that carry it, above 0; such a step costs about 2.3 times as much.

    Raises:
        UserError: an option is out of range, or there are no captions.
    """

    captions: list[str] | Path
    weight: float = 1.0
    share: float = 0.5
    texts: list[str] = field(init=False, repr=False)
    """The captions, read once: a run goes on with them whatever becomes of the file."""
    held_out: Sequence[str] = field(init=False, default=())
    """Captions to leave to drift."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"model.preservation.weight is {self.weight:g}: it must be above 0.")
        if not 0 < self.share <= 1:
            raise UserError(f"model.preservation.share is {self.share:g}: it must be above 0 and at most 1.")
        self.texts = read_captions(self.captions)
        if not self.texts:
            raise UserError("model.preservation.captions is empty: name at least one caption without the subject.")

    @property
    def trained(self) -> list[str]:
        """The captions that steps draw from."""
        others = [caption for caption in self.texts if caption not in self.held_out]
        return others if len(others) >= len(self.held_out) else self.texts

    def check(self, has_adapter: bool) -> None:
        """Refuse a model that cannot be its own base.

        Raises:
            UserError: it has no adapter.
        """
        if not has_adapter:
            raise UserError(
                "model.preservation compares with the base, which is the model with its LoRA switched off: set "
                "model.adapter. Without one, a second copy of all weights would be needed."
            )

    def draw(self, seed: int, position: int, rows: Sequence[int]) -> list[str]:
        """Captions of a batch's rows: a function of (seed, position, row); none where the step does not carry it.

        Whether it does is one draw for all ranks, for all of them must make as many calls.
        """
        generator = keyed_generator("preservation", seed, position)
        if float(torch.rand(1, generator=generator)) >= self.share:
            return []
        captions = self.trained
        numbers = torch.randint(len(captions), (rows[-1] + 1,), generator=generator)
        return [captions[number] for number in numbers[list(rows)].tolist()]

    def loss(
        self,
        module: VideoDiffusionModule,
        model: VelocityModel,
        noising: RectifiedFlow,
        batch: LatentBatch,
        noise: Given,
        sigmas: Given,
        position: int,
        rows: Sequence[int],
    ) -> Tensor | float:
        """What a training step adds: the weighted mean squared distance to the base's velocity; 0 in most others.

        Args:
            module: that is trained.
            model: the same, as the expert that the step trains.
            noising: the forward process.
            batch: B clips of one resolution.
            noise: of the step; see :func:`vidlit.diffusion.loss.denoising_loss`.
            sigmas: of the step.
            position: of the batch in the run.
            rows: of its samples in the global batch.
        """
        drawn = self.draw(module.seed, position, rows)
        if not drawn:
            return 0.0
        conditioning = batch.conditioning
        for caption in sorted(set(drawn)):
            at = torch.tensor([each == caption for each in drawn])
            conditioning = drop_captions(conditioning, module.prompt(caption), at)
        given = noisy_inputs(noising, batch._replace(conditioning=conditioning), noise, sigmas)
        with torch.no_grad(), module.base_only():
            wanted = by_stream(model(*given))
        targets = {name: velocity.float() for name, velocity in wanted.items()}
        errors = velocity_errors(noising, by_stream(model(*given)), targets, sigmas)
        return self.weight * torch.stack([each.mean() for each in errors.values()]).sum()


def read_captions(captions: Sequence[str] | str | Path) -> list[str]:
    """Captions as they are, or the lines of a text file that are not empty.

    Raises:
        UserError: the file cannot be read as text.
    """
    if not isinstance(captions, str | Path):
        return list(captions)
    try:
        text = Path(captions).read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"the captions in {captions} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{captions} is no text file of captions: it is not UTF-8.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
