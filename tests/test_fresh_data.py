"""Clips without end can be learned from for ever: such a run is never stopped."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vidlit.__main__ import main
from vidlit.data.demo_clips import Scene
from vidlit.diffusion.batch import Conditioning
from vidlit.models.encoders import BaseEncoders
from vidlit.training.module import VideoDiffusionModule


def fresh_clip(number, size):
    """Caption and frames (1, F, H, W, 3) of a scene that no other number gives."""
    scene = Scene.draw(2 * number)  # even numbers are square
    frames = torch.from_numpy(scene.render(np.random.default_rng(number)))[:5]
    resized = F.interpolate(frames.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
    return scene.caption, resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1)[None]


@pytest.mark.slow
def test_a_run_on_fresh_data_is_never_stopped(quickstart, tmp_path, monkeypatch):
    encoders, step = [], VideoDiffusionModule.training_step

    def training_step(self, batch, batch_idx):
        """The sampler's clips are exchanged for ones that nobody has seen."""
        if not encoders:
            encoders.append(BaseEncoders(self.family))
        first = 1_000_000 + self.trainer.global_step * len(batch.latents)
        clips = [fresh_clip(first + row, (48, 48)) for row in range(len(batch.latents))]
        latents = [encoders[0].encode_video(frames)["latents"] for _, frames in clips]
        prompts = [prompt["prompt_embeds"] for prompt in encoders[0].encode_captions([text for text, _ in clips])]
        known = batch.conditioning
        shape = len(prompts), max(map(len, prompts)), prompts[0].shape[1]
        embeds, mask = torch.zeros(shape, dtype=known.prompt_embeds.dtype), torch.zeros(shape[:2], dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            embeds[row, : len(prompt)], mask[row, : len(prompt)] = prompt.to(embeds), True
        fresh = batch._replace(
            latents=torch.cat(latents).to(batch.latents), conditioning=Conditioning(embeds, mask, known.extras)
        )
        return step(self, fresh, batch_idx)

    monkeypatch.setattr(VideoDiffusionModule, "training_step", training_step)
    words = quickstart(
        trainer__max_steps=240, trainer__val_check_interval=6, data__buckets="[5x48x48]", data__split__val_fraction=0.67
    )
    audits = ["--samples.num_audit=8", "--samples.audit_steps=4", "--samples.every_num_checks=10"]
    assert main([*words, *audits, "--data.batches.size=4"]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    decisions = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    assert len(decisions) == 40
    assert all(decision["action"] != "stop" for decision in decisions)
    assert summary["stopped_by"] == "max_steps"
    assert summary["stop_step"] == 240
    assert summary["gain"] > 0.1
    assert summary["best_step"] > 160  # it has learned to the end
    last = {verdict["signal"]: verdict for verdict in decisions[-1]["verdicts"]}
    assert last["copies"]["evidence"]["copies"] == 0
