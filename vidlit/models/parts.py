"""What of a model is judged, kept and stopped by itself: an expert, or a stream with the layers that make it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vidlit.diffusion.batch import take
from vidlit.diffusion.noising import level_of_sample
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.diffusion.streams import LATENTS, Stream
from vidlit.errors import UserError

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning
    from vidlit.models.family import Family

AudioChoice = Literal["off", "on", "only"] | bool
"""Whether sound is denoised with the video, and whether it alone is trained; YAML reads ``on`` and ``off`` as bools."""
WHOLE = "all"
"""Name of the one part of most models."""
ExpertChoice = Literal["high", "low", "both"]
"""Which of a base's experts are trained."""


@dataclass(frozen=True)
class Expert:
    """One of a base's transformers, which has noise levels of its own.

    Args:
        name: of its folder in the base, and of its attribute in pipelines and in the module.
        min_sigma: lowest sigma that it is asked at; below it is the next expert's turn.
        title: what people call it.
    """

    name: str = "transformer"
    min_sigma: float = 0.0
    title: str = ""


@dataclass(frozen=True)
class Part:
    """A part of a model with a validation curve, a verdict and a best step of its own.

    Args:
        name: what people call it: ``high``, ``low``; ``video``, ``audio``; ``all`` for a model of one part.
        stream: whose loss trains and scores it.
        loss_weight: of that loss in training.
        sigmas: lowest and highest noise level that it is trained and scored at.
        expert: name of the transformer that it is or belongs to.
        weights: pattern that finds the names of the module's parameters that are its own.
        marker: name of the clip extra (B, 1) that is 0 where a clip is no example for it; none where all are.
    """

    name: str = WHOLE
    stream: str = LATENTS
    loss_weight: float = 1.0
    sigmas: tuple[float, float] = (0.0, 1.0)
    expert: str = "transformer"
    weights: str = ""
    marker: str = ""

    def owns(self, parameter: str) -> bool:
        """Whether a parameter of the module, by its name, is one of its own."""
        return re.search(self.weights, parameter) is not None


def parts_of(experts: Sequence[Expert], streams: Sequence[Stream]) -> tuple[Part, ...]:
    """The parts of a model, in the order of its experts or its streams.

    Args:
        experts: from the one for most noise to the one for least.
        streams: the picture first.
    """
    if len(experts) > 1:
        tops = (1.0, *(expert.min_sigma for expert in experts))
        return tuple(
            Part(
                expert.title or expert.name,
                sigmas=(expert.min_sigma, top),
                expert=expert.name,
                weights=rf"^(averaged\.)?{expert.name}[./]",
            )
            for expert, top in zip(experts, tops, strict=False)
        )
    if len(streams) > 1:
        others = "|".join(f"({stream.weights})" for stream in streams[1:])
        patterns = (rf"^(?!.*({others}))", *(stream.weights for stream in streams[1:]))
        return tuple(
            Part(stream.title or stream.name, stream.name, stream.loss_weight, weights=pattern, marker=stream.marker)
            for stream, pattern in zip(streams, patterns, strict=True)
        )
    return (Part(),)


class Call(NamedTuple):
    """One call of a transformer for some samples of a batch."""

    expert: str
    """Its name."""
    prompt_length: int
    """Tokens of a prompt that it is given."""
    number: int
    """Tells calls apart that must not be joined."""


def rows_by_call(
    experts: Sequence[Expert], sigmas: Tensor, conditioning: Conditioning, only: str | None, *, by_length: bool
) -> dict[Call, list[int]]:
    """Which samples of a batch go through a transformer together.

    Args:
        experts: of the base.
        sigmas: (B,), or (B, F): a sample belongs to the expert of its noisiest frame.
        conditioning: of B samples.
        only: name of the expert that is asked for all of them; ``None`` for each sample's own.
        by_length: prompts of other lengths go by themselves, without their padding.
    """
    chosen = [only] * len(sigmas)
    if only is None:
        # In the sigmas' own dtype: in float32 timestep 900 is a sigma below .9, and pipelines give it to the first.
        lowest = torch.tensor([each.min_sigma for each in experts], dtype=sigmas.dtype).tolist()
        turns = [(each.name, low) for each, low in zip(experts, lowest, strict=True)]
        chosen = [next(name for name, low in turns if sigma >= low) for sigma in level_of_sample(sigmas).tolist()]
    lengths = conditioning.prompt_lengths if by_length else [conditioning.prompt_embeds.shape[1]] * len(sigmas)
    # Other ranks train beside this one, and all must make as many calls: each gathers sharded weights.
    peers = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    calls: dict[Call, list[int]] = {}
    for row, (expert, length) in enumerate(zip(chosen, lengths, strict=True)):
        calls.setdefault(Call(str(expert), length, row if peers else 0), []).append(row)
    return calls


def in_order(rows: Sequence[Sequence[int]], made: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What several calls made of some rows each (by stream), as one batch in its own order."""
    if len(made) == 1:
        return dict(made[0])
    places = [row for call in rows for row in call]
    order = sorted(range(len(places)), key=places.__getitem__)
    return {name: take(torch.cat([each[name] for each in made]), order) for name in made[0]}


def chosen_parts(family: Family, expert: ExpertChoice) -> tuple[Part, ...]:
    """The parts of a base's model that are trained.

    Args:
        family: of the base.
        expert: which of its experts; ``both`` is all there is of any base.

    Raises:
        UserError: the base has no such expert.
    """
    if expert == "both":
        return family.parts
    chosen = tuple(part for part in family.parts if part.name == expert)
    if not chosen:
        raise UserError(
            f"model.expert is {expert}, but {family.base} has one transformer for all levels of noise: leave it out."
        )
    return chosen


def cut_to(parts: Sequence[Part], noising: RectifiedFlow) -> tuple[Part, ...]:
    """Parts at the noise levels that training draws at all.

    Args:
        parts: of a model.
        noising: how training draws sigmas.

    Raises:
        UserError: none of a part's own are drawn.
    """
    cut = []
    for part in parts:
        low, high = max(part.sigmas[0], noising.min_sigma), min(part.sigmas[1], noising.max_sigma)
        if low >= high:
            raise UserError(
                f"model.noise.process draws sigmas from {noising.min_sigma:g} to {noising.max_sigma:g}, none of which "
                f"the expert of {part.name} noise is asked at ({part.sigmas[0]:g} to {part.sigmas[1]:g}): train the "
                "other one alone (model.expert), or draw them, too."
            )
        cut.append(replace(part, sigmas=(low, high)))
    return tuple(cut)


def num_scored(family: Family, expert: ExpertChoice) -> int:
    """Transformers that a check asks at each of a clip's noise levels; streams are scored together."""
    return len({part.expert for part in chosen_parts(family, expert)})
