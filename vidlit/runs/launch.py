"""Several processes: who they are, how they agree before Lightning connects them, what is said when one of them dies.

Where Lightning launches further processes itself, the first one decides and the others inherit its environment.
torchrun, SLURM, LSF and MPI start all at once, so one of them must decide and tell the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch exports it without declaring it

from vidlit.errors import UserError, is_lost_rank
from vidlit.lightning_internals import before_ranks_are_killed, launched_processes

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_SECONDS_TO_DIE = 2.0  # a connection breaks a moment before the system knows that its process is gone
_SECONDS_TO_END = 20.0  # a rank whose connection broke ends by itself, when its loggers are closed
_PATIENCE = timedelta(minutes=15)  # ranks of a large job come up one after the other


@dataclass(frozen=True)
class Launch:
    """One of several processes that were started at once.

    Args:
        rank: of this process; 0 decides.
        world_size: number of them.
        address: host where they meet, which is rank 0's.
        port: where they meet.
        num_nodes: machines, where the launcher says so.
        devices: processes on each machine, where the launcher says so.
    """

    rank: int
    world_size: int
    address: str
    port: int
    num_nodes: int | None = None
    devices: int | None = None

    @classmethod
    def detect(cls, num_nodes: int = 1) -> Launch | None:
        """How this process was launched, if not by vidlit itself.

        Args:
            num_nodes: of the Trainer. With more than one and no launcher that Lightning knows, somebody starts one
                process a node by hand, with ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``.

        Raises:
            UserError: the launcher's settings cannot be used; says what to set.
        """
        for kind in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment):  # Lightning's order
            if kind.detect():
                found = _environment(kind)
                nodes = _num_nodes(found.world_size())
                devices = found.world_size() // nodes if nodes else None
                return cls(found.global_rank(), found.world_size(), found.main_address, found.main_port, nodes, devices)
        if num_nodes > 1 and "LOCAL_RANK" not in os.environ:
            by_hand = LightningEnvironment()
            return cls(by_hand.node_rank(), num_nodes, by_hand.main_address, by_hand.main_port, num_nodes)
        return None

    def agree(self, decide: Callable[[], Any]) -> Any:
        """What rank 0 decides, on all ranks.

        Args:
            decide: called on rank 0 alone; gives what JSON takes.

        Raises:
            UserError: the one that ``decide`` raised, on all ranks; or the ranks do not find each other.
        """
        if self.world_size == 1:
            return decide()
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun itself hosts a store there
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        hosts = self.rank == 0 and not agent
        key = f"vidlit/{restarts}"  # torchrun's store outlives those who wrote into it
        try:
            store = TCPStore(self.address, self.port, is_master=hosts, timeout=_PATIENCE, wait_for_workers=False)
            if self.rank == 0:
                store.set(key, json.dumps(_answer(decide)))
            answer = json.loads(store.get(key))
            if hosts:  # the store ends with this process's hold on it: not before all have heard
                store.wait([f"{key}/{rank}" for rank in range(1, self.world_size)])
            elif self.rank:
                store.set(f"{key}/{self.rank}", "")
        except RuntimeError as error:
            raise UserError(
                f"rank {self.rank} of {self.world_size} does not find the others at {self.address}:{self.port} "
                f"({str(error).splitlines()[0]}). Were all ranks started?"
            ) from error
        if "error" in answer:
            raise UserError(answer["error"])
        if agent and restarts != "0":
            # There the process group would meet the addresses of those who failed: it must meet elsewhere.
            os.environ.update(TORCHELASTIC_USE_AGENT_STORE="False", MASTER_PORT=answer["port"])
        return answer["value"]


@contextlib.contextmanager
def telling_of_lost_ranks(trainer: Trainer, last_checkpoint: Path | None) -> Iterator[None]:
    """Say in one error what happened where another rank dies, which shows as a connection that breaks.

    A connection may also stay open, as on GPUs, and where Lightning launched the ranks it kills those that are left:
    they say it before, and they have time to close what they write.

    Args:
        trainer: of this rank.
        last_checkpoint: of a fit, where the next one would go on, if it is there; ``None`` for another command.

    Raises:
        UserError: another rank died.
    """

    def tell() -> None:
        time.sleep(_SECONDS_TO_END)  # the thread ends with this process
        print(f"\nvidlit: error: {_lost(trainer, last_checkpoint)}", file=sys.stderr, flush=True)

    if trainer.world_size == 1:
        yield
        return
    before_ranks_are_killed(tell)
    try:
        yield
    except RuntimeError as error:
        if is_lost_rank(error):
            raise UserError(_lost(trainer, last_checkpoint)) from error
        raise
    before_ranks_are_killed(None)  # after an error it stays: the others may be killed before it is told


def _lost(trainer: Trainer, last_checkpoint: Path | None) -> str:
    if (found := _dead_child(trainer)) is not None:
        who = f"rank {found[0]} of {trainer.world_size} died ({found[1]})"
    elif trainer.world_size == 2:
        who = f"rank {1 - trainer.global_rank} of 2 died"
    else:
        who = f"another one of {trainer.world_size} ranks died"
    if last_checkpoint is None:
        then = "What was encoded is kept: give the same command again."
    elif last_checkpoint.exists():
        then = "What was saved is whole: go on with --ckpt_path last."
    else:
        then = "Nothing was saved yet: start again."
    return (
        f"{who}, and rank {trainer.global_rank} cannot go on without it. What it printed last says why; if it printed "
        f"nothing, the system ended it, most often for want of memory. {then}"
    )


def _dead_child(trainer: Trainer) -> tuple[int, str] | None:
    """Of the ranks that Lightning launched from this one the first that failed, and how it ended."""
    until = time.monotonic() + _SECONDS_TO_DIE
    children = launched_processes()
    while children and time.monotonic() < until:
        for place, child in enumerate(children, 1):
            if code := child.poll():
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                return trainer.global_rank + place, how
        time.sleep(0.05)
    return None


def _answer(decide: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": decide(), "port": str(find_free_network_port())}
    except UserError as error:
        return {"error": str(error)}


def _environment(kind: type[ClusterEnvironment]) -> ClusterEnvironment:
    try:
        return kind()
    except RuntimeError as error:  # SLURM without --ntasks-per-node: Lightning says what to set
        raise UserError(str(error)) from error


def _num_nodes(world_size: int) -> int | None:
    """Machines, by what torchrun or SLURM says."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return world_size // int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ["SLURM_NNODES"]) if "SLURM_NNODES" in os.environ else None
