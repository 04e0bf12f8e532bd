"""Encoding on a Ray cluster: what a machine that dies had not committed is done by the others.

CPU workers decode clips in tasks that Ray places and repeats. An encoder, one a GPU, runs the autoencoders on batches
of one resolution; a writer on each node makes shards of what its encoders give. What counts as done is what the store
holds: a round in which anything was lost is followed by another one for what is missing then.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vidlit.errors import UserError
from vidlit.latents.encode.decode import ClipDecoder, DecodedClips
from vidlit.latents.encode.device_encoders import DeviceEncoders
from vidlit.latents.encode.progress import EncodeProgress
from vidlit.latents.encode.work import Job, Retried, Work, encode_captions
from vidlit.latents.store_folder import unique_name

if TYPE_CHECKING:
    from vidlit.latents.recipe import PromptRecipe
    from vidlit.latents.store import Item

T = TypeVar("T")

_DECODED_AHEAD = 2
"""Batches for each CPU that are decoded or being decoded: encoders seldom wait, and memory holds no more."""
_QUEUED = 2
"""Batches that an encoder has, with the one that it is at."""


class RayEngine:
    """The cluster that Ray's own settings name (``RAY_ADDRESS``), one that runs on this machine, or a new one here."""

    is_first = True
    """There is one process that looks at the store: this one."""

    def run(self, work: Work, job: Job) -> None:
        """Encode what is missing.

        Raises:
            UserError: Ray is not installed, its cluster cannot be reached, nothing comes through in a round in which
                something is lost, or an encoder or a writer refuses.
        """
        if not work.is_missing:
            return
        left = replace(work)  # the lists of ``work`` say what was missing before
        with _cluster() as ray, EncodeProgress(len(work.todo)) as progress:
            while left.is_missing:
                before = len(left.todo) + len(left.todo_prompts)
                if not _Round(ray, left, job, progress).run():
                    return
                left.look(job.store, Retried(final=False, transient=False))
                progress.done = progress.total - len(left.todo)  # clips of a lost shard were counted
                if len(left.todo) + len(left.todo_prompts) == before:
                    raise UserError(
                        f"{before} clips and captions were lost with the processes that had them, and no other came "
                        "through. See Ray's logs (`ray logs`) and the memory of these machines, then run again: "
                        "encoding continues from what the store has."
                    )

    def shared(self, found: T | None) -> T:
        """What the first process found, which is this one."""
        assert found is not None
        return found


@contextlib.contextmanager
def _cluster() -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise UserError('--engine ray needs Ray: pip install "vidlit[ray]".') from error
    joined = ray.is_initialized()
    if not joined:
        try:
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"the Ray cluster cannot be reached ({reason}): is RAY_ADDRESS right?") from error
    try:
        yield ray
    finally:
        if not joined:
            ray.shutdown()


class _Encoder:
    """An actor: the base's encoders on one device, loaded when first needed, so that an error is the first call's."""

    def __init__(self, job: Job, device: str) -> None:
        self.job, self.device = job, torch.device(device)
        self.encoders: DeviceEncoders | None = None

    def _loaded(self) -> DeviceEncoders:
        if self.encoders is None:
            self.encoders = self.job.encoders(self.device)
        return self.encoders

    def encode_clips(self, work: Work, decoded: DecodedClips) -> tuple[str, list[Item]]:
        """The node that it is on, and the items of a batch."""
        return _node(), work.encode_clips(decoded, self._loaded())

    def encode_captions(self, recipes: list[PromptRecipe]) -> tuple[str, list[Item]]:
        """The node that it is on, and the items of captions."""
        return _node(), encode_captions(recipes, self._loaded().encoders)


class _NodeWriter:
    """An actor: makes shards of what the encoders of its node give."""

    def __init__(self, job: Job) -> None:
        self.writer = job.writer()

    def add(self, items: list[Item]) -> tuple[int, int]:
        """How many clips it took, and how many of them are quarantined."""
        self.writer.add(items)
        clips = [item for item in items if item.clip_id]  # the others are captions
        return len(clips), sum(bool(item.reason) for item in clips)

    def flush(self) -> None:
        """Commit what waits."""
        self.writer.flush()


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


_decoders: dict[str, ClipDecoder] = {}  # a worker process keeps that of the latest round, and it its place in a file


def _decode(job: Job, name: str, work: Work) -> DecodedClips:
    """A task of a round: all clips of some work, which are of one bucket."""
    if name not in _decoders:
        _decoders.clear()
        _decoders[name] = ClipDecoder(job.decoding)
    return _decoders[name].decode(range(len(work.clips)), work.clips)


class _Round:
    """All that is missing, once through the cluster.

    Args:
        ray: the package, connected.
        work: what is missing.
        job: of tasks and actors.
        progress: told of clips that reached a writer.
    """

    def __init__(self, ray: Any, work: Work, job: Job, progress: EncodeProgress) -> None:
        self.ray, self.work, self.job, self.progress = ray, work, job, progress
        self.num_gpus = int(ray.cluster_resources().get("GPU", 0))
        self.encoders = self._start_encoders()
        self.queued: Counter[int] = Counter()  # batches that each of them has
        self.writers: dict[str, Any] = {}  # by node
        self.decoding: dict[Any, Work] = {}  # what is waited for -> of what it is
        self.encoding: dict[Any, tuple[int, Any]] = {}
        self.writing: list[Any] = []
        self.lost = False

    def run(self) -> bool:
        """Was anything lost?

        Raises:
            UserError: an encoder or a writer refuses.
        """
        try:
            self._captions()
            self._clips()
        except UserError:  # such as a full disk, which would only fail again
            raise
        except BaseException:
            self._flush()
            raise
        self._flush()
        return self.lost

    def _start_encoders(self) -> list[Any]:
        """One a GPU; without any, one a node, beside the decoders that have its CPUs."""
        ray = self.ray
        # One of a node that dies comes up again where there is room, and repeats what it was at.
        made = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Encoder)
        if self.num_gpus:
            return [made.options(num_gpus=1).remote(self.job, "cuda") for _ in range(self.num_gpus)]
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not nodes:
            raise UserError("the Ray cluster has no CPU to work with.")
        return [made.options(**_on(node, soft=True)).remote(self.job, "cpu") for node in nodes]

    def _captions(self) -> None:
        batches = deque(self.work.caption_batches())
        while batches or self.encoding or self.writing:
            while batches and (number := self._free_encoder()) is not None:
                recipes = [self.work.prompt(row) for row in batches.popleft()]
                self._send(number, "encode_captions", recipes)
            self._take_one()

    def _clips(self) -> None:
        decode, job, name = self.ray.remote(num_cpus=1, max_retries=-1)(_decode), self.ray.put(self.job), unique_name()
        batches = deque(self.work.clip_batches(self.job.encoding, on_gpu=self.num_gpus > 0))
        decoded: deque[tuple[Work, Any]] = deque()
        most = _DECODED_AHEAD * max(1, int(self.ray.cluster_resources().get("CPU", 1)))
        while batches or decoded or self.decoding or self.encoding or self.writing:
            while batches and len(decoded) + len(self.decoding) < most:
                part = self.work.clips_alone(batches.popleft())
                self.decoding[decode.remote(job, name, part)] = part
            while decoded and (number := self._free_encoder()) is not None:
                self._send(number, "encode_clips", *decoded.popleft())
            found = self._take_one()
            if found is not None:
                decoded.append(found)

    def _free_encoder(self) -> int | None:
        number = min(range(len(self.encoders)), key=self.queued.__getitem__)
        return number if self.queued[number] < _QUEUED else None

    def _send(self, number: int, method: str, *given: Any) -> None:
        node, items = getattr(self.encoders[number], method).options(num_returns=2).remote(*given)
        self.encoding[node] = number, items
        self.queued[number] += 1

    def _take_one(self) -> tuple[Work, Any] | None:
        """Wait for the next thing that is done, and hand it on; a decoded batch is given back."""
        waited_for = [*self.decoding, *self.encoding, *self.writing]
        (done, *_), _ = self.ray.wait(waited_for, num_returns=1, fetch_local=False)  # frames go to encoders, not here
        if done in self.decoding:
            return self.decoding.pop(done), done
        if done in self.encoding:
            number, items = self.encoding.pop(done)
            self.queued[number] -= 1
            node = self._result(done)
            if node is not None:
                self.writing.append(self._writer_of(node).add.remote(items))
            return None
        self.writing.remove(done)
        counts = self._result(done)
        if counts is not None:
            self.progress.advance(*counts)
        return None

    def _writer_of(self, node: str) -> Any:
        if node not in self.writers:
            made = self.ray.remote(num_cpus=0)(_NodeWriter)
            self.writers[node] = made.options(**_on(node, soft=False)).remote(self.job)
        return self.writers[node]

    def _flush(self) -> None:
        for written in [writer.flush.remote() for writer in self.writers.values()]:
            self._result(written)

    def _result(self, reference: Any) -> Any:
        """What a task or an actor gave; ``None`` where it was lost with its machine.

        Raises:
            UserError: it refused.
        """
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            if not isinstance(error.cause, errors.RayError):  # a bug of ours, not a machine
                raise
            self.lost = True
        except errors.RayError:
            self.lost = True
        return None


def _on(node: str, *, soft: bool) -> dict[str, Any]:
    """Options that place an actor on a node; ``soft`` where another one will do when it is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=soft)}
