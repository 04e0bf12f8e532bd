"""Writes the weights users take away, after the best ones are restored."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning.pytorch import Callback, Trainer

from vidlit.run_directory import RunDirectory, write_text

if TYPE_CHECKING:
    from vidlit.module import VideoDiffusionModule


class WeightExport(Callback):
    """Fills ``weights/`` of the run directory with what diffusers loads: a LoRA file, or the transformer's folder.

    Args:
        base_parts: what lies beside a fully fine-tuned transformer: with the base's other parts (VAE, text encoders,
            tokenizers, scheduler), as a ``link`` or a ``copy``, the folder is a whole model, for pipelines and as
            ``model.base`` of another run; ``none`` leaves the transformer alone. A LoRA never has them.
    """

    def __init__(self, base_parts: Literal["none", "link", "copy"] = "link") -> None:
        self.base_parts = base_parts

    def on_fit_end(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:  # type: ignore[override]
        """Export."""
        if pl_module.transformer is None:
            return
        folder = RunDirectory(Path(trainer.default_root_dir)).weights
        pl_module.export(folder)  # gathers what is sharded, so all ranks are here
        if trainer.is_global_zero:
            if pl_module.adapter is None and self.base_parts != "none":
                add_base_parts(pl_module.family.base, folder, copy=self.base_parts == "copy")


def add_base_parts(base: Path, folder: Path, copy: bool) -> None:
    """Put what a base holds beside its transformer into a folder that has a transformer of its own.

    Args:
        base: a diffusers folder.
        folder: holds ``transformer``; parts that are there already are replaced.
        copy: or link, which costs no space and needs the base to stay where it is.
    """
    parts = (path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))
    for part in sorted(path for path in parts if path.name != "transformer"):
        target = folder / part.name
        if target.is_symlink():
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)
        if copy:
            shutil.copytree(part, target)
        else:
            target.symlink_to(part.resolve(), target_is_directory=True)
    if (base / "model_index.json").is_file():
        write_text(folder / "model_index.json", (base / "model_index.json").read_text())
