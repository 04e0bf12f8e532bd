"""Folders of published bases without their weights: what a forecast needs, written where nothing can be fetched.

``published_configs/`` holds of each base what its configs state beyond the defaults of diffusers' and transformers'
classes. They were written down from what is known of the published files, not fetched; statistics of latents, on which
no memory depends, are left at zero and one.
"""

import json
from pathlib import Path

CONFIGS = Path(__file__).parent / "published_configs"


def published_bases() -> list[str]:
    """Hub names."""
    return sorted(path.stem.replace("--", "/") for path in CONFIGS.glob("*.json"))


def write_published(base: str, folder: Path) -> Path:
    """Write the configs of a base.

    Args:
        base: its hub name.
        folder: to write to.
    """
    import diffusers
    import torch

    for part, values in json.loads((CONFIGS / f"{base.replace('/', '--')}.json").read_text()).items():
        if part == "model_index.json":
            folder.mkdir(parents=True, exist_ok=True)
            (folder / part).write_text(json.dumps(values))
            continue
        (folder / part).mkdir(parents=True, exist_ok=True)
        made_by = getattr(diffusers, values.get("_class_name", ""), None)
        if made_by is None:  # of transformers, whose classes fill in the rest when they read it; or of a pipeline
            (folder / part / "config.json").write_text(json.dumps(values))
            continue
        given = {key: value for key, value in values.items() if key != "_class_name"}
        with torch.device("cpu" if part == "scheduler" else "meta"):
            made_by(**given).save_config(folder / part)
    return folder
