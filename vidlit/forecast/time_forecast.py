"""How long a step, a run to its typical stop and one to its end take: operations, over what a card does in a second.

Operations are counted (:mod:`vidlit.training.flops`). The share of its peak that a card reaches was measured once for
each kind of run, and is measured anew by every fit on a GPU, which leaves it in a small file for the next plan.
"""

from __future__ import annotations

import datetime
import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import torch
from torch import nn

from vidlit.errors import UserError
from vidlit.forecast.sample_shapes import sample_batch
from vidlit.forecast.step_memory import blocks_are_alike
from vidlit.training.blocks.repeated import FEW, lists_of_blocks, shorten
from vidlit.training.flops import PEAK_TERAFLOPS, flops_of_a_sample, known_card
from vidlit.whole_files import write_whole

if TYPE_CHECKING:
    from vidlit.data.clip_folder import ClipFolder
    from vidlit.forecast.run_plan import RunPlan
    from vidlit.models.family import Family
    from vidlit.training.module import VideoDiffusionModule
    from vidlit.video.buckets import Bucket

_WAN, _LTX = "WanTransformer3DModel", "LTXVideoTransformer3DModel"
MEASURED: Mapping[tuple[bool, bool], Mapping[str, float]] = {
    (False, True): {_WAN: 0.398, _LTX: 0.299},
    (True, True): {_LTX: 0.289},
    (False, False): {_WAN: 0.245, _LTX: 0.146},
    (True, False): {_LTX: 0.132},
}
"""MFU by (is it a LoRA, are blocks compiled) and transformer: of Wan 2.1 1.3B at 49x480x832 and LTX-Video 2B at
121x480x704, one clip a step on an H100 under bf16-mixed, all blocks recomputed (which does not count; compiled ones
but for their attention): ``python benchmarks/gpu.py``. Other transformers are taken for their mean."""
_FIRST_LOGS = 2
"""Of a run, in which blocks are compiled, kernels are chosen and the loader fills up."""
_ENOUGH_LOGS = 2
"""After these."""


@dataclass(frozen=True)
class RunKind:
    """What a run's share of a card's peak depends on most.

    Args:
        card: its name in :data:`~vidlit.training.flops.PEAK_TERAFLOPS`.
        transformer: class of it.
        lora: is an adapter trained, not the weights themselves?
        compiled: are the blocks?
        base_dtype: of the weights that are not trained.
        float8: are the products of large layers in float8?
    """

    card: str
    transformer: str
    lora: bool
    compiled: bool
    base_dtype: str
    float8: bool = False

    @classmethod
    def of(cls, module: VideoDiffusionModule, card: str) -> RunKind:
        """The kind of a module's runs on a GPU."""
        memory = module.memory.settled(torch.device("cuda"))
        has_adapter = module.adapter is not None
        dtypes = memory.base_dtype, memory.float8_matmuls
        return cls(card, module.family.transformer_class, has_adapter, bool(memory.compile), *dtypes)

    @property
    def stated(self) -> tuple[float, str]:
        """The share that was measured elsewhere, and of what."""
        of_kind = MEASURED[self.lora, self.compiled]
        alike = {self.transformer: of_kind[self.transformer]} if self.transformer in of_kind else of_kind
        blocks = "compiled" if self.compiled else "not compiled"
        names = " and ".join(name.removesuffix("Transformer3DModel") for name in alike)
        what = f"measured for {'a LoRA' if self.lora else 'all weights'} of {names} on an H100, {blocks}"
        return statistics.fmean(alike.values()), what

    @property
    def file(self) -> Path:
        """Where its speed on this machine is kept: names of classes and cards, nothing of the user's."""
        words = [
            self.card,
            self.transformer,
            "lora" if self.lora else "all",
            "compiled" if self.compiled else "plain",
            self.base_dtype,
            *(["float8_matmuls"] if self.float8 else []),
        ]
        return _folder() / f"{re.sub(r'[^A-Za-z0-9-]+', '_', '-'.join(words))}.json"


def _folder() -> Path:
    return platformdirs.user_cache_path("vidlit") / "speed"


def measured_here(kind: RunKind) -> tuple[float, str] | None:
    """MFU of the latest run of a kind on this machine, and its date; ``None`` where there is none that can be read."""
    try:
        found = json.loads(kind.file.read_text())
        mfu, date = float(found["mfu"]), datetime.date.fromisoformat(found["date"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return (mfu, date.isoformat()) if 0 < mfu <= 1 else None


def remember_speed(kind: RunKind, logged: Sequence[float]) -> None:
    """Keep how fast a run was, where it was long enough to tell; a cache that cannot be written is none.

    Args:
        kind: of the run.
        logged: MFU of each log of it, in order.
    """
    steady = logged[_FIRST_LOGS:]
    if len(steady) < _ENOUGH_LOGS:
        return
    found = {"mfu": statistics.median(steady), "date": datetime.date.today().isoformat()}
    try:
        write_whole(kind.file, (json.dumps(found) + "\n").encode())
    except OSError:
        return


@dataclass(frozen=True)
class TimeForecast:
    """Time and cost of a run, checks and audits with it; encoding before it and samples at its end are not.

    Args:
        tera_operations_per_step: on all GPUs together, 10^12.
        max_steps: of the run.
        typical_stop_step: where runs like it were seen to stop, or ``max_steps``.
        typical_stop_exposures: of each recording by then, where ``max_steps`` comes later.
        checks_share: of the cost of training, that checks add up to ``max_steps``.
        checks_share_to_typical_stop: and up to the typical stop.
        audits_share: that audits add at most.
        gpus: that share a step.
        gpu: name of each; ``None`` where no name is known, and no time.
        efficiency: share of its peak.
        low_precision: is that in bfloat16 or float16?
        source: of the efficiency.
        gpu_price: of one, an hour.
    """

    tera_operations_per_step: float
    max_steps: int
    typical_stop_step: int
    typical_stop_exposures: float
    checks_share: float
    checks_share_to_typical_stop: float
    audits_share: float
    gpus: int
    gpu: str | None = None
    efficiency: float | None = None
    low_precision: bool = True
    source: str = "unknown GPU"
    gpu_price: float | None = None

    @property
    def seconds_per_step(self) -> float | None:
        """Of training alone."""
        if self.gpu is None or self.efficiency is None:
            return None
        peak = PEAK_TERAFLOPS[self.gpu][0 if self.low_precision else 1]
        return self.tera_operations_per_step / (self.gpus * peak * self.efficiency)

    @property
    def hours_to_max_steps(self) -> float | None:
        """With checks and audits."""
        return self._hours(self.max_steps, self.checks_share)

    @property
    def hours_to_typical_stop(self) -> float | None:
        """With checks and audits."""
        return self._hours(self.typical_stop_step, self.checks_share_to_typical_stop)

    def _hours(self, steps: int, checks_share: float) -> float | None:
        each = self.seconds_per_step
        return None if each is None else steps * each * (1 + checks_share + self.audits_share) / 3600

    def cost(self, hours: float | None) -> float | None:
        """Of so many hours on all GPUs; ``None`` where the price is not known."""
        return None if hours is None or self.gpu_price is None else hours * self.gpus * self.gpu_price

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {
            "seconds_per_step": self.seconds_per_step,
            "hours_to_max_steps": self.hours_to_max_steps,
            "hours_to_typical_stop": self.hours_to_typical_stop,
            "cost_to_max_steps": self.cost(self.hours_to_max_steps),
            "cost_to_typical_stop": self.cost(self.hours_to_typical_stop),
        }


def foretell_time(
    module: VideoDiffusionModule,
    data: ClipFolder,
    plan: RunPlan,
    *,
    gpu: str | None,
    gpus: int = 1,
    low_precision: bool = True,
    audits_share: float = 0.0,
    gpu_price: float | None = None,
) -> TimeForecast | None:
    """The time of a run.

    Args:
        module: what is trained; its weights are not read.
        data: the clips.
        plan: of the run.
        gpu: name of each GPU; ``None`` where it is not known.
        gpus: that share a step; what they have to tell each other is not counted.
        low_precision: does it compute in bfloat16 or float16?
        audits_share: of the cost of training, that audits may add.
        gpu_price: of one GPU, an hour.

    Returns:
        ``None`` for a model whose operations cannot be counted.
    """
    try:
        operations = plan.batch_size * operations_of_a_sample(module, data)
    except (RuntimeError, NotImplementedError, UserError):
        return None
    stop = plan.typical_stop
    known = None if gpu is None else known_card(gpu)
    efficiency: float | None = None
    source = "the GPU's name is not known" if gpu is None else f"the peak of {gpu} is not known"
    if known is not None:
        kind = RunKind.of(module, known)
        here = measured_here(kind)
        efficiency, source = (here[0], f"measured on this machine on {here[1]}") if here else kind.stated
    return TimeForecast(
        tera_operations_per_step=operations / 1e12,
        max_steps=plan.max_steps,
        typical_stop_step=round(stop["steps"]),
        typical_stop_exposures=stop["exposures"],
        checks_share=plan.checks["share"],
        checks_share_to_typical_stop=stop["checks_share"],
        audits_share=audits_share,
        gpus=gpus,
        gpu=known,
        efficiency=efficiency,
        low_precision=low_precision,
        source=source,
        gpu_price=gpu_price,
    )


def operations_of_a_sample(module: VideoDiffusionModule, data: ClipFolder) -> float:
    """Mean over the training clips, each at the size of its bucket; what is recomputed is not counted.

    Raises:
        RuntimeError: the model cannot be run without values.
        UserError: the shapes of what the transformer reads are not known.
    """
    counts = Counter(clip.bucket for clip in data.train_clips)
    transformer = module.structure()
    lists = lists_of_blocks(transformer) if blocks_are_alike(module) else {}
    total = sum(count * _operations(module.family, transformer, lists, bucket) for bucket, count in counts.items())
    return total / counts.total()


def _operations(family: Family, transformer: nn.Module, lists: Mapping[str, nn.ModuleList], bucket: Bucket) -> int:
    """Of a sample, by a few blocks of each list: exact, for others do the same."""
    batch = sample_batch(family, bucket, 1)

    def count(longer: int = -1) -> int:
        shorten(transformer, lists, {number: FEW + (number == longer) for number in range(len(lists))})
        return flops_of_a_sample(family, transformer, batch)

    few = count()
    further = [max(0, len(blocks) - FEW) for blocks in lists.values()]
    return few + sum(times * (count(number) - few) for number, times in enumerate(further) if times)
