"""The configs for published models that come with vidlit, and what the comments at their heads say of them.

The files are the one place where it stands what a model takes; this reads it from there. ``tests/commands/starting``
checks that every one of them can be read so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vidlit.bounded_yaml import load_yaml, read_text
from vidlit.commands.cli.configs import packaged_configs
from vidlit.errors import UserError
from vidlit.forecast.card import card_here, needs
from vidlit.video.buckets import Bucket

_PREFERRED = ("ltx2_lora", "wan2_2_ti2v_5b_lora", "wan2_1_1_3b_lora", "ltx_video_lora")
"""Asked in this order where nobody names a family: from the largest model to the smallest, of licences that hold in
every country. The last one is what a machine without a GPU gets."""
_STATES_MEMORY = "GPU memory: "


@dataclass(frozen=True)
class Card:
    """The GPUs of this machine.

    Args:
        name: of one of them; empty where there is none.
        gigabytes: of memory, 10^9 bytes, of one.
        count: of such.
    """

    name: str = ""
    gigabytes: float = 0.0
    count: int = 0

    @classmethod
    def find(cls) -> Card:
        """What this machine has."""
        found = card_here()
        if found is None:
            return cls()
        import torch

        return cls(found.name, found.memory / 1e9, torch.cuda.device_count())

    def __str__(self) -> str:
        times = f"{self.count} x " if self.count > 1 else ""
        return f"{times}{self.name}, {self.gigabytes:.0f} GB" if self.count else "no CUDA GPU"

    def holds(self, gigabytes: float) -> bool:
        """Whether so much fits, as a plan says it."""
        return needs(1e9 * gigabytes) <= 1e9 * self.gigabytes


@dataclass(frozen=True)
class ShippedConfig:
    """One of them.

    Args:
        path: of its file.
    """

    path: Path

    @property
    def name(self) -> str:
        """As ``--config`` takes it."""
        return self.path.stem

    @property
    def family(self) -> str:
        """As ``--family`` takes it."""
        return self.name.removesuffix("_lora")

    @cached_property
    def text(self) -> str:
        """Of the file."""
        return read_text(self.path)

    @cached_property
    def values(self) -> dict[str, Any]:
        """What stands in it."""
        loaded: dict[str, Any] = load_yaml(self.text)
        return loaded

    @cached_property
    def head(self) -> str:
        """The comment at its beginning, as one line."""
        lines = (line for line in self.text.partition("\n\nseed_everything")[0].splitlines())
        return " ".join(" ".join(line.removeprefix("#").strip() for line in lines).split())

    @property
    def title(self) -> str:
        """The model: ``Wan 2.1 1.3B``."""
        return re.split(r", (?:a LoRA|all of its weights)", self.head)[0]

    @property
    def base(self) -> str:
        """Hub name of the base."""
        return str(self.values["model"]["base"])

    @property
    def trains_adapter(self) -> bool:
        """Whether it is for a LoRA, on one GPU."""
        return "adapter" in self.values["model"]

    @property
    def devices(self) -> int:
        """GPUs that it trains on."""
        return int(self.values["trainer"].get("devices", 1))

    @property
    def buckets(self) -> list[Bucket]:
        """Of the size and the lengths that the model was trained at, or of what the stated memory holds."""
        return [Bucket.parse(text) for text in self.values["data"]["buckets"]]

    @property
    def multiples(self) -> tuple[int, int]:
        """What the frames of a bucket, less one, and its height and width are multiples of."""
        frames, pixels = self._read(r"frames \((\d+)k \+ 1\) x height x width \(multiples of (\d+)\)", self.text)
        return frames, pixels

    def train_gigabytes(self, base: str = "") -> int:
        """GPU memory to train, as estimated, with the weights in the dtype of the file.

        Args:
            base: another one that the head names with a memory of its own.
        """
        other = re.search(rf"{re.escape(base)} \(about (\d+) GB", self.head) if base else None
        return int(other[1]) if other else self._read(rf"{_STATES_MEMORY}about (\d+) GB", self.head)[0]

    @property
    def int8_gigabytes(self) -> int | None:
        """The same with the frozen weights in int8, where that is stated."""
        found = re.search(r"about (\d+) GB with base_dtype int8|base_dtype int8 about (\d+) GB", self.head)
        return int(found[1] or found[2]) if found else None

    @property
    def encode_gigabytes(self) -> int:
        """GPU memory while captions are encoded; 0 where nothing is stated."""
        found = re.search(r"about (\d+) GB to encode", self.head)
        return int(found[1]) if found else 0

    def fits(self, card: Card, base: str = "") -> bool:
        """Whether a card holds it, as the file is."""
        enough = card.count >= self.devices
        return enough and card.holds(max(self.train_gigabytes(base), self.encode_gigabytes))

    def fits_in_int8(self, card: Card) -> bool:
        """Whether a card holds it with the frozen weights in int8."""
        return self.int8_gigabytes is not None and card.holds(max(self.int8_gigabytes, self.encode_gigabytes))

    def memory(self, base: str = "") -> str:
        """In words."""
        encode = f", {self.encode_gigabytes} GB to encode" if self.encode_gigabytes else ""
        int8 = f" ({self.int8_gigabytes} GB in int8)" if self.int8_gigabytes else ""
        each = f" on each of {self.devices} GPUs" if self.devices > 1 else ""
        return f"{self.train_gigabytes(base)} GB{int8} to train{each}{encode}"

    def _read(self, pattern: str, text: str) -> list[int]:
        found = re.search(pattern, text)
        assert found is not None, f"{self.path} does not say {pattern}"
        return [int(group) for group in found.groups()]


def shipped_configs() -> dict[str, ShippedConfig]:
    """All of them by family, from the one with the least memory on."""
    found = [ShippedConfig(path) for path in packaged_configs().values()]
    found = [config for config in found if _STATES_MEMORY in config.head]
    return {
        config.family: config for config in sorted(found, key=lambda config: (config.train_gigabytes(), config.name))
    }


def choose(card: Card, family: str = "", base: str = "") -> ShippedConfig:
    """The config to begin with.

    Args:
        card: that it shall train on.
        family: as :attr:`ShippedConfig.family`, or how several begin: ``wan``; empty for any.
        base: folder or hub name of a base; empty for the config's own.

    Raises:
        UserError: there is no such family; or nobody knows of which one the base is.
    """
    every = shipped_configs()
    if family and family not in every and not any(name.startswith(family) for name in every):
        raise UserError(f"--family {family}: there is no such family. There are {', '.join(every)}.")
    named = [every[family]] if family in every else [each for each in every.values() if each.name.startswith(family)]
    if base:
        named = _of_base(base, named)
    elif not family:
        named = [config for name in _PREFERRED for config in every.values() if config.name == name]
    elif family not in every:
        adapted = [config for config in named if config.trains_adapter]
        named = sorted(adapted or named, key=lambda config: config.train_gigabytes(), reverse=True)
    if not card.count:
        return min(named, key=lambda config: config.train_gigabytes(base))
    fitting = (config for config in named if config.fits(card, base) or config.fits_in_int8(card))
    return next(fitting, min(named, key=lambda config: config.train_gigabytes(base)))


def _of_base(base: str, configs: list[ShippedConfig]) -> list[ShippedConfig]:
    """Those of them that a base can be trained with, LoRAs on one GPU first."""
    if Path(base).is_dir():
        from vidlit.models.family import open_family

        room = type(open_family(base)).__module__.rpartition(".")[2]  # of the files in models/families
        found = [config for config in configs if _family_file(config) == room]
        called = [config for config in found if config.base.rpartition("/")[2] == Path(base).resolve().name]
        found = called or found
    else:
        found = [config for config in configs if base in (config.base, *re.findall(r"[\w-]+/[\w.-]+\w", config.head))]
        # A name of the hub that no head knows: the user has to know the family; nothing is fetched to find out.
        found = found or (configs if len(configs) < len(shipped_configs()) else [])
    if not found:
        raise UserError(
            f"--base {base}: no config that comes with vidlit is for it. Name its family, too: --family "
            f"{' or '.join(shipped_configs())}."
        )
    return sorted(found, key=lambda config: (not config.trains_adapter, "audio" in config.values["model"]))


def _family_file(config: ShippedConfig) -> str:
    """The file in ``models/families`` whose name the config's begins with: of two, the longer one."""
    import pkgutil

    from vidlit.models import families

    names = [module.name for module in pkgutil.iter_modules(families.__path__)]
    return max((name for name in names if config.name.startswith(name)), key=len, default="")
