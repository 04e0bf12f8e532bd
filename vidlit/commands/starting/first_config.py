"""A config to begin with: the shipped one of a family, filled in for the clips and the card, and why."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import vidlit
from vidlit.commands.starting.config_text import with_value
from vidlit.commands.starting.folder_look import FolderLook, suited_buckets
from vidlit.commands.starting.shipped_configs import Card, ShippedConfig
from vidlit.data.split import Splitting
from vidlit.stopping.exposure import CONSERVATIVE, RISKY
from vidlit.video.buckets import Bucket, nearest_bucket

_FEW_RECORDINGS, _SMALL_SET, _SPARE = 4, 20, 50
"""Up to so many recordings: too few for validation; k-fold; one fit with a refit. As docs/guides/small_sets.md says."""
_CAP = 20
"""Exposures to stop at where there is no validation."""
_LEAST_STEPS, _MOST_STEPS = 500, 20_000


@dataclass(frozen=True)
class FirstConfig:
    """What is written.

    Args:
        name: of the run.
        source: of the clips, as ``data.source``.
        look: what was found there.
        card: that it is for.
        shipped: what is filled in.
        base: folder or hub name, in place of the shipped one's; empty to keep that.
    """

    name: str
    source: str
    look: FolderLook
    card: Card
    shipped: ShippedConfig
    base: str = ""

    @cached_property
    def _rate_and_multiples(self) -> tuple[float, tuple[int, int]]:
        """Of a base that is at hand its own; else as the shipped config says."""
        if self.base and Path(self.base).is_dir():
            from vidlit.models.family import open_family

            family = open_family(self.base)
            return family.fps, (family.frame_multiple, family.pixel_multiple)
        return float(self.shipped.values["data"]["fps"]), self.shipped.multiples

    @property
    def fps(self) -> float:
        """Rate that clips are resampled to."""
        return self._rate_and_multiples[0]

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Suited to the clips."""
        return suited_buckets(self.look.seen, self.shipped.buckets, *self._rate_and_multiples)

    @property
    def in_int8(self) -> bool:
        """Whether the frozen weights have to be in int8 to fit."""
        too_large = bool(self.card.count) and not self.shipped.fits(self.card, self.base)
        return too_large and self.shipped.fits_in_int8(self.card)

    @property
    def num_train(self) -> int:
        """Recordings to train on."""
        total = self.look.recordings
        return total if total <= _FEW_RECORDINGS else total - max(1, round(Splitting().val_fraction * total))

    @property
    def batch_size(self) -> int:
        """Clips of a step, over accumulated micro-batches: the config's, but no more than there are recordings."""
        return min(int(self.shipped.values["trainer"].get("accumulate_grad_batches", 1)), self.num_train)

    @property
    def _samples(self) -> int:
        """Of a step, over all GPUs."""
        return self.batch_size * self.shipped.devices

    @property
    def max_steps(self) -> int:
        """At which overfitting is likely, in hundreds; of a large set fewer."""

        def steps(exposures: int) -> int:
            return math.ceil(exposures * self.num_train / self._samples / 100) * 100

        return max(_LEAST_STEPS, min(steps(RISKY), max(_MOST_STEPS, steps(CONSERVATIVE))))

    @property
    def left_out(self) -> int:
        """Of the clips seen, those that are smaller or shorter than every bucket."""
        fitting = (
            nearest_bucket(clip.num_frames(self.fps), clip.height, clip.width, self.buckets) for clip in self.look.seen
        )
        return sum(bucket is None for bucket in fitting)

    def changes(self) -> list[tuple[str, Any, str]]:
        """Options, their values, and why."""
        look, frames, pixels = self.look, *self._rate_and_multiples[1]
        num, train = look.recordings, self.num_train
        made: list[tuple[str, Any, str]] = [
            ("run.name", self.name, f"runs/{self.name}/0, 1, ... are its runs"),
            ("data.source", self.source, f"{len(look.sources.videos):,} clips in {num:,} recordings"),
            (
                "data.buckets",
                [str(bucket) for bucket in self.buckets],
                f"frames ({frames}k + 1) x height x width (multiples of {pixels}), suited to the clips",
            ),
        ]
        if self.base:
            made += [
                ("data.fps", int(self.fps) if self.fps.is_integer() else self.fps, "the rate it was trained at"),
                ("model.base", self.base, "as --base said"),
            ]
        if self.in_int8:
            need = self.shipped.train_gigabytes(self.base)
            why = f"bfloat16 would take {need} GB of {self.card.gigabytes:.0f}; pip install 'vidlit[quantize]' first"
            made.append(("model.memory.base_dtype", "int8", why))
        if num <= _FEW_RECORDINGS:
            made += [
                ("data.split", {"val_fraction": 0.0}, f"{num} recordings are too few to keep some for validation"),
                ("exposure.hard_cap", float(_CAP), "stops when each recording was seen so often: nothing else would"),
            ]
        else:
            kept = f"of {num} recordings {num - train} are for validation, {train} for training"
            made.append(("data.split", {"val_fraction": Splitting().val_fraction}, kept))
        times = self.max_steps * self._samples / train
        made.append(
            (
                "trainer.max_steps",
                self.max_steps,
                f"a ceiling: each recording seen {times:.0f} times; the run stops itself",
            )
        )
        if self.batch_size != self.shipped.values["trainer"].get("accumulate_grad_batches", 1):
            made.append(
                ("trainer.accumulate_grad_batches", self.batch_size, f"there are {train} recordings to train on")
            )
        return made

    def text(self) -> str:
        """Of the file."""
        text = self.shipped.text.replace(f"configs/{self.shipped.name}.yaml", f"{self.name}.yaml")
        for option, value, why in self.changes():
            text = with_value(text, option, value, why)
        clips = f"{self.source}: {self.look.recordings} recordings"
        head = f"# Written by `vidlit init` (vidlit {vidlit.__version__}) for {clips}.\n"
        return f"{head}# The shipped {self.shipped.name} filled in; this machine has {self.card}.\n#\n{text}"

    def remarks(self) -> list[str]:
        """What a user should know beside what is written."""
        said, need = [], max(self.shipped.train_gigabytes(self.base), self.shipped.encode_gigabytes)
        if not self.card.count:
            said.append(
                "Without a GPU a published model is too slow to train: this file is for a machine with one of "
                f"{need} GB. `vidlit fit --config quickstart` shows a whole run on a CPU."
            )
        elif not self.shipped.fits(self.card, self.base) and not self.in_int8:
            said.append(
                f"{self.shipped.title} may not fit: it takes {self.shipped.memory(self.base)}, by estimate. Smaller or "
                "shorter data.buckets take less."
            )
        if self.in_int8 and importlib.util.find_spec("torchao") is None:
            said.append("int8 needs torchao: pip install 'vidlit[quantize]'")
        if self.card.count > self.shipped.devices == 1:
            said.append(f"trainer.devices: {self.card.count} trains on all GPUs of this machine.")
        said += self._on_clips()
        return said

    def _on_clips(self) -> Sequence[str]:
        said, look, num = [], self.look, self.look.recordings
        if self.left_out:
            said.append(
                f"{self.left_out} of {len(look.seen)} clips looked at are shorter or smaller than every bucket; "
                "`vidlit plan` names them."
            )
        trained = max(bucket.height * bucket.width for bucket in self.shipped.buckets)
        if max(bucket.height * bucket.width for bucket in self.buckets) < trained / 4:
            said.append(
                "The clips are far smaller than what the model was trained at: larger ones would teach it more."
            )
        rates = [clip.fps for clip in look.videos]
        if rates and max(rates) < 0.8 * self.fps:
            said.append(
                f"The clips have at most {max(rates):g} frames a second, the model has {self.fps:g}: frames are shown "
                "more than once. Videos of a higher rate would teach it smoother motion."
            )
        if _FEW_RECORDINGS < num <= _SMALL_SET:
            said.append("With so few recordings `vidlit kfold` says more than one fit: see the guide to small sets.")
        elif _SMALL_SET < num <= _SPARE:
            said.append("`vidlit fit --refit` trains on the validation clips, too, once the best step is known.")
        return said
