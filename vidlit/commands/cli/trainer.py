"""Lightning's Trainer with two more things it can run: filling the store, and planning."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from vidlit.commands.plan import print_plan
from vidlit.data.datamodule import LatentDataModule
from vidlit.errors import UserError
from vidlit.latents.store import LatentStore
from vidlit.runs.checkpoint_files import save_sharded, shards_weights
from vidlit.signals.validation_schedule import check_interval
from vidlit.training.forecast import RunPlan, make_plan
from vidlit.training.module import VideoDiffusionModule


class VidlitTrainer(Trainer):
    """Lightning's Trainer with two more things it can run, and checkpoints that are never half written."""

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """As Lightning's; folders of shards take the old one's place in one act, as files do."""
        save = super().save_checkpoint
        if shards_weights(self):
            save_sharded(lambda path: save(path, weights_only, storage_options), Path(filepath), self)
        else:
            save(filepath, weights_only, storage_options)

    def encode(
        self,
        model: VideoDiffusionModule,
        datamodule: LatentDataModule,
        verify: bool = False,
        retry_quarantined: bool = False,
    ) -> None:
        """Fill the latent store with what it lacks.

        Args:
            model: not used.
            datamodule: the folder and the store.
            verify: encode nothing; read everything stored and compare it with its checksum.
            retry_quarantined: try clips again that could not be encoded before.

        Raises:
            UserError: something stored is damaged.
        """
        if verify:
            _verify(datamodule.store)
            return
        options = {"accelerator": self.accelerator_name, "devices": self.num_devices, "num_nodes": self.num_nodes}
        print(datamodule.encode(retry_quarantined, **options))

    def plan(self, model: VideoDiffusionModule, datamodule: LatentDataModule, json: bool = False) -> RunPlan:
        """Show what a fit would do: clips used and left out, batches, exposures, cost.

        Args:
            model: only its optimizer is asked, for the learning rate, and how it is scored.
            datamodule: the folder and the buckets.
            json: print one JSON object for programs instead of tables.
        """
        optimizer = model.optimizer([torch.nn.Parameter(torch.zeros(1, 1))])  # Muon takes matrices only
        made = make_plan(
            datamodule,
            max_steps=self.max_steps,
            num_replicas=self.world_size,
            accumulate=self.accumulate_grad_batches,
            learning_rate=float(optimizer.param_groups[0]["lr"]),
            num_strata=model.num_strata,
            check_interval=check_interval(self),
        )
        if json:
            print(dumps(made.as_dict(), indent=2))
        else:
            print_plan(made)
        return made

    @property
    def accelerator_name(self) -> str:
        """As the Trainer's ``accelerator`` option takes it."""
        return self.strategy.root_device.type.replace("cuda", "gpu")


def _verify(store: LatentStore) -> None:
    damaged = list(store.verify())
    for damage in damaged:
        print(f"{damage.kind} {damage.name} ({damage.shard}): {damage.problem}")
    if damaged:
        raise UserError(
            f"{len(damaged)} items of {store.root} are damaged: delete the files named above, then encode again."
        )
    print(f"{store.root}: all checksums match.")
