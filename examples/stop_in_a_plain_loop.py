"""The stop in a training loop of your own: plain PyTorch, without Lightning and without vidlit's module.

A small network learns a rectified flow on a few random "clips" until it overfits. Three things make the stop work:

1. hold out whole groups (recordings), and score as many training clips in the same way;
2. score each clip at noise and noise levels of its own, always the same, so that two checks can be compared;
3. hand the log-ratios to step 0 to `vidlit.stopping.Stopper` after each check, and keep the best weights.

Run it with ``python examples/stop_in_a_plain_loop.py``; it takes some seconds on a CPU.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vidlit.metrics import log_ratio
from vidlit.stopping import Stopper, Verdict

SHAPE = (4, 2, 4, 4)  # (C, F, H, W) of a clip's latents
SIZE = 128  # numbers in a clip
NUM_SIGMAS = 8  # noise levels at which a clip is scored
MAX_STEPS, CHECK_EVERY, BATCH_SIZE = 4000, 20, 16


def make_clips(num_groups: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """Two clips of each group: what all groups have in common can be learned, the rest only memorised."""
    common = torch.randn(8, SIZE, generator=torch.Generator().manual_seed(0))
    scenes = torch.randn(num_groups, 8, generator=generator) @ common / 8**0.5
    clips = scenes.repeat_interleave(2, dim=0) + 0.3 * torch.randn(2 * num_groups, SIZE, generator=generator)
    return clips.view(-1, *SHAPE), [f"recording {number // 2}" for number in range(2 * num_groups)]


class Denoiser(nn.Module):
    """Predicts the velocity, noise - latents; put your transformer here."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SIZE + 1, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU())
        self.out = nn.Linear(256, SIZE)

    def forward(self, noisy: Tensor, sigmas: Tensor) -> Tensor:
        """Noisy latents (B, C, F, H, W) at sigmas (B,) to (B, C, F, H, W)."""
        features = self.layers(torch.cat([noisy.flatten(1), sigmas[:, None]], dim=1))
        return self.out(features).view_as(noisy)


def losses(model: nn.Module, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Squared error of the velocity for each clip (B,): the loss of training, and of validation."""
    level = sigmas.view(-1, 1, 1, 1, 1)
    velocity = model((1 - level) * latents + level * noise, sigmas)
    return (velocity - (noise - latents)).square().flatten(1).mean(1)


class FixedNoiseScore:
    """Scores clips (N, C, F, H, W) at noise and noise levels that are drawn once: the same at every check."""

    def __init__(self, clips: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.clips = clips
        self.noise = torch.randn(NUM_SIGMAS, *clips.shape, generator=generator)
        within = torch.rand(len(clips), NUM_SIGMAS, generator=generator)
        self.sigmas = (torch.arange(NUM_SIGMAS) + within) / NUM_SIGMAS  # (N, NUM_SIGMAS), rising

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Tensor:
        """Losses (N, NUM_SIGMAS)."""
        each = [losses(model, self.clips, noise, self.sigmas[:, k]) for k, noise in enumerate(self.noise)]
        return torch.stack(each, dim=1)


def train(seed: int = 0) -> tuple[Verdict, Stopper, nn.Module]:
    """Trains until the stop; returns its last verdict, the stopper, and the model with its best weights."""
    torch.manual_seed(seed)
    data = torch.Generator().manual_seed(seed)
    train_clips, train_groups = make_clips(12, data)
    val_clips, val_groups = make_clips(12, data)
    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    scores = {"val": FixedNoiseScore(val_clips, seed=1), "train_eval": FixedNoiseScore(train_clips, seed=2)}
    at_start = {name: score(model) for name, score in scores.items()}
    stopper = Stopper(val_groups, train_groups)
    best = copy.deepcopy(model.state_dict())

    for step in range(1, MAX_STEPS + 1):
        clips = train_clips[torch.randint(len(train_clips), (BATCH_SIZE,))]
        loss = losses(model, clips, torch.randn_like(clips), torch.rand(BATCH_SIZE)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY:
            continue
        ratios = {name: log_ratio(score(model), at_start[name], score.sigmas) for name, score in scores.items()}
        verdict = stopper.update(step, ratios["val"].numpy(), ratios["train_eval"].numpy())
        if stopper.best_step == step:
            best = copy.deepcopy(model.state_dict())
        if verdict.action == "stop":
            break

    model.load_state_dict(best)
    return verdict, stopper, model


if __name__ == "__main__":
    last, stopper, _ = train()
    print(f"Stopped after step {stopper.history.steps[-1]} of {MAX_STEPS}; kept step {stopper.best_step}.")
    print(last.reason)
