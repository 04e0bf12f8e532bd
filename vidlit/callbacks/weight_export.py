"""Writes the weights users take away, after the best ones are restored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from vidlit.diffusion.conditions import are_always_given
from vidlit.models.adapters import expert_title, pipeline_loads_lora
from vidlit.models.base_folder import add_base_parts
from vidlit.report.model_card import CardFacts, check_hub_name, push, write_model_card
from vidlit.runs.record import RunRecord
from vidlit.runs.wording import say
from vidlit.signals.overfit_stopping import OverfitStopping
from vidlit.training.run_callback import RunCallback


class WeightExport(RunCallback):
    """Fills ``weights/`` of the run directory with what diffusers loads: a LoRA file, or the transformer's folder.

    Beside it a model card (``README.md``) says what the weights are, why training stopped, and how to load them.

    Args:
        base_parts: the base's other parts (VAE, text encoders, tokenizers, scheduler) beside a fully fine-tuned
            transformer: as a ``link`` or a ``copy`` they make the folder a whole model, for pipelines and as
            ``model.base`` of another run; ``none`` for the transformer alone. A LoRA is always exported alone.
        push_to_hub: owner/name of the Hugging Face hub repository to upload weights and card to, created private if it
            is new; ``None`` for no upload.

    Raises:
        UserError: ``push_to_hub`` is no such name.
    """

    section = "export"

    def __init__(self, base_parts: Literal["none", "link", "copy"] = "link", push_to_hub: str | None = None) -> None:
        self.base_parts = base_parts
        self.push_to_hub = push_to_hub
        if push_to_hub is not None:
            check_hub_name(push_to_hub)

    def on_fit_end(self, *_: Any) -> None:
        """Export, before samples are made: whatever fails after this, the weights are there."""
        if not self.module.is_loaded:
            return
        self.module.export(self.run.weights)  # gathers what is sharded, so all ranks are here
        if self.trainer.is_global_zero and not self.is_lora and self.base_parts != "none":
            trained = list(self.module.transformers)
            add_base_parts(self.module.family.base, self.run.weights, trained, copy=self.base_parts == "copy")

    @property
    def is_lora(self) -> bool:
        """Whether an adapter is what was trained."""
        return bool(getattr(next(iter(self.module.transformers.values())), "peft_config", None))


class ModelCard(RunCallback):
    """Describes exported weights, with their samples, and uploads both where that is asked for.

    Args:
        export: what wrote the weights.
    """

    def __init__(self, export: WeightExport) -> None:
        self.export = export

    def on_fit_end(self, *_: Any) -> None:
        """Describe and upload."""
        if not self.module.is_loaded or not self.trainer.is_global_zero:
            return
        if not any("num_clips" in each.summary for each in self.others(OverfitStopping)):
            return  # the run ended before its first check
        for logger in self.trainer.loggers:
            logger.save()  # the card draws from metrics.csv
        family = self.module.family
        facts = CardFacts(
            base=self.module.base,
            base_folder=family.base,
            pipeline_class=family.reference_pipeline if self.module.reads_references else family.pipeline_class,
            transformer_class=family.transformer_class,
            takes_image=are_always_given(self.module.conditions) or bool(family.image_extras),
            takes_reference=self.module.reads_references,
            is_lora=self.export.is_lora,
            experts={name: title for name in self.module.expert_names if (title := expert_title(family, name))},
            pipeline_loads_lora=pipeline_loads_lora(family) and getattr(self.module.adapter, "variant", "") != "lokr",
            has_guider=(family.base / "guider").is_dir(),
            size=max(self.data.buckets, key=math.prod),
            fps=family.fps,
        )
        write_model_card(RunRecord(self.run.path), facts)
        if self.export.push_to_hub is not None:
            self._push(self.run.weights, self.export.push_to_hub)

    def _push(self, folder: Path, name: str) -> None:
        """Upload; whatever goes wrong, the weights are here."""
        try:
            print(f"Uploaded to {push(folder, name)}")
        except Exception as error:
            say(
                f"vidlit: warning: nothing was uploaded to {name} ({type(error).__name__}: {error}). The weights are "
                f"in {folder}. Log in with `hf auth login`, then `hf upload {name} {folder}`."
            )
