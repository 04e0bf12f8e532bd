"""Encoding on a real Ray cluster of two nodes: the same store as on one machine, whatever dies."""

import functools
import os
import threading
import time
from collections import Counter

import pytest
import torch

from tests.data.stand_ins import IDENTITY, ColourReader, LoggingEncoders, PoolingEncoders, make_clips
from tests.latents.encode.test_missing import CPU
from vidlit.errors import UserError
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.encode import progress
from vidlit.latents.encode.missing import encode
from vidlit.latents.encoding import Encoding
from vidlit.latents.recipe import Recipes
from vidlit.latents.store import LatentStore
from vidlit.video.buckets import Bucket

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
BUCKET, DEFAULT = Bucket(5, 16, 16), Encoding(batch_size=2)


@pytest.fixture(scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patched:
        yield patched


@pytest.fixture(scope="module")
def cluster(environment):
    """Two nodes; this process is a driver on the first. Starting processes takes most of the time, so all share it."""
    from ray.cluster_utils import Cluster

    environment.setenv("RAY_worker_niceness", "0")  # or they wait for whatever else this machine runs
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def on_ray(clips, store, load=PoolingEncoders, encoding=DEFAULT, **options):
    return encode(
        clips, store, Recipes(IDENTITY, encoding), load, engine="ray", **{"open_reader": ColourReader} | options
    )


class Dying(PoolingEncoders):
    """Its process dies at a clip, once."""

    def __init__(self, mark):
        super().__init__()
        self.mark = mark

    def encode_video(self, frames, sound):
        if (frames == 7).all(dim=(1, 2, 3, 4)).any() and not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return super().encode_video(frames, sound)


def test_the_store_is_that_of_one_machine_though_an_encoder_dies(tmp_path, cluster, capfd, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    clips = make_clips(23)
    bad = functools.partial(ColourReader, bad=("00005.mp4",))
    stores = [LatentStore(tmp_path / name) for name in ("ray", "local")]
    load = functools.partial(Dying, tmp_path / "mark")
    report = on_ray(clips, stores[0], load, open_reader=bad)
    assert (tmp_path / "mark").exists()
    assert "encoded 23 of 23 clips, 1 quarantined" in capfd.readouterr().err
    here = encode(clips, stores[1], Recipes(IDENTITY, DEFAULT), PoolingEncoders, open_reader=bad, trainer_options=CPU)
    assert (report.encoded, report.captions) == (here.encoded, here.captions) == (22, 3)
    assert [clip[:3] for clip in report.quarantined] == [clip[:3] for clip in here.quarantined]
    good = [clip for clip in clips if clip.clip_id != report.quarantined[0].clip_id]
    ours, theirs = (
        LatentDataset.from_clips(store, good, Recipes(IDENTITY), clip_extras=["first_frame"]) for store in stores
    )
    for row in range(22):
        for mine, other in zip(ours[row][:2], theirs[row][:2], strict=True):
            assert torch.equal(mine, other)
        assert torch.equal(ours[row].extras["first_frame"], theirs[row].extras["first_frame"])
    assert not list(stores[0].verify())
    writers = {path.stem.split("-", 1)[1] for path in (tmp_path / "ray" / "shards").iterdir()}
    assert len(writers) <= 2, "one a node; the first may have been quicker than the other one was there"
    assert on_ray(clips, stores[0]).stored == 22


def test_what_an_encoder_refuses_is_told_as_here(tmp_path, cluster):
    load = functools.partial(PoolingEncoders, {**IDENTITY, "vae": "another"})
    with pytest.raises(UserError, match="the encoders that were loaded are"):
        on_ray(make_clips(2), LatentStore(tmp_path / "store"), load)


def test_a_node_that_dies_costs_its_unfinished_clips(tmp_path, cluster):
    """The last test: the cluster is one node from then on."""
    clips = make_clips(60, buckets=(BUCKET,))
    store, log = LatentStore(tmp_path / "store"), tmp_path / "log"
    load = functools.partial(LoggingEncoders, log, 0.1)
    shard_bytes = 4 * 3 * 5 * 2 * 2 * 2  # four clips

    def kill():
        while not log.exists() or len(log.read_text().splitlines()) < 20:
            time.sleep(0.02)
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    report = on_ray(clips, store, load, Encoding(shard_bytes=shard_bytes))
    killer.join()
    assert (report.encoded, report.captions, report.quarantined) == (60, 3, [])
    assert not list(store.verify())
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY))
    values = [round(float(dataset[row].latents.float().mean() * 127.5 + 127.5)) for row in range(60)]
    assert values == list(range(60))
    counts = Counter(line for line in log.read_text().splitlines() if line.isdigit())
    assert len(counts) == 60
    assert sum(counts.values()) <= 60 + 2 * 4 + 4, "a shard that filled, one that was written, and what was on its way"
