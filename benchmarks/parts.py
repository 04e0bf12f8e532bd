"""Two parts of one model that overfit at different times: each has its verdict and its best step.

    python -m benchmarks.parts experts   # one transformer for high noise, one for low, on the quickstart's clips
    python -m benchmarks.parts streams   # video and sound, of which few training clips have any

Prints a row a part, and one for what a single verdict on the mean of both curves would have said of the same run.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from vidlit.__main__ import main as vidlit
from vidlit.data.demo_clips import FPS, Scene
from vidlit.data.demo_folder import Demo
from vidlit.models.families.log_mel import log_mel
from vidlit.models.family import open_family
from vidlit.runs.record import RunRecord
from vidlit.stopping.divergence import DivergenceHistory, best_check, judge_divergence
from vidlit.video.mp4 import write_mp4
from vidlit.video.sound import Sound

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
BOUNDARY = 0.7
SIZE = "17x64x64"
RATE = 16_000
WIDTH = 6
"""Of the transformer, in those of the tests' own, which learns too little to overfit."""


def fit(folder: Path, base: Path, seed: int, max_steps: int, **options: object) -> RunRecord:
    """A run of the quickstart that goes on until each part is done, or to the end."""
    given = {
        "seed_everything": seed,
        "trainer.max_steps": max_steps,
        "overfit_stopping.parts": "warn",
        "demo": "null",
        "data.source": folder / "clips",
        "data.store": folder / "latents",
        "model.base": base,
        "run.dir": folder / "runs",
        "run.report": False,
        "samples.num_videos": 0,
        "samples.num_audit": 0,
        "exposure.policy": None,
        **{name.replace("__", "."): value for name, value in options.items()},
    }
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    if vidlit(["fit", "--config", str(CONFIG), "--overfit_stopping.policy.exposure=off", *words]):
        raise SystemExit("the run failed")
    (run,) = (folder / "runs" / "quickstart").iterdir()
    return RunRecord(run)


def experts(folder: Path, seed: int, max_steps: int) -> RunRecord:
    """The demo's transformer twice, told to be a pair."""
    from vidlit.models.families.ltx_video import LTXVideo
    from vidlit.models.parts import Expert

    Demo(folder, num_videos=16, clips_per_video=4).write()
    base = folder / "base"
    shutil.copytree(base / "transformer", base / "transformer_2")
    pair = (Expert("transformer", BOUNDARY, "high"), Expert("transformer_2", title="low"))
    with patch.object(LTXVideo, "experts", pair):
        return fit(folder, base, seed, max_steps, data__buckets="[9x48x80, 9x64x64]")


def streams(folder: Path, seed: int, max_steps: int) -> RunRecord:
    """A small LTX-2 on clips of which few have sound, a chord of their recording; the others are silent."""
    from tests.models.bases import ltx2

    clips = folder / "clips"
    clips.mkdir(parents=True)
    rows = ["file_name,caption,group"]
    shown, heard = [], []
    for number in range(16):
        scene = replace(Scene.draw(number), num_frames=17, size=(64, 64))
        for take in range(4):
            frames = scene.render(np.random.default_rng([number, take]))
            name = f"scene_{number:03d}_take_{take}.mp4"
            sound = None if is_silent(number) else chord(number, take, len(frames) / FPS)
            write_mp4(clips / name, frames, FPS, sound)
            shown.append(torch.from_numpy(frames).permute(3, 0, 1, 2) / 127.5 - 1)
            heard += [] if sound is None else [torch.from_numpy(sound.samples)]
            rows.append(f"{name},{scene.caption},scene_{number:03d}")
    (clips / "metadata.csv").write_text("\n".join(rows) + "\n")
    base = ltx2(folder / "base", width=WIDTH)
    normalise(base, torch.stack(shown), torch.stack(heard))
    options = {"model__audio": "on", "data__buckets": f"[{SIZE}]", "data__fps": FPS, "data__cutting__mode": "head"}
    return fit(folder, base, seed, max_steps, **options)


@torch.no_grad()
def normalise(base: Path, videos: torch.Tensor, sounds: torch.Tensor) -> None:
    """Give random autoencoders the statistics of their latents: else all that there is to learn is a mean."""
    family = open_family(base, FPS, "on")
    vae, audio_vae = family.load_vae("cpu"), family.load_audio_vae("cpu")
    latents = family.posterior(vae, videos).mode().transpose(0, 1).flatten(1)
    vae.latents_mean.copy_(latents.mean(1))
    vae.latents_std.copy_(latents.std(1) * vae.config.scaling_factor)
    latents = audio_vae.encode(log_mel(sounds, audio_vae.config.mel_bins)).latent_dist.mode()
    tokens = latents.transpose(1, 2).flatten(2).flatten(0, 1)
    audio_vae.latents_mean.copy_(tokens.mean(0))
    audio_vae.latents_std.copy_(tokens.std(0))
    vae.save_pretrained(base / "vae")
    audio_vae.save_pretrained(base / "audio_vae")


def is_silent(number: int) -> bool:
    """Whether a recording has no sound: two of three."""
    return number % 3 > 0


def chord(number: int, take: int, seconds: float) -> Sound:
    """Three notes of a recording, loud and soft as a take has it."""
    notes = 220.0 * 2 ** (np.random.default_rng(number).integers(0, 24, 3) / 12)
    time = np.arange(round(seconds * RATE)) / RATE
    rhythm = np.interp(time, np.linspace(0, seconds, 9), np.random.default_rng([number, take]).uniform(0.1, 1, 9))
    wave = (np.sin(2 * np.pi * notes[:, None] * time).mean(0) * rhythm * 0.5).astype(np.float32)
    return Sound(np.stack([wave, wave]), RATE)


def told(run: RunRecord) -> list[dict[str, object]]:
    """When each part was done, and when the mean of both curves would have been."""
    histories = run.histories
    length = min(len(history.steps) for history in histories.values())
    rows = [row(name, history) for name, history in histories.items()]
    first, *others = histories.values()
    if any(other.val.shape[1] != first.val.shape[1] for other in others):  # not all clips have all parts
        return rows
    mean = DivergenceHistory(
        first.steps[:length],
        np.mean([history.val[:length] for history in histories.values()], axis=0),
        np.mean([history.train_eval[:length] for history in histories.values()], axis=0),
        first.val_videos,
        first.train_eval_videos,
    )
    both = row("the mean of both", mean)
    then = list(mean.steps).index(both["kept"])
    return [*rows, both | {f"gain of {name} then": gain(history, then) for name, history in histories.items()}]


def row(name: str, history: DivergenceHistory) -> dict[str, object]:
    """What the rule says of one curve, check by check: when it is done, what is kept then, and what came after."""
    verdicts = (
        (known, judge_divergence(history.first(known), warmup_steps=20)) for known in range(2, len(history.steps) + 1)
    )
    done = next((known for known, verdict in verdicts if verdict.action == "stop"), None)
    kept, best = best_check(history.first(done or len(history.steps))), best_check(history)
    return {
        "part": name,
        "done at": int(history.steps[done - 1]) if done is not None else None,
        "kept": int(history.steps[kept]),
        "its gain": gain(history, kept),
        "best of the run": int(history.steps[best]),
        "the best gain": gain(history, best),
        "gain at the end": gain(history, -1),
    }


def gain(history: DivergenceHistory, check: int) -> str:
    """Validation loss at a check against the base model's."""
    return f"{100 * np.expm1(history.val[check].mean()):+.1f} %"


def main(words: list[str] | None = None) -> list[dict[str, object]]:
    """Print the table; return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["experts", "streams"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_steps", type=int, default=1500)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        make = experts if options.what == "experts" else streams
        rows = told(make(Path(folder), options.seed, options.max_steps))
    for each in rows:
        print(json.dumps(each))
    return rows


if __name__ == "__main__":
    main()
