"""A store deletes and writes only what is its own, in a folder that is one."""

import errno
import multiprocessing
import os
import re
import signal
import time

import filelock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.latents.test_store import keys, latent_item, prompt_item
from vidlit import io_retry
from vidlit.errors import UserError
from vidlit.latents import store_folder
from vidlit.latents.storage.local_folder import LocalFolder
from vidlit.latents.store import LatentStore
from vidlit.latents.store_folder import MARKER, unique_name

FOREIGN = ("prompts/mine.txt", "shards/other.safetensors", "deep/er/thesis.tmp", "index/mine.parquet", "notes.tmp")


def put(root, *names):
    """Files that are hours old."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        os.utime(path, (1, 1))


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def open_store(root):
    with LatentStore(root).encoding():
        pass


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_that_holds_other_things_is_refused_and_left_as_it_is(tmp_path, name):
    put(tmp_path, name)
    store = LatentStore(tmp_path)
    for attempt in (store.check_folder, lambda: open_store(tmp_path), lambda: store.write([latent_item(0)])):
        with pytest.raises(UserError, match="is no latent store, and it holds other things") as error:
            attempt()
        assert name.split("/")[0] in str(error.value)
    store.clean()
    store.compact()
    assert files(tmp_path) == {name}


def test_the_message_does_not_grow_with_the_folder(tmp_path):
    put(tmp_path, *(f"{number}.txt" for number in range(50)))
    with pytest.raises(UserError) as error:
        LatentStore(tmp_path).check_folder()
    assert str(error.value).count(".txt") == 3


def test_what_lies_in_a_store_and_is_not_its_own_stays(tmp_path):
    store = LatentStore(tmp_path)
    store.write([latent_item(0), prompt_item("a cat")])
    put(tmp_path, *FOREIGN)
    before = files(tmp_path)
    open_store(tmp_path)
    store.clean(0)
    store.compact()
    assert {*FOREIGN, MARKER} <= files(tmp_path)
    assert {name for name in before if name.startswith(("shards", "prompts"))} <= files(tmp_path)


def belongs(name):
    """Whether a store may delete what is called so; written down a second time."""
    *folders, file = name.split("/")
    if len(folders) > 1 or (folders and folders[0] not in ("shards", "prompts", "index")):
        return False
    is_hex = re.compile("[0-9a-f]+").fullmatch
    unfinished = file.startswith(".") and file.endswith(".tmp")
    if unfinished:
        file, _, noise = file[1:-4].rpartition(".")
        if not (len(noise) == 8 and is_hex(noise)):
            return False
        if not folders:
            return file in ("index.parquet", "vidlit_store.json")
    if not folders or (folders[0] == "index" and not unfinished):
        return False
    stem, _, suffix = file.rpartition(".")
    if suffix != ("parquet" if folders[0] == "index" else "safetensors"):
        return False
    parts = stem.split("-")
    if folders[0] == "shards":
        sizes = parts.pop(0).split("x")
        if len(sizes) != 3 or not all(size.isdecimal() and size.isascii() for size in sizes):
            return False
    return [len(part) for part in parts] == [16, 8] and all(map(is_hex, parts))


PIECES = st.sampled_from(
    "shards/ prompts/ index/ deep/ 5x16x24- 0123456789abcdef-01234567 0123456789abcdef - . x .safetensors .parquet "
    ".tmp .01234567.tmp index.parquet vidlit_store.json mine A ٣".split()
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=6))
def test_only_own_names_are_ever_deleted(tmp_path_factory, pieces):
    name = "".join(pieces).lstrip("/")
    root = tmp_path_factory.mktemp("store")
    store_folder.mark(LocalFolder(root))
    if name.endswith("/") or os.path.exists(root / name) or {".", ".."} & set(name.split("/")):
        return
    put(root, name)
    LatentStore(root).clean()
    assert (root / name).exists() != belongs(name)


@pytest.mark.parametrize(
    "name",
    [
        "shards/5x16x24-{}.safetensors",
        "prompts/{}.safetensors",
        "prompts/.{}.safetensors.01234567.tmp",
        "index/.{}.parquet.01234567.tmp",
        ".index.parquet.01234567.tmp",
        ".vidlit_store.json.01234567.tmp",
    ],
)
def test_what_a_dead_process_leaves_is_deleted(tmp_path, name):
    """The property above would hold, too, where nothing is."""
    store_folder.mark(LocalFolder(tmp_path))
    put(tmp_path, name.format(unique_name()))
    assert len(LatentStore(tmp_path).clean()) == 1
    assert files(tmp_path) == {MARKER}


def test_nothing_is_deleted_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    name = f"5x16x24-{unique_name()}.safetensors"
    put(tmp_path / "elsewhere", name)
    store_folder.mark(LocalFolder(tmp_path / "store"))
    (tmp_path / "store" / "shards").symlink_to(tmp_path / "elsewhere")
    assert LatentStore(tmp_path / "store").clean() == []
    assert (tmp_path / "elsewhere" / name).exists()


def test_a_store_from_before_the_marker_is_one_and_gets_it(tmp_path):
    store = LatentStore(tmp_path)
    store.write([latent_item(0)])
    (tmp_path / MARKER).unlink()
    put(tmp_path, "notes.txt")
    open_store(tmp_path)
    assert (tmp_path / MARKER).exists()
    assert store.keys("latent") == set(keys(latent_item(0)))


def test_what_plan_and_a_killed_first_run_leave_is_a_store(tmp_path):
    put(
        tmp_path, "files.json", ".files.json.lock", ".files.json.77.part", f"shards/5x16x24-{unique_name()}.safetensors"
    )
    open_store(tmp_path)
    assert (tmp_path / MARKER).exists()
    assert not list((tmp_path / "shards").iterdir())


def test_a_store_of_another_version_is_refused(tmp_path):
    (tmp_path / MARKER).write_text('{"vidlit_store": 99}')
    with pytest.raises(UserError, match="another version"):
        LatentStore(tmp_path).check_folder()


# -- one at a time


def hold(root, seconds):
    with LocalFolder(root).encoding_lock():
        time.sleep(seconds)


@pytest.fixture
def holder(tmp_path):
    """A process that encodes into the store."""
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, 60))
    process.start()
    while not (tmp_path / ".encoding.json").exists():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_the_second_waits_says_for_whom_and_goes_on_when_the_first_is_killed(tmp_path, holder, capsys, monkeypatch):
    def kill(lock, *args, **options):
        if options.get("timeout") != 0:  # it waits
            os.kill(holder.pid, signal.SIGKILL)
            holder.join()
        return acquire(lock, *args, **options)

    acquire = filelock.FileLock.acquire
    monkeypatch.setattr(filelock.FileLock, "acquire", kill)
    with LocalFolder(tmp_path).encoding_lock():
        pass
    assert f"another process is encoding into {tmp_path} (process {holder.pid} on '" in capsys.readouterr().err


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path, monkeypatch):
    def acquire(*args, **options):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with LocalFolder(tmp_path).encoding_lock():
        assert True


# -- full and failing disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_at_any_moment_leaves_nothing_half_written(tmp_path, monkeypatch, number):
    monkeypatch.setattr(io_retry.time, "sleep", lambda seconds: None)
    store = LatentStore(tmp_path)
    store.write([latent_item(0)])
    before, real, calls = files(tmp_path), os.fsync, []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) >= allowed:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    for allowed in range(1, 7):  # two shards and a part of the index, each with its folder
        calls.clear()
        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(UserError, match=os.strerror(number)) as error:
            store.write([latent_item(allowed), prompt_item("a cat")])
        assert "\n" not in str(error.value)
        monkeypatch.setattr(os, "fsync", real)
        assert files(tmp_path) == before
    store.write([latent_item(1)])


def test_a_moment_of_trouble_is_not_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(io_retry.time, "sleep", lambda seconds: None)
    real, calls = os.fsync, []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) in (2, 5):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    store = LatentStore(tmp_path)
    store.write([latent_item(0)])
    assert capsys.readouterr().err.count("Input/output error; trying again") == 2
    assert not list(store.verify())
    assert not [name for name in files(tmp_path) if name.endswith(".tmp")]
