"""What an option changes in the memory of a step, reckoned from a step without it: quicker than another run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vidlit.forecast.stand_in_optimizer import STATE_IN_8_BITS
from vidlit.forecast.step_memory import CHECK, OPTIMIZER, StepMemory
from vidlit.forecast.tensor_memory import ACTIVATIONS, MOMENTS, TEMPORARIES, TRAINED, Held

Rule = Callable[[StepMemory, float], StepMemory]
"""Takes steps, and the share of the blocks that are recomputed in them."""


def always_cast(steps: StepMemory, recomputed: float) -> StepMemory:
    """With weights cast at every use instead of once a step: autograd keeps them of blocks that are not recomputed."""
    low = [block.of(TRAINED) / 2 for block in steps.block]
    copies = sum(each * count for each, count in zip(low, steps.num_blocks, strict=False))

    def change(stage: str, held: Held) -> Held:
        again = copies * (1 - recomputed) + max(low, default=0.0) if "forward" in stage or "backward" in stage else 0.0
        return held.plus(Held({ACTIVATIONS: min(0.0, again - copies)}))

    return replace(steps, peaks={stage: change(stage, held) for stage, held in steps.peaks.items()})


def without_temporaries(steps: StepMemory, recomputed: float) -> StepMemory:
    """With an optimizer that makes none, as a fused one."""
    return _in_optimizer(steps, lambda held: held.scaled({TEMPORARIES: 0.0}))


def moments_in_8_bits(steps: StepMemory, recomputed: float) -> StepMemory:
    """With the moments of torchao's optimizers, which work at one weight after the other."""
    smaller = steps.changed(lambda held: held.scaled({MOMENTS: STATE_IN_8_BITS}))
    return without_temporaries(smaller, recomputed)


def twice_the_samples(steps: StepMemory, recomputed: float) -> StepMemory:
    """With twice as many samples in a batch: too much, if anything, for copies of weights are taken for activations."""
    twice = {ACTIVATIONS: 2.0, TEMPORARIES: 2.0}
    peaks = {
        stage: held if stage.endswith(OPTIMIZER) or stage == CHECK else held.scaled(twice)
        for stage, held in steps.peaks.items()
    }
    return replace(steps, peaks=peaks)


def _in_optimizer(steps: StepMemory, change: Callable[[Held], Held]) -> StepMemory:
    peaks = {stage: change(held) if stage.endswith(OPTIMIZER) else held for stage, held in steps.peaks.items()}
    return replace(steps, peaks=peaks)
