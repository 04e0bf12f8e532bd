"""An index is read without trust: it may come from a stranger, or from a disk that lies."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.latents.test_store import keys, latent_item, merged_index, prompt_item
from vidlit.errors import UserError
from vidlit.latents import index
from vidlit.latents.index import SCHEMA
from vidlit.latents.store import LatentStore
from vidlit.latents.store_folder import unique_name

ITEMS = [latent_item(number) for number in range(4)]
SECRET = b"root:x:0:0" * 1000


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder with a store and, beside it, what is none of its business."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "secret").write_bytes(SECRET)
    store = LatentStore(folder / "store")
    store.write([*ITEMS[:2], prompt_item("a cat")])
    store.write(ITEMS[2:])
    store.compact()
    name = f"prompts/{unique_name()}.safetensors"
    os.mkfifo(store.storage.root / name)
    return store, pq.read_table(merged_index(store.storage.root)), name


def change(store, table, row, **changes):
    """Write the index with other values in one row."""
    rows = table.to_pylist()
    rows[row] |= changes
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), merged_index(store.storage.root))


def read_or_refuse(store):
    """What is read of each item, or ``None`` where it is refused or not there."""
    found = []
    for item in ITEMS:
        try:
            found.append(store.locate("latent", "latents", keys(item)).read(0))
        except (UserError, KeyError):
            found.append(None)
    return found


def same_bytes(tensor, item):
    return tensor.reshape(-1).view(torch.uint8).tolist() == (
        item.tensors["latents"].reshape(-1).view(torch.uint8).tolist()
    )


OUTSIDE = ["../secret", "/etc/passwd", "shards/../../secret", "prompts/../../secret", "index.parquet", ".", "", None]
CHANGES = st.one_of(
    st.fixed_dictionaries({"shard": st.sampled_from(OUTSIDE) | st.text(max_size=20).filter(str.isprintable)}),
    st.fixed_dictionaries({"offset": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4000)}),
    st.fixed_dictionaries(
        {
            "layout": st.none()
            | st.sampled_from(["load 1", "bfloat16 -1x3", f"bfloat16 {10**9}x{10**9}", "uint8 ", "float32 4", "x" * 99])
            | st.text(max_size=20).filter(str.isprintable)
        }
    ),
    st.fixed_dictionaries({"checksum": st.none() | st.integers(0, 2**32 - 1)}),
    st.fixed_dictionaries({"key": st.none() | st.sampled_from([item.recipe.key for item in ITEMS])}),
    st.fixed_dictionaries({"kind": st.none() | st.sampled_from(["latent", "prompt", "quarantined", "other"])}),
    st.fixed_dictionaries({"tensor": st.none() | st.text(max_size=5).filter(str.isprintable)}),
)


@settings(max_examples=60, deadline=5000)
@given(st.integers(0, 3), CHANGES)
def test_a_changed_row_gives_its_own_bytes_or_is_refused(filled, row, changes):
    store, table, _ = filled
    latents = [number for number, kind in enumerate(table["kind"].to_pylist()) if kind == "latent"]
    change(store, table, latents[row], **changes)
    for number, tensor in enumerate(read_or_refuse(store)):
        # A row with the key of another item is that item, for all that anybody can know.
        candidates = ITEMS if "key" in changes else [ITEMS[number]]
        assert tensor is None or any(same_bytes(tensor, item) for item in candidates)
    for damage in store.verify():
        assert "delete" not in damage.problem.lower()


def test_a_pipe_is_neither_waited_for_nor_read(filled):
    store, table, fifo = filled
    change(store, table, 0, shard=fifo, offset=0)
    assert keys(ITEMS[0])[0] not in store.keys("latent")
    assert [damage.problem for damage in store.verify()] == ["No such file: the shard is gone"]


def test_a_link_out_of_the_store_is_an_error_and_not_followed(filled):
    store, table, _ = filled
    name = f"prompts/{unique_name()}.safetensors"
    (store.storage.root / name).symlink_to(store.storage.root.parent / "secret")
    change(store, table, 0, shard=name, offset=0)
    for look in (lambda: store.keys("latent"), lambda: list(store.verify())):
        with pytest.raises(UserError, match="is a link that leads out of the store"):
            look()


def test_a_text_that_many_rows_name_is_not_written_out(tmp_path):
    """A dictionary says it once on disk; in memory it would stand there for every row."""
    rows = 20_000
    columns = {field.name: pa.nulls(rows, field.type) for field in SCHEMA}
    columns["kind"] = pa.array(["prompt"] * rows)
    columns["key"] = pa.array([os.urandom(16).hex() for _ in range(rows)])
    columns["caption"] = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 100_000]))
    path = tmp_path / "index.parquet"
    pq.write_table(pa.table(columns).replace_schema_metadata(SCHEMA.metadata), path)
    assert path.stat().st_size < 10 * 2**20
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match="more than its size allows"):
        LatentStore(tmp_path).rows(["caption"])
    assert pa.total_allocated_bytes() - before < 2**20
    assert LatentStore(tmp_path).rows(["key"]).num_rows == rows


@pytest.mark.parametrize("place", range(10))
def test_a_flipped_byte_of_the_index_is_noticed(tmp_path, place):
    store = LatentStore(tmp_path)
    store.write(ITEMS)
    store.compact()
    path = merged_index(tmp_path)
    data = bytearray(path.read_bytes())
    data[4 + place * (len(data) - 8) // 10] ^= 16
    path.write_bytes(data)
    try:
        found = read_or_refuse(store)
    except UserError:
        return
    assert all(
        tensor is None or torch.equal(tensor, item.tensors["latents"])
        for tensor, item in zip(found, ITEMS, strict=True)
    )


READING = """
import os, sys
from pathlib import Path
from vidlit.latents.index import read_all
from vidlit.latents.storage.local_folder import LocalFolder
before = os.listdir("/proc/self/task")
assert len(read_all(LocalFolder(Path(sys.argv[1])), ["key"], "latent")) == 4
sys.exit(os.listdir("/proc/self/task") != before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted as Linux shows them")
def test_reading_an_index_leaves_no_thread_for_the_end_of_the_process(tmp_path):
    """One that holds a Python file then ends the process: "terminate called without an active exception", exit 134."""
    store = LatentStore(tmp_path)
    store.write(ITEMS)
    store.compact()
    assert subprocess.run([sys.executable, "-c", READING, str(tmp_path)], timeout=120).returncode == 0


def test_an_index_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "index.parquet")
    with pytest.raises(index.DamagedIndexError, match="it is no regular file"):
        LatentStore(tmp_path).keys("latent")


def test_columns_of_another_type_are_damage(tmp_path):
    store = LatentStore(tmp_path)
    store.write(ITEMS)
    store.compact()
    path = merged_index(tmp_path)
    table = pq.read_table(path)
    place = table.schema.get_field_index("offset")
    wrong = table.set_column(place, "offset", pa.array([["far"]] * len(table)))
    pq.write_table(wrong.replace_schema_metadata(SCHEMA.metadata), path)
    with pytest.raises(UserError, match="damaged"):
        store.keys("latent")
