"""Shipped configurations made small: a tiny base, two steps, clips of one size."""

from pathlib import Path

import yaml

CONFIGS = Path(__file__).parents[1] / "configs"


def tiny_words(name, base, source, size, folder):
    """Options of a run of a shipped configuration that ends after two steps, a check after each, into a folder."""
    shipped = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    options = {
        "data.source": source,
        "data.store": folder / "latents",
        "data.buckets": f"[{size}]",
        "data.fps": 16,
        "data.split.val_fraction": 0.34,
        "data.split.test_fraction": 0.34,
        "data.encoding.num_workers": 1,
        "model.base": base,
        "model.warmup_steps": 1,
        "run.dir": folder / "runs",
        "samples.num_videos": 1,
        "samples.num_steps": 2,
        "samples.num_audit": 0,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.strategy": "auto",
        "trainer.max_steps": 2,
        "trainer.val_check_interval": shipped["trainer"].get("accumulate_grad_batches", 1),
        "trainer.log_every_n_steps": 1,
    }
    return ["--config", str(CONFIGS / f"{name}.yaml"), *(f"--{key}={value}" for key, value in options.items())]
