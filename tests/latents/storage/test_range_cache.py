"""Local copies of remote bytes: the same bytes, never more than the limit, the least used go first."""

import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlit.latents.storage import range_cache
from vidlit.latents.storage.range_cache import RangeCache


def data_of(number, size):
    return bytes((number * 31 + place) % 256 for place in range(size))


def read(cache, number, size):
    buffer = bytearray(size)
    return bytes(buffer) if cache.read_into("s3://b/shard", number, memoryview(buffer)) else None


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 300)), max_size=60),
    st.integers(0, 2000),
    st.integers(256, 2**30),
)
def test_it_gives_what_it_was_given_and_keeps_to_its_size(tmp_path_factory, ranges, limit, share):
    folder = tmp_path_factory.mktemp("cache")
    range_cache._SHARE_BYTES, before = share, range_cache._SHARE_BYTES
    try:
        caches = [RangeCache(folder, limit), RangeCache(folder, limit)]  # two processes
        for place, (number, size) in enumerate(ranges):
            found = read(caches[place % 2], number, size)
            assert found in (None, data_of(number, size))
            if found is None:
                caches[place % 2].keep("s3://b/shard", number, data_of(number, size))
            assert size_of(folder) <= limit
    finally:
        range_cache._SHARE_BYTES = before
        shutil.rmtree(folder)


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    cache = RangeCache(tmp_path, 1000)
    for number in range(6):
        cache.keep("s3://b/shard", number, data_of(number, 100))
        path = cache._path("s3://b/shard", number, 100)
        os.utime(path, (number + 1, number + 1))
    assert read(cache, 0, 100) is not None  # used now
    for number in range(6, 11):
        cache.keep("s3://b/shard", number, data_of(number, 100))
    assert read(cache, 0, 100) is not None
    assert read(cache, 1, 100) is None


def test_a_copy_of_another_size_is_no_copy(tmp_path):
    cache = RangeCache(tmp_path, 1000)
    cache.keep("s3://b/shard", 0, data_of(0, 100))
    os.truncate(cache._path("s3://b/shard", 0, 100), 50)
    assert read(cache, 0, 100) is None
    assert cache.forget("s3://b/shard", 0, 100)
    assert not cache.forget("s3://b/shard", 0, 100)


@pytest.mark.parametrize("harm", ["full", "no_folder", "other_files"])
def test_a_disk_that_keeps_nothing_is_no_error_and_nothing_else_is_touched(tmp_path, monkeypatch, harm):
    folder = tmp_path / "cache"
    if harm == "full":
        monkeypatch.setattr(range_cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 2**31))
    elif harm == "no_folder":
        folder.write_text("a file")
    else:
        (folder / "0000").mkdir(parents=True)
        (folder / "0000" / "mine.txt").write_text("x" * 2000)
    cache = RangeCache(folder, 1000)
    for number in range(20):
        cache.keep("s3://b/shard", number, data_of(number, 100))
    if harm == "other_files":
        assert (folder / "0000" / "mine.txt").exists()
    else:
        assert read(cache, 0, 100) is None
