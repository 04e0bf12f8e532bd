"""Real clips from a folder as a source of runs: excerpts of its recordings, encoded once and kept beside the bases.

Recordings are shared out by the run's seed: some to validate on, one clip each at two noise levels as `fit` does it;
some to train on; all others, several excerpts each, are the oracle, which no rule sees. The bases of LoRA runs are
trained on a fixed third of the recordings, which those runs use for nothing else.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from itertools import chain
from json import dumps
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.stopping.real_runs import FolderPlan
from benchmarks.stopping.training import Recorder, ScoredSet, write_trained_base
from vidlit.diffusion.batch import LatentSample, clip_key
from vidlit.diffusion.noising import NUM_LEVELS
from vidlit.models.demo_base import write_base
from vidlit.models.encoders import BaseEncoders
from vidlit.models.family import open_family
from vidlit.stopping.schedule import scored_train_clips
from vidlit.video.frames import ClipRequest, VideoError, read_clip
from vidlit.video.sources import SourceVideo, read_sources

FRAMES, SIZE, FPS = 5, 48, 16
EXCERPTS = 8  # of a clip, end to end: 2.5 seconds
CAPTION_LENGTH = 20  # bytes are tokens here, and long prompts cost more than the clips
BASE_RECORDINGS = 28  # that only the LoRA runs' base is trained on
BASE_EVERY = 2  # steps between the checks that nobody makes: 480 in all
ORACLE_RECORDINGS, ORACLE_EXCERPTS = 14, 2
MIN_ORACLE_RECORDINGS = 8


class Recording(NamedTuple):
    """Excerpts of one recording."""

    excerpts: list[LatentSample]  # in the order of clips and time
    motion: float  # mean absolute difference between frames, in grey levels


class FolderClips:
    """A folder of videos with captions and groups as a :class:`benchmarks.stopping.training.Source`.

    Args:
        source: the folder, in any layout that the package reads.
        folder: to keep encoded clips and bases in.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.untrained = folder / "base"

    @cached_property
    def recordings(self) -> list[Recording]:
        """All recordings of the folder, in the order of their names; encoded when first asked for."""
        path = self.folder / f"recordings-{FRAMES}x{SIZE}.pt"
        if not path.is_file():
            torch.save(self._encode(), path)
        found = []
        for number, (motion, excerpts) in enumerate(torch.load(path)):
            samples = [
                LatentSample(latents, prompt.float(), row, clip_key(f"{number}_{row}"))
                for row, (latents, prompt) in enumerate(excerpts)
            ]
            found.append(Recording(samples, motion))
        return found

    def _encode(self) -> list[tuple[float, list[tuple[torch.Tensor, torch.Tensor]]]]:
        """Motion and, of each excerpt, latents and prompt, by recording."""
        groups: dict[str, list[tuple[str, np.ndarray]]] = {}
        for video in read_sources(self.source).videos:
            groups.setdefault(video.group, []).append((video.caption, _frames(video)))
        every_clip = [frames for clips in groups.values() for _, frames in clips]
        if not (self.untrained / "model_index.json").is_file():
            write_base(
                self.untrained,
                (torch.from_numpy(clip[:FRAMES]).permute(3, 0, 1, 2)[None] / 127.5 - 1 for clip in every_clip),
            )
        encoders = BaseEncoders(open_family(self.untrained, fps=FPS))
        found = []
        for _, clips in sorted(groups.items()):
            motion = float(np.mean([np.abs(np.diff(frames.astype(np.float32), axis=0)).mean() for _, frames in clips]))
            excerpts = []
            for caption, frames in clips:
                prompt = encoders.encode_captions([caption[:CAPTION_LENGTH]])[0]["prompt_embeds"]
                latents = encoders.encode_video(torch.from_numpy(frames).unflatten(0, (-1, FRAMES)))["latents"]
                excerpts += [(excerpt.clone(), prompt.half()) for excerpt in latents]
            found.append((motion, excerpts))
        return found

    def base(self, plan: FolderPlan) -> Path:
        """The untrained base, or one trained on recordings that LoRA runs do not use."""
        assert self.recordings  # encoding writes the untrained base
        if plan.kind != "lora":
            return self.untrained
        clips = _numbered(chain.from_iterable(self.recordings[k].excerpts for k in self.base_recordings()))
        long = FolderPlan("scratch", BASE_RECORDINGS, EXCERPTS, "all", 4, 1e-3, 1000, BASE_EVERY)
        return write_trained_base(self.untrained, self.folder / "trained_base", long, clips)

    def base_recordings(self) -> list[int]:
        """Numbers of the recordings that the LoRA runs' base is trained on."""
        return self._order(0)[:BASE_RECORDINGS]

    def _order(self, seed: int, motion: str = "all") -> list[int]:
        """Numbers of the recordings, shuffled; of the still or the moving half."""
        numbers = np.random.default_rng(seed).permutation(len(self.recordings)).tolist()
        if motion == "all":
            return numbers
        amounts = np.array([recording.motion for recording in self.recordings])
        return [k for k in numbers if (amounts[k] <= np.median(amounts)) == (motion == "still")]

    def shares(self, plan: FolderPlan) -> dict[str, list[int]]:
        """Numbers of the recordings to validate on, to train on and of the oracle; no two shares have one in common."""
        numbers = self._order(1000 + plan.seed, plan.motion)
        if plan.kind == "lora":
            taken = set(self.base_recordings())
            numbers = [k for k in numbers if k not in taken]
        val, others = numbers[: plan.val_recordings], numbers[plan.val_recordings :]
        train, oracle = others[: plan.recordings], others[plan.recordings :]
        if len(train) < plan.recordings or len(oracle) < MIN_ORACLE_RECORDINGS:
            raise ValueError(f"{plan.name}: {len(numbers)} recordings are too few")
        return {"val": val, "train": train, "oracle": oracle[:ORACLE_RECORDINGS]}

    def training_clips(self, plan: FolderPlan) -> list[LatentSample]:
        """Some excerpts of each training recording, spread over it."""
        chosen = (_spread(self.recordings[k].excerpts, plan.takes) for k in self.shares(plan)["train"])
        return _numbered(chain.from_iterable(chosen))

    def recorder(self, plan: FolderPlan) -> Recorder:
        """Validation and a training subset as shipped, the oracle, and in some runs validation at four noise levels."""
        shares = self.shares(plan)
        val = [self.recordings[k].excerpts[0] for k in shares["val"]]
        train = [self.recordings[k].excerpts[0] for k in _scored_training(plan, shares)]
        oracle = []
        for place, k in enumerate(shares["oracle"]):
            for number, clip in enumerate(_spread(self.recordings[k].excerpts, ORACLE_EXCERPTS)):
                # One level each, all levels in turn, those of one recording far apart.
                level = (place + number * NUM_LEVELS // ORACLE_EXCERPTS) % NUM_LEVELS
                oracle.append(clip._replace(key=clip.key - clip.key % NUM_LEVELS + level))
        sets = {"paired": ScoredSet(val + train, 2, plan.seed), "oracle": ScoredSet(oracle, 1, 0, spacing=2)}
        if plan.four_levels:  # those two, and two between them, under other noise
            sets["val_4"] = ScoredSet(val, 4, plan.seed + 1_000_000)
        return Recorder(plan.every, sets)

    def arrays(self, plan: FolderPlan, recorder: Recorder) -> dict[str, np.ndarray]:
        """Log-ratios to step 0 (J, ...), their losses at step 0 and noise levels, and the recordings they are of."""
        shares = self.shares(plan)
        num_val = len(shares["val"])
        paired, oracle = recorder.sets["paired"], recorder.sets["oracle"]
        ratios, start = recorder.log_ratios("paired").half().numpy(), recorder.rows["paired"][0].numpy()
        losses = recorder.table("oracle")[..., 0]
        arrays = {
            "plan": np.array(dumps(asdict(plan))),
            "val": ratios[:, :num_val],  # (J, N, 2)
            "val_start": start[:num_val],  # (N, 2)
            "val_sigmas": paired.sigmas[:num_val].numpy(),
            "val_groups": np.array(shares["val"], np.int16),
            "train_eval": ratios[:, num_val:],  # (J, M, 2)
            "train_eval_start": start[num_val:],
            "train_eval_sigmas": paired.sigmas[num_val:].numpy(),
            "train_eval_groups": np.array(_scored_training(plan, shares), np.int16),
            "oracle": recorder.log_ratios("oracle")[..., 0].half().numpy(),  # (every second of J, clips)
            "oracle_sigmas": oracle.sigmas[:, 0].numpy(),
            "oracle_groups": np.repeat(np.array(shares["oracle"], np.int16), ORACLE_EXCERPTS),
            "oracle_loss": losses.mean(1).float().numpy(),  # (every second of J,)
            "train": np.array(recorder.train_rows, np.float16),  # (J,) mean training loss since the check before
        }
        if "val_4" in recorder.sets:
            arrays["val_4"] = recorder.log_ratios("val_4").half().numpy()  # (J, N, 4)
            arrays["val_4_sigmas"] = recorder.sets["val_4"].sigmas.numpy()
        return arrays


def _scored_training(plan: FolderPlan, shares: dict[str, list[int]]) -> list[int]:
    """Training recordings that are scored, as many as shipped."""
    return shares["train"][: scored_train_clips(plan.val_recordings)]


def _frames(video: SourceVideo) -> np.ndarray:
    """Frames of a video's beginning (F, SIZE, SIZE, 3), as many whole excerpts as it holds, eight at most."""
    for excerpts in range(EXCERPTS, 1, -1):
        try:
            return read_clip(ClipRequest(video.path, video.start or 0.0, excerpts * FRAMES, FPS, SIZE, SIZE))
        except VideoError:
            continue
    return read_clip(ClipRequest(video.path, video.start or 0.0, FRAMES, FPS, SIZE, SIZE))


def _spread(excerpts: list[LatentSample], count: int) -> list[LatentSample]:
    """So many of them, the first included, evenly spread; some twice where there are fewer."""
    return [excerpts[k * len(excerpts) // count] for k in range(count)]


def _numbered(clips) -> list[LatentSample]:
    """Clips with rows from 0."""
    return [clip._replace(row=row) for row, clip in enumerate(clips)]
