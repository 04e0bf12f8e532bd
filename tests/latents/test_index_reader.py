"""An index is read once, and again where a part, a merge or a shard changes what is stored."""

import os
import pickle

import pytest

from tests.data.stand_ins import IDENTITY, make_clips
from tests.latents.encode.test_missing import run
from vidlit.latents import index_reader
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.recipe import Recipes
from vidlit.latents.store import LatentStore


@pytest.fixture
def store(tmp_path):
    found = LatentStore(tmp_path / "store")
    run(make_clips(4), found)
    return found


@pytest.fixture
def reads(monkeypatch):
    calls = []
    real = index_reader.read_all
    monkeypatch.setattr(index_reader, "read_all", lambda *given: calls.append(given[2]) or real(*given))
    return calls


def test_it_is_read_once_for_each_kind(store, reads):
    clips, store = make_clips(4), LatentStore(store.storage.root)
    for _ in range(3):
        assert len(LatentDataset.from_clips(store, clips, Recipes(IDENTITY))) == 4
        assert len(LatentDataset.from_clips(store, clips[:1], Recipes(IDENTITY))) == 1
        assert store.quarantined() == {}
    assert sorted(reads) == ["latent", "prompt", "quarantined"]
    assert pickle.loads(pickle.dumps(store)).keys("latent") == store.keys("latent")
    assert sorted(reads) == ["latent", "latent", "prompt", "quarantined"], "another process reads it itself"


def test_what_another_process_adds_or_merges_is_seen(store, reads):
    before = store.keys("latent")
    run(make_clips(7), LatentStore(store.storage.root))
    after = store.keys("latent")
    assert len(after) == 7
    assert before < after
    LatentStore(store.storage.root).compact()
    assert store.keys("latent") == after


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: os.truncate(path, 8)])
def test_a_shard_that_is_gone_or_cut_is_seen(store, harm):
    whole = store.keys("latent")
    shards = sorted((store.storage.root / "shards").iterdir())
    harm(shards[0])
    assert LatentStore(store.storage.root).keys("latent") < whole
    for path in shards[1:]:
        harm(path)
    store = LatentStore(store.storage.root)
    assert store.keys("latent") == set()
    assert run(make_clips(4), store).encoded == 4
    assert store.keys("latent") == whole
