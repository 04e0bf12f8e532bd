"""How much noise paired validation takes out of the difference between two checks, at equal cost.

    python -m benchmarks.stopping.variance

The tiny default model trains on 32 clips; two checks 20 steps apart score 32 held-out clips of 16 source videos with
128 evaluations each. *Fresh*: noise and sigmas are drawn anew at each check, the number is the logarithm of the mean
loss. *Paired*: each clip keeps its own, as `fit` does it, the number is the mean weighted log-ratio. Both are repeated
with other draws for the same two models and clips, and the variances over these repetitions are compared; beside it the
ratio of squared difference to variance, since the two numbers weigh noise levels differently. *Independent* is paired
without mirrored noise.

Checks that lie further apart in weights differ more from clip to clip and level to level, so pairing gains less in
training from scratch at a high rate than in fine-tuning.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.stopping.real_runs import VAL_TAKES, VAL_VIDEOS
from benchmarks.stopping.training import NOISING, TRAIN, VAL, World, scored_sigmas
from vidlit.diffusion.batch import LatentBatch, LatentSample, clip_key, collate
from vidlit.diffusion.loss import denoising_loss, paired_losses
from vidlit.diffusion.noising import Noise, stratum_noise
from vidlit.diffusion.streams import LATENTS
from vidlit.metrics.paired_loss import log_ratio
from vidlit.training.module import VideoDiffusionModule

NUM_STRATA = 4
REGIMES = {  # learning rate and steps before the first check, rate of the 20 steps to the second
    "from scratch, rate 2e-3": ([(2e-3, 120)], 2e-3),
    "fine-tuning, rate 1e-4": ([(2e-3, 120), (1e-4, 60)], 1e-4),
}
APART = 20

Score = Callable[[VideoDiffusionModule, LatentBatch, int], torch.Tensor]


def train(module: VideoDiffusionModule, clips: list[LatentSample], lr: float, steps: int, seed: int) -> None:
    """A few plain steps of AdamW."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = collate([clips[k] for k in torch.randperm(len(clips), generator=generator)[:4]])
        noise = torch.randn(batch.latents.shape, generator=generator)
        loss = denoising_loss(module, NOISING, batch, noise, NOISING.sample_sigmas(4, generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()


def paired(module: VideoDiffusionModule, batch: LatentBatch, draw: int) -> torch.Tensor:
    """As `fit` scores a check."""
    return paired_losses(module, NOISING, batch, draw, NUM_STRATA)[LATENTS]


def independent(module: VideoDiffusionModule, batch: LatentBatch, draw: int) -> torch.Tensor:
    """The same with noise of its own for each stratum: only every second one is drawn."""
    sigmas, shape = scored_sigmas(batch, NUM_STRATA), tuple(batch.latents.shape[1:])
    noise = [stratum_noise(draw, batch.keys, 2 * k, shape) for k in range(NUM_STRATA)]
    return torch.stack([denoising_loss(module, NOISING, batch, noise[k], sigmas[:, k]) for k in range(NUM_STRATA)], 1)


def fresh(module: VideoDiffusionModule, batch: LatentBatch, draw: int) -> torch.Tensor:
    """Noise and sigmas that no other check has."""
    generator = torch.Generator().manual_seed(draw)
    losses = []
    for _ in range(NUM_STRATA):
        noise = torch.randn(batch.latents.shape, generator=generator)
        sigmas = NOISING.sample_sigmas(len(noise), generator)
        losses.append(denoising_loss(module, NOISING, batch, noise, sigmas))
    return torch.stack(losses, 1)


@torch.no_grad()
def differences(
    module: VideoDiffusionModule, states: tuple[dict[str, torch.Tensor], ...], batch: LatentBatch, draws: int
) -> dict[str, NDArray[np.float64]]:
    """Second check less the first, by way of scoring and draw (draws,)."""
    found: dict[str, list[float]] = {"paired": [], "independent": [], "fresh": []}
    for draw in range(draws):
        # Levels of sigma go by the clip's key: drawn anew, too.
        keys = torch.tensor([clip_key(f"{key}-{draw}") for key in batch.keys.tolist()])
        redrawn = batch._replace(keys=keys)
        sigmas = scored_sigmas(redrawn, NUM_STRATA)
        scored: dict[str, list[torch.Tensor]] = {name: [] for name in found}
        for check, state in enumerate(states):
            module.load_state_dict(state)
            scored["paired"].append(paired(module, redrawn, draw))
            scored["independent"].append(independent(module, redrawn, draw))
            scored["fresh"].append(fresh(module, redrawn, 2 * draw + check))
        for name in ("paired", "independent"):
            found[name].append(float(log_ratio(scored[name][1], scored[name][0], sigmas).mean()))
        found["fresh"].append(float((scored["fresh"][1].mean() / scored["fresh"][0].mean()).log()))
    return {name: np.array(values) for name, values in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stopping.variance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path("build/stopping"), help="clips and base are kept here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    world = World(args.work, frames=13, size=64)
    clips, held_out = world.clips(TRAIN, 8, 4), collate(world.clips(VAL, VAL_VIDEOS, VAL_TAKES))
    print("| two checks | difference | fresh, deviation | paired, deviation | variance, times lower [95 %] | without"
          " mirroring | squared difference to variance, times higher |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for name, (before, rate) in REGIMES.items():
        module = VideoDiffusionModule(str(world.untrained), noise=Noise(NOISING, num_strata=NUM_STRATA), fps=16)
        module.load_base()
        for seed, (lr, steps) in enumerate(before):
            train(module, clips, lr, steps, seed)
        first = {key: value.clone() for key, value in module.state_dict().items()}
        train(module, clips, rate, APART, 9)
        second = {key: value.clone() for key, value in module.state_dict().items()}
        found = differences(module.eval(), (first, second), held_out, args.draws)
        variance = {way: float(values.var(ddof=1)) for way, values in found.items()}
        mean = {way: float(values.mean()) for way, values in found.items()}
        rng = np.random.default_rng(0)
        picked = {way: values[rng.integers(0, args.draws, (2000, args.draws))] for way, values in found.items()}
        low, high = np.percentile(picked["fresh"].var(axis=1) / picked["paired"].var(axis=1), [2.5, 97.5])
        signal = {way: mean[way] ** 2 / variance[way] for way in found}
        print(
            f"| {name} | {mean['paired']:+.2%} | {variance['fresh'] ** 0.5:.3%} | {variance['paired'] ** 0.5:.4%} |"
            f" {variance['fresh'] / variance['paired']:.0f} [{low:.0f}, {high:.0f}] |"
            f" {variance['fresh'] / variance['independent']:.0f} | {signal['paired'] / signal['fresh']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
