"""Copy alarm: how often 16 generated clips with copies among them raise it, and how often honest ones do.

    python benchmarks/copies.py

Clips are procedural, encoded by the demo's codec; nothing is trained. Of the 16 clips of an audit, 8 are prompted with
training captions and 8 with held-out ones. `new scenes`: all are of scenes that are not in the training set. `new
takes`: those with training captions are new takes of training scenes, as a model that has learned its scenes well
gives them; it is the harder case, and with one clip a video nothing in the data says how far takes differ. `copies`: a
quarter of the 16 are training clips with white noise of that share of the latents' standard deviation; the rest are
new scenes.

`alarm` is two clips below the limit (three with one clip a video), at one audit; two in a row stop a run. `at once`: a
quarter of the clips are below 1/3, which stops at the first audit. Beside the rule: plain d1 / d2, in content and
motion, and in content alone.
"""

import argparse
import time

import numpy as np
import torch

from vidlit.data.demo_folder import codec_inputs
from vidlit.metrics.copy_distance import UNKNOWN_TAKE, copy_ratio, nearest_train, take_distances
from vidlit.models.codec import PatchDCTCodec
from vidlit.models.features import Features, LatentFeatures
from vidlit.stopping.copies import copy_limit, judge_copies, min_copies
from vidlit.video.demo_clips import Scene

FIRST_SCENE = 10_000
TAKES = 3
NOISES = (0.1, 0.3, 0.5)
NUM_AUDIT, NUM_COPIES = 16, 4
RULES = ("rule", "d1 / d2", "content d1 / d2")


def encode(codec: PatchDCTCodec, scene: Scene, take: int) -> torch.Tensor:
    """Latents (1, C, F, H, W) of one take."""
    frames = scene.render(np.random.default_rng([scene_seed(scene), take]))
    count = (len(frames) - 1) // 4 * 4 + 1
    height, width = (side // 16 * 16 for side in frames.shape[1:3])
    video = torch.from_numpy(frames[:count, :height, :width]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    raw = codec.encode(video).latent_dist.mode()
    mean, std = (value.view(1, -1, 1, 1, 1) for value in (codec.latents_mean, codec.latents_std))
    return (raw - mean) / std


def scene_seed(scene: Scene) -> int:
    """A number of the scene's look."""
    return sum(scene.caption.encode())


def describe(num_scenes: int) -> tuple[Features, dict[float, Features]]:
    """Features of all takes (num_scenes * (TAKES + 1), D), and of their noisy copies by noise."""
    codec, extractor = PatchDCTCodec(), LatentFeatures()
    codec.fit_statistics(list(codec_inputs()))
    generator = torch.Generator().manual_seed(0)
    clean, noisy = [], {noise: [] for noise in NOISES}
    for number in range(FIRST_SCENE, FIRST_SCENE + num_scenes):
        scene = Scene.draw(number)
        for take in range(TAKES + 1):
            latents = encode(codec, scene, take)
            clean.append(extractor(latents))
            for noise in NOISES:
                grain = torch.randn(latents.shape, generator=generator)
                noisy[noise].append(extractor(latents + noise * latents.std() * grain))
    return stack(clean), {noise: stack(clips) for noise, clips in noisy.items()}


def stack(clips: list[Features]) -> Features:
    """One row a clip."""
    return Features(*(torch.cat(kind) for kind in zip(*clips, strict=True)))


class Trial:
    """One training set of a few scenes, its held-out clips, and audits of other clips against it."""

    def __init__(self, clean: Features, num_videos: int, takes: int, rng: np.random.Generator) -> None:
        scenes = rng.permutation(len(clean.content) // (TAKES + 1))
        self.scenes, held_out = scenes[:num_videos], scenes[num_videos : num_videos + max(4, num_videos // 4)]
        self.others = scenes[num_videos + len(held_out) :]
        self.rows = row(np.repeat(self.scenes, takes), np.tile(np.arange(takes), num_videos))
        self.alarm = min_copies([str(scene) for scene in np.repeat(self.scenes, takes)])
        self.groups = torch.arange(num_videos).repeat_interleave(takes)
        self.train = [kind[self.rows] for kind in clean]
        self.takes = [take_distances(kind, self.groups) for kind in self.train]
        real = self.ratios([kind[row(held_out, 0)] for kind in clean])
        self.limits = {rule: copy_limit(ratios) for rule, ratios in real.items()}
        self.base = self.ratios([kind[row(self.others[-NUM_AUDIT:], 0)] for kind in clean])

    def ratios(self, made: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What each rule looks at."""
        taken, plain = [], []
        for kind, train, takes in zip(made, self.train, self.takes, strict=True):
            taken.append(nearest_train(kind, train, self.groups, takes).ratio)
            unknown = torch.full_like(takes, torch.inf)
            plain.append(nearest_train(kind, train, self.groups, unknown).ratio * UNKNOWN_TAKE)
        return {"rule": copy_ratio(*taken), "d1 / d2": copy_ratio(*plain), "content d1 / d2": plain[0]}

    def audit(self, made: list[torch.Tensor]) -> np.ndarray:
        """Alarm and stop at once by rule (3, 2)."""
        names = [""] * NUM_AUDIT
        verdicts = [
            judge_copies(
                [0, 1], torch.stack([self.base[rule], ratios]).numpy(), self.limits[rule], names, names, self.alarm
            )
            for rule, ratios in self.ratios(made).items()
        ]
        return np.array([[verdict.action != "continue", verdict.action == "stop"] for verdict in verdicts])


def row(scenes: np.ndarray, take: np.ndarray | int) -> torch.Tensor:
    """Rows of takes of scenes."""
    return torch.from_numpy(scenes * (TAKES + 1) + take)


def cell(
    clean: Features, noisy: dict[float, Features], num_videos: int, takes: int, runs: int
) -> dict[str, np.ndarray]:
    """Share of runs with an alarm and with a stop at once, by kind of audit and rule."""
    rng = np.random.default_rng([num_videos, takes])
    counts: dict[str, list[np.ndarray]] = {}
    half = NUM_AUDIT // 2
    for _ in range(runs):
        trial = Trial(clean, num_videos, takes, rng)
        new = [kind[row(trial.others[:NUM_AUDIT], 0)] for kind in clean]
        prompted = rng.choice(trial.scenes, half, replace=num_videos < half)
        honest = [torch.cat([kind[row(prompted, TAKES)], fresh[half:]]) for kind, fresh in zip(clean, new, strict=True)]
        copied = trial.rows[torch.from_numpy(rng.choice(len(trial.rows), NUM_COPIES, replace=False))]
        audits = {"new scenes": new, "new takes": honest} | {
            f"copies {noise}": [
                torch.cat([kind[copied], fresh[NUM_COPIES:]]) for kind, fresh in zip(noisy[noise], new, strict=True)
            ]
            for noise in NOISES
        }
        for name, made in audits.items():
            counts.setdefault(name, []).append(trial.audit(made))
    return {name: np.mean(found, axis=0) for name, found in counts.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="for each cell")
    parser.add_argument("--scenes", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    clean, noisy = describe(arguments.scenes)
    print(f"| videos | clips each | audit | {' | '.join(f'{rule}: alarm | at once' for rule in RULES)} |")
    print(f"|---|---|---|{'---|' * 2 * len(RULES)}")
    for num_videos in (8, 24, 64):
        for takes in (1, TAKES):
            for name, shares in cell(clean, noisy, num_videos, takes, arguments.runs).items():
                numbers = " | ".join(f"{100 * share:.1f} %" for share in shares.flatten())
                print(f"| {num_videos} | {takes} | {name} | {numbers} |", flush=True)
    print(f"\n{arguments.runs} runs a cell, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
