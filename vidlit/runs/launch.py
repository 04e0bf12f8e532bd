"""Processes that something else than vidlit started: who they are, and how they agree before Lightning connects them.

Where Lightning launches further processes itself, the first one decides and the others inherit its environment.
torchrun, SLURM, LSF and MPI start all at once, so one of them must decide and tell the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch exports it without declaring it

from vidlit.errors import UserError

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
