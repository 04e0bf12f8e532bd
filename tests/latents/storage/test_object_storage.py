"""A store on a real S3 server behaves as one in a folder does."""

import errno
import pickle

import pytest
import torch

from tests.data.stand_ins import IDENTITY, ColourReader, make_clips
from tests.latents.encode.test_missing import never, run
from tests.latents.test_store import keys, latent_item, latent_recipe, prompt_item
from vidlit import io_retry
from vidlit.data.timed_loader import TimedLoader
from vidlit.diffusion.batch import as_is
from vidlit.errors import UserError
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.encoding import Encoding
from vidlit.latents.recipe import Recipes
from vidlit.latents.storage import lease, object_storage
from vidlit.latents.storage.opening import StoreCache
from vidlit.latents.store import Item, LatentStore

SMALL_SHARDS = Encoding(num_workers=0, shard_bytes=1)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setattr(lease, "_SETTLED_SECONDS", 0.0)  # nobody else encodes


@pytest.fixture
def opened(bucket, tmp_path):
    """Opens the store of a bucket, with a cache of its own or without."""

    def open_store(cache="cache", size_gb=0.1, folder="store"):
        return LatentStore(f"{bucket[0]}/{folder}", StoreCache(tmp_path / cache, size_gb))

    return open_store


@pytest.fixture
def requests(monkeypatch):
    """Numbers of ranges of each request for some."""
    asked = []
    fetch = object_storage.ObjectStorage._fetch
    monkeypatch.setattr(
        object_storage.ObjectStorage,
        "_fetch",
        lambda self, ranges, wanted: asked.append(len(wanted)) or fetch(self, ranges, wanted),
    )
    return asked


def test_what_is_written_is_read_and_merged(opened):
    store, items = opened(), [latent_item(number) for number in range(5)]
    assert store.keys("latent") == set()
    failed = Item(latent_recipe(9), {}, "9.mp4@0", "9.mp4", reason="holds no frame")
    for each in ([*items[:3], prompt_item("a cat")], [*items[3:], failed]):
        store.write(each)
    for again in (store, opened("other_cache", 0.0), pickle.loads(pickle.dumps(store))):
        assert again.keys("latent") == set(keys(*items))
        table = again.locate("latent", "latents", keys(*items))
        assert all(torch.equal(table.read(row), item.tensors["latents"]) for row, item in enumerate(items))
        assert again.quarantined()[failed.recipe.key].reason == "holds no frame"
    assert not list(store.verify())
    store.compact()
    assert len(store.storage.entries("index")) == 1
    assert opened().keys("latent") == set(keys(*items))
    assert store.clean(-1e6) == []


def test_a_folder_with_other_things_is_refused(bucket, opened):
    bucket[1].pipe(f"{bucket[0]}/store/thesis.txt", b"mine")
    for attempt in (opened().check_folder, lambda: opened().write([latent_item(0)])):
        with pytest.raises(UserError, match=r"is no latent store, and it holds other things \(thesis.txt\)"):
            attempt()
    assert opened(folder="store/below").check_folder() is None


def test_what_a_dead_writer_left_is_removed(bucket, opened):
    store = opened()
    store.write([latent_item(0)])
    (shard,) = bucket[1].ls(f"{bucket[0]}/store/shards")
    orphan = shard.rpartition("/")[0] + f"/5x16x24-{1:016x}-{2:08x}.safetensors"
    bucket[1].copy(shard, orphan)
    assert store.clean() == []  # too young
    assert store.clean(-1e6) == [orphan.removeprefix(f"{bucket[0][5:]}/store/")]
    assert not list(opened().verify())


def test_what_others_stored_meanwhile_is_not_taken_for_left_over(opened):
    """By a process that looked at the index before, and then waited long for its turn."""
    store, other = opened(), opened()
    store.write([latent_item(0)])
    assert len(store.keys("latent")) == 1
    other.write([latent_item(1)])
    assert store.clean(-1e6) == []
    assert len(opened().keys("latent")) == 2


def test_encoding_goes_on_where_it_was_and_repairs(bucket, opened, tmp_path):
    store, clips = opened(), make_clips(6)
    assert run(clips[:4], store, encoding=SMALL_SHARDS).encoded == 4
    report = run(clips, opened(), encoding=SMALL_SHARDS)
    assert (report.encoded, report.stored) == (2, 4)
    local = LatentStore(tmp_path / "local")
    run(clips, local, encoding=SMALL_SHARDS)
    names = {name: (bucket[1].cat(name)) for name in bucket[1].ls(f"{bucket[0]}/store/shards")}
    assert sorted(names.values()) == sorted(path.read_bytes() for path in (tmp_path / "local" / "shards").iterdir())
    assert not bucket[1].exists(f"{bucket[0]}/store/.encoding.json")

    flipped, cut, lost = sorted(names)[:3]
    bucket[1].pipe(flipped, names[flipped][:-1] + bytes([names[flipped][-1] ^ 4]))
    bucket[1].pipe(cut, names[cut][:-1])
    bucket[1].rm(lost)
    assert {damage.problem.split(":")[0] for damage in opened().verify()} == {
        "its bytes changed since they were written",
        "it was truncated",
        "No such file",
    }
    report = run(clips, opened(), encoding=SMALL_SHARDS, repair=True)
    assert (report.encoded, report.stored) == (3, 3)
    assert run(clips, opened(), never).encoded == 0
    expected = LatentDataset.from_clips(local, clips, Recipes(IDENTITY))
    dataset = LatentDataset.from_clips(opened(), clips, Recipes(IDENTITY))
    assert all(torch.equal(dataset[row].latents, expected[row].latents) for row in range(6))


def test_a_clip_that_changed_in_the_bucket_is_named(bucket, opened):
    clips = make_clips(2)
    run(clips, opened(), encoding=SMALL_SHARDS)
    dataset = LatentDataset.from_clips(opened(), clips, Recipes(IDENTITY))
    for name in bucket[1].ls(f"{bucket[0]}/store/shards"):
        data = bucket[1].cat(name)
        bucket[1].pipe(name, data[:-1] + bytes([data[-1] ^ 4]))
    with pytest.raises(UserError, match=r"00000.mp4@0.000 is damaged in s3://.*: its bytes changed .*--repair"):
        dataset.read_batch([0])
    bucket[1].rm(bucket[1].ls(f"{bucket[0]}/store/shards"))
    with pytest.raises(UserError, match=r"00001.mp4@0.000 is damaged in s3://.*: No such file"):
        dataset.read_batch([1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranges_of_a_batch_are_fetched_together_and_only_once(opened, requests, num_workers):
    clips = make_clips(8)
    run(clips, opened())
    expected = [sample.latents for sample in LatentDataset.from_clips(opened("a", 0.0), clips, Recipes(IDENTITY))]
    dataset = LatentDataset.from_clips(opened("b"), clips, Recipes(IDENTITY))
    requests.clear()
    batches = [[0, 2, 4, 6], [1, 3, 5, 7], [0, 2, 4, 6]]
    loader = TimedLoader(dataset.batches(), sampler=batches, batch_size=None, collate_fn=as_is, num_workers=num_workers)
    for _ in range(2):
        for rows, batch in zip(batches, loader, strict=True):
            assert all(torch.equal(batch.latents[place], expected[row]) for place, row in enumerate(rows))
    if not num_workers:  # of the workers' requests this process knows nothing
        assert requests == [8, 4]  # latents and captions; then three captions are here already, which another clip has
        assert requests[1] < 8


def test_a_copy_that_changed_is_fetched_again(opened, tmp_path, requests):
    clips = make_clips(2)
    run(clips, opened())
    first = LatentDataset.from_clips(opened(), clips, Recipes(IDENTITY))[0].latents
    copies = [path for path in (tmp_path / "cache" / "ranges").rglob("*") if path.is_file()]
    assert copies
    for path in copies:
        path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(LatentDataset.from_clips(opened(), clips, Recipes(IDENTITY))[0].latents, first)
    assert not list(opened().verify())


class UnreachableError(Exception):
    """As client libraries have them, which know no errno."""


@pytest.mark.parametrize("times", [2, 99])
def test_a_network_that_fails_is_tried_again_and_then_told(opened, monkeypatch, capsys, times):
    clips = make_clips(2)
    run(clips, opened())
    dataset = LatentDataset.from_clips(opened("other"), clips, Recipes(IDENTITY))
    monkeypatch.setattr(io_retry.time, "sleep", lambda seconds: None)
    fs, left = dataset._latents.storage._files._opened(), [times]
    real = fs.cat_ranges

    def failing(*given, **options):
        if left[0]:
            left[0] -= 1
            return [UnreachableError("Could not connect to the endpoint")] * len(given[0])
        return real(*given, **options)

    monkeypatch.setattr(fs, "cat_ranges", failing)
    if times == 2:
        assert dataset.read_batch([0]).latents.shape[0] == 1
        assert capsys.readouterr().err.count("Could not connect to the endpoint; trying again") == 1
    else:
        with pytest.raises(UserError, match=r"cannot read s3://.*: Could not connect to the endpoint"):
            dataset.read_batch([0])


def test_what_refuses_to_be_written_is_one_line(opened, monkeypatch):
    store = opened()
    fs = store.storage._files._opened()

    def refuse(*given, **options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(fs, "_pipe_file", refuse)
    monkeypatch.setattr(fs, "pipe_file", refuse)
    with pytest.raises(UserError, match=r"cannot write to the latent store s3://.*: Access Denied") as error:
        store.write([latent_item(0)])
    assert "\n" not in str(error.value)


def test_a_bucket_that_is_not_there_is_told(s3_server, tmp_path):
    store = LatentStore("s3://no-such-bucket-of-mine/store", StoreCache(tmp_path))
    assert store.keys("latent") == set()
    with pytest.raises(UserError, match=r"cannot write to the latent store s3://no-such-bucket.*bucket does not exist"):
        store.write([latent_item(0)])


def test_what_was_found_out_about_files_goes_along_with_the_store(opened, tmp_path):
    with opened("here").storage.notes() as folder:
        assert not (folder / "files.json").exists()
        (folder / "files.json").write_text("{}")
    with opened("there").storage.notes() as folder:
        assert (folder / "files.json").read_text() == "{}"
        assert folder.is_relative_to(tmp_path / "there")


def test_another_process_that_wrote_is_seen_after_a_look(opened):
    store, other = opened(), opened()
    assert store.keys("latent") == set()
    other.write([latent_item(0)])
    store.storage.refresh()
    assert len(store.keys("latent")) == 1


def test_a_directory_marker_is_no_file(bucket, opened):
    """Consoles of object storage make folders as empty objects."""
    bucket[1].call_s3("put_object", Bucket=bucket[0][5:], Key="store/")
    bucket[1].call_s3("put_object", Bucket=bucket[0][5:], Key="store/shards/")
    store = opened()
    store.write([latent_item(0)])
    assert not list(store.verify())
    assert store.clean(-1e6) == []


def test_errors_of_the_system_keep_their_numbers():
    from vidlit.remote_files import _as_os_error

    def no_credentials():
        raise UnreachableError("Unable to locate credentials")

    def bug():
        raise KeyError("name")

    with pytest.raises(PermissionError, match="set them as this file system wants it"):
        _as_os_error(no_credentials)
    with pytest.raises(KeyError):
        _as_os_error(bug)
    with pytest.raises(OSError, match="odd") as error:
        _as_os_error(lambda: (_ for _ in ()).throw(OSError("odd")))
    assert error.value.errno == errno.EIO


def test_the_reader_of_clips_in_workers_is_the_one_asked_for(opened):
    """As for a local store: the stand-in is what reads."""
    assert run(make_clips(1), opened(), open_reader=lambda: ColourReader(bad=("00000.mp4",))).encoded == 0
