"""Lightning's Trainer that fills the store as well, and whose checkpoints are never half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from vidlit.callbacks.throughput import Throughput
from vidlit.data.datamodule import LatentDataModule
from vidlit.errors import UserError
from vidlit.latents.encode.missing import EngineName
from vidlit.latents.store import LatentStore
from vidlit.lightning_internals import callbacks_of
from vidlit.runs.checkpoint_files import save_sharded, shards_weights
from vidlit.runs.launch import Launch
from vidlit.runs.wording import say
from vidlit.training.blocks.context_parallel import check_context
from vidlit.training.module import VideoDiffusionModule

_LISTED = 20  # damaged tensors that --verify names; the rest are counted


class VidlitTrainer(Trainer):
    """Lightning's Trainer that also fills the store, and whose checkpoints are never half written."""

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
        repair: bool = False,
        engine: EngineName = "lightning",
    ) -> None:
        """Fill the latent store with what it lacks.

        Args:
            model: not used.
            datamodule: the folder and the store.
            verify: encode nothing; read everything stored and compare it with its checksum.
            retry_quarantined: try clips again that could not be encoded before, whatever the reason.
            repair: compare everything stored with its checksum, and encode again what is damaged or gone.
            engine: ``lightning`` encodes on this machine's devices; ``ray`` on the cluster that Ray's own settings name
                (RAY_ADDRESS), or on one of this machine.

        Raises:
            UserError: something stored is damaged.
        """
        if verify:
            _verify(datamodule.store)
            return
        report = datamodule.encode(
            retry_quarantined,
            repair,
            engine=engine,
            accelerator=self.accelerator_name,
            devices=self.num_devices,
            num_nodes=self.num_nodes,
        )
        if self.is_global_zero:
            for line in (str(report), *datamodule.usage.lines()):
                say(line)

    def check_before_encoding(self, model: VideoDiffusionModule, datamodule: LatentDataModule) -> None:
        """Refuse what cannot be trained before hours go into encoding.

        Args:
            model: to be trained.
            datamodule: the folder and the store.

        Raises:
            UserError: ranks and sizes do not go together, or the GPU's memory will not do.
        """
        check_context(model.family, model.context_parallel, self.world_size, datamodule.buckets)
        if not self.is_global_zero and Launch.detect(self.num_nodes) is None:
            return  # Lightning launches it when the first one has come past here
        for callback in callbacks_of(self):
            if isinstance(callback, Throughput):
                callback.refuse_early(self, model, datamodule)

    @property
    def accelerator_name(self) -> str:
        """As the Trainer's ``accelerator`` option takes it."""
        return self.strategy.root_device.type.replace("cuda", "gpu")


def _verify(store: LatentStore) -> None:
    damaged = 0
    for damaged, damage in enumerate(store.verify(), 1):
        if damaged <= _LISTED:
            print(f"{damage.kind} {damage.name[:200]} ({damage.shard[:200]}): {damage.problem}")
    if damaged > _LISTED:
        print(f"... {damaged - _LISTED} more")
    if damaged:
        raise UserError(
            f"{damaged} tensors of {store.storage} are damaged or gone. Run `vidlit encode --repair` with the same "
            "configuration: it encodes them again, and nothing else."
        )
    print(f"{store.storage}: all checksums match.")
