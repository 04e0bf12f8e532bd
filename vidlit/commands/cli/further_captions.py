"""Captions that a command needs beside those of the clips: they are encoded with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidlit.sampling.own_prompts import read_own_prompts
from vidlit.signals.drift_monitor import DriftMonitor, watched_captions
from vidlit.training.step.preservation import read_captions

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser

_OF_SAMPLES = ("samples.guidance_scale", "samples.negative_prompt")
_OF_TRAINING = (
    "model.caption_dropout",
    "model.preservation",
    "drift.captions",
    "overfit_stopping.policy",
    "samples.prompts",
)


def link_further_captions(parser: LightningArgumentParser, command: str) -> None:
    """Give the data the further captions of a command: a store that holds what it needs is not written to.

    Args:
        parser: of the command.
        command: ``fit``, and ``encode``, which prepares one, need those of training and its checks, too.
    """
    if command in ("fit", "encode"):
        parser.link_arguments((*_OF_SAMPLES, *_OF_TRAINING), "data.further_captions", compute_fn=captions_of_training)
    else:
        parser.link_arguments(_OF_SAMPLES, "data.further_captions", compute_fn=captions_of_samples)


def captions_of_samples(guidance_scale: float, negative_prompt: str) -> list[str]:
    """What guided samples need."""
    return [negative_prompt] if guidance_scale != 1.0 else []


def captions_of_training(
    guidance_scale: float,
    negative_prompt: str,
    caption_dropout: float,
    preservation: Any,
    drift: list[str] | Path | None,
    policy: Mapping[str, Any] | None,
    prompts: Path | None = None,
) -> list[str]:
    """What samples, training and checks need, by their options.

    Args:
        guidance_scale: of ``samples``.
        negative_prompt: of ``samples``.
        caption_dropout: of ``model``.
        preservation: of ``model``, as the parser gives it.
        drift: its ``captions``.
        policy: of ``overfit_stopping``; where it switches drift off, nothing is watched.
        prompts: of ``samples``, the user's own.

    Raises:
        UserError: a file of captions or prompts cannot be read.
    """
    given = preservation.get("init_args", preservation) if preservation is not None else {}
    kept = read_captions(given.get("captions", []))
    watched: list[str] = []
    if (policy or {}).get(DriftMonitor.name, DriftMonitor.default_mode) not in ("off", False):
        watched = watched_captions(read_captions(drift or []), kept, drops_captions=caption_dropout > 0)
    dropped = [""] if caption_dropout > 0 else []
    own = [prompt.text for prompt in read_own_prompts(prompts)] if prompts is not None else []
    needed = [*captions_of_samples(guidance_scale, negative_prompt), *dropped, *kept, *watched, *own]
    return list(dict.fromkeys(needed))
