import errno
import multiprocessing
import os
import pickle
import signal
import sys

import pyarrow.parquet as pq
import pytest
import safetensors
import torch

from vidlit.errors import UserError
from vidlit.latents.recipe import LatentRecipe, PromptRecipe
from vidlit.latents.storage.local_folder import LocalFolder
from vidlit.latents.store import Item, LatentStore


def latent_recipe(number, **changes):
    values = {
        "content": f"{number:064x}",
        "start": 0.0,
        "fps": 8.0,
        "bucket": "5x16x24",
        "encoder": "vae-1",
        "dtype": "bfloat16",
        "preprocessing": "crop-1",
    }
    return LatentRecipe(**(values | changes))


def latent_item(number, **changes):
    generator = torch.Generator().manual_seed(number)
    latents = torch.randn(4, 2, 2, 3, generator=generator).to(torch.bfloat16)
    return Item(latent_recipe(number, **changes), {"latents": latents}, f"{number}.mp4@0", f"{number}.mp4")


def prompt_item(caption):
    embeds = torch.arange(len(caption) * 4.0).reshape(-1, 4).to(torch.bfloat16)
    return Item(PromptRecipe(caption, "text-1", "bfloat16"), {"prompt_embeds": embeds, "pooled": torch.ones(3)})


def merged_index(root):
    """The file that a merged index is."""
    (path,) = (root / "index").iterdir()
    return path


def keys(*items):
    return [item.recipe.key for item in items]


def test_what_is_written_is_read(tmp_path):
    store = LatentStore(tmp_path / "store")
    items = [latent_item(number) for number in range(5)]
    items.append(latent_item(5, bucket="1x16x24"))
    prompts = [prompt_item("a cat"), prompt_item("")]
    store.write([*items, *prompts])
    wanted = [items[3], items[5], items[0]]
    table = store.locate("latent", "latents", keys(*wanted))
    for row, item in enumerate(wanted):
        assert torch.equal(table.read(row), item.tensors["latents"])
        assert table.layout(row) == ((4, 2, 2, 3), torch.bfloat16)
    for name in ("prompt_embeds", "pooled"):
        table = store.locate("prompt", name, keys(*prompts))
        for row, item in enumerate(prompts):
            stored = table.read(row)
            assert torch.equal(stored, item.tensors[name])
            assert stored.dtype == item.tensors[name].dtype
    assert not list(store.verify())


def test_shards_are_ordinary_safetensors_of_one_bucket(tmp_path):
    store = LatentStore(tmp_path)
    items = [latent_item(0), latent_item(1, bucket="1x16x24"), latent_item(2)]
    store.write(items)
    found = {}
    for path in sorted((tmp_path / "shards").iterdir()):
        with safetensors.safe_open(path, "pt") as shard:
            found[path.name.split("-")[0]] = {name: shard.get_tensor(name) for name in shard.keys()}
    assert {bucket: len(tensors) for bucket, tensors in found.items()} == {"1x16x24": 1, "5x16x24": 2}
    assert torch.equal(found["5x16x24"][f"{items[2].recipe.key}.latents"], items[2].tensors["latents"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content", "f" * 64),
        ("start", 0.5),
        ("fps", 16.0),
        ("bucket", "5x24x16"),
        ("encoder", "vae-2"),
        ("dtype", "float32"),
        ("preprocessing", "crop-2"),
        ("posterior", "mode and std"),
    ],
)
def test_one_changed_ingredient_is_another_item_and_is_named(tmp_path, field, value):
    store = LatentStore(tmp_path)
    store.write([latent_item(0)])
    changed = latent_recipe(0, **{field: value})
    assert changed.key != latent_recipe(0).key
    with pytest.raises(UserError) as error:
        store.require([latent_recipe(0), changed])
    assert "1 of 2 clips are not in the latent store" in str(error.value)
    expected = "nothing stored of this content" if field == "content" else LatentRecipe.words[field]
    assert expected in str(error.value)
    assert str(value) in str(error.value) or field == "content"
    store.require([latent_recipe(0)])


def test_a_store_from_before_an_ingredient_was_written_down_is_read(tmp_path):
    """Its keys are those of the mode, and what is missing is named against the mode."""
    store = LatentStore(tmp_path)
    store.write([latent_item(0)])
    part = merged_index(tmp_path)
    pq.write_table(pq.read_table(part).drop_columns("posterior"), part)
    assert latent_recipe(0).key == "a5b9cb5d795b8c49fb65b77b15bfb03f"
    store.write([latent_item(1)])
    for _ in range(2):
        store.require([latent_recipe(0), latent_recipe(1)])
        with pytest.raises(UserError, match="1 of them: latents: stored mode, wanted mode and std"):
            store.require([latent_recipe(0, posterior="mode and std")])
        store.compact()
    assert torch.equal(
        store.locate("latent", "latents", keys(latent_item(0))).read(0), latent_item(0).tensors["latents"]
    )


def test_a_file_that_changed_and_a_quarantined_clip_are_named(tmp_path):
    store = LatentStore(tmp_path)
    bad = latent_recipe(1)
    store.write([Item(bad, {}, "1.mp4@0", "1.mp4", reason="holds no frame")])
    with pytest.raises(UserError, match="could not be encoded: holds no frame"):
        store.require([bad])


def test_another_text_encoder_is_named(tmp_path):
    store = LatentStore(tmp_path)
    store.write([prompt_item("a cat")])
    with pytest.raises(UserError, match="text encoder: stored text-1, wanted text-2"):
        store.require([PromptRecipe("a cat", "text-2", "bfloat16")])


def test_an_empty_or_absent_store_reads_as_empty(tmp_path):
    store = LatentStore(tmp_path / "nowhere")
    assert store.keys("latent") == set()
    assert store.clean() == []
    assert not list(store.verify())
    store.compact()
    store.write([])
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(KeyError):
        store.locate("latent", "latents", ["0" * 32])
    with pytest.raises(UserError, match="nothing stored"):
        store.require([latent_recipe(0)])


def test_compacting_changes_nothing_a_reader_sees(tmp_path):
    store = LatentStore(tmp_path)
    items = [latent_item(number) for number in range(6)]
    for item in items:
        store.write([item])
    before = store.rows(["key", "shard", "offset", "checksum"])
    store.compact()
    assert store.rows(["key", "shard", "offset", "checksum"]).equals(before)
    assert merged_index(tmp_path)
    store.write([latent_item(6)])
    store.compact()
    assert merged_index(tmp_path)
    assert len(store.keys("latent")) == 7
    table = store.locate("latent", "latents", keys(*items))
    assert all(torch.equal(table.read(row), item.tensors["latents"]) for row, item in enumerate(items))


def test_an_index_that_an_earlier_version_merged_is_read_and_comes_first(tmp_path):
    store, again = LatentStore(tmp_path), latent_item(0)
    store.write([latent_item(0), latent_item(1)])
    merged_index(tmp_path).rename(tmp_path / "index.parquet")
    again.tensors["latents"].zero_()
    store.write([again])
    for _ in range(2):
        assert store.keys("latent") == set(keys(latent_item(0), latent_item(1)))
        read = store.locate("latent", "latents", keys(again)).read(0)
        assert torch.equal(read, latent_item(0).tensors["latents"])
        store.compact()
    assert not (tmp_path / "index.parquet").exists()


def test_rows_that_two_merges_wrote_are_one_again(tmp_path):
    """Two processes merge the same parts at the same time: nothing is lost, and nothing stays twice."""
    store = LatentStore(tmp_path)
    failed = Item(latent_recipe(9), {}, "9.mp4@0", "9.mp4", reason="holds no frame")
    for items in ([latent_item(0), prompt_item("a cat")], [latent_item(1), failed]):
        store.write(items)
    parts = {path: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    before = store.rows(["key", "tensor", "shard"]).num_rows
    store.compact()
    for path, data in parts.items():  # as the second one sees them
        path.write_bytes(data)
    store.compact()
    assert store.rows(["key", "tensor", "shard"]).num_rows == before
    assert store.quarantined()[failed.recipe.key].reason == "holds no frame"
    assert not list(store.verify())


def test_small_parts_behind_the_last_large_one_are_merged(tmp_path, monkeypatch):
    """And no others, so that rows stay in the order in which they were written."""
    store = LatentStore(tmp_path)
    store.write([latent_item(0)])
    store.write([latent_item(number) for number in range(1, 20)])
    large = max((tmp_path / "index").iterdir())
    monkeypatch.setattr("vidlit.latents.store._LARGE_PART_BYTES", large.stat().st_size)
    store.compact(only_small=True)
    for number in range(20, 22):
        store.write([latent_item(number)])
    before = sorted((tmp_path / "index").iterdir())
    assert len(before) == 4
    store.compact(only_small=True)
    after = sorted((tmp_path / "index").iterdir())
    assert (len(after), after[:2]) == (3, before[:2])
    rows = store.rows(["clip_id"])["clip_id"].to_pylist()
    assert rows == [f"{number}.mp4@0" for number in range(22)]


def test_the_index_is_plain_parquet_with_the_ingredients(tmp_path):
    store = LatentStore(tmp_path)
    store.write([latent_item(0), prompt_item("a cat")])
    store.compact()
    rows = pq.read_table(tmp_path / "index").to_pylist()
    latent = next(row for row in rows if row["kind"] == "latent")
    assert (latent["bucket"], latent["fps"], latent["encoder"]) == ("5x16x24", 8.0, "vae-1")
    assert latent["layout"] == "bfloat16 4x2x2x3"
    assert {row["tensor"] for row in rows if row["caption"] == "a cat"} == {"prompt_embeds", "pooled"}


def test_the_first_of_two_writers_counts(tmp_path):
    first, second = latent_item(0), latent_item(0)
    second.tensors["latents"].zero_()
    for compact in (False, True):
        store = LatentStore(tmp_path / str(compact))
        store.write([first])
        if compact:
            store.compact()
        store.write([second])
        for _ in range(2):
            assert torch.equal(store.locate("latent", "latents", keys(first)).read(0), first.tensors["latents"])
            store.compact()
        assert not list(store.verify())


def test_verify_names_a_flipped_bit_a_truncated_and_a_lost_shard(tmp_path):
    store = LatentStore(tmp_path)
    buckets = ("1x16x24", "5x16x24", "9x16x24", "13x16x24")
    store.write([latent_item(number, bucket=bucket) for number, bucket in enumerate(buckets)])
    flipped, truncated, lost = (next((tmp_path / "shards").glob(f"{bucket}-*")) for bucket in buckets[:3])
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 4
    flipped.write_bytes(data)
    os.truncate(truncated, truncated.stat().st_size - 1)
    lost.unlink()
    problems = {damage.name: damage.problem for damage in store.verify()}
    assert set(problems) == {"0.mp4@0", "1.mp4@0", "2.mp4@0"}
    assert "changed" in problems["0.mp4@0"]
    assert "truncated" in problems["1.mp4@0"]
    assert "No such file" in problems["2.mp4@0"]


def test_clean_takes_old_orphans_only(tmp_path):
    store = LatentStore(tmp_path)
    store.write([latent_item(0), prompt_item("a cat")])
    shard = next((tmp_path / "shards").iterdir())
    orphan = shard.with_name(f"5x16x24-{1:016x}-{2:08x}.safetensors")
    orphan.write_bytes(shard.read_bytes())
    unfinished = tmp_path / "index" / f".{1:016x}-{2:08x}.parquet.{3:08x}.tmp"
    unfinished.write_bytes(b"half")
    assert store.clean() == []
    for path in tmp_path.rglob("*"):
        os.utime(path, (1, 1))
    assert {tmp_path / name for name in store.clean()} == {orphan, unfinished}
    assert not list(store.verify())


def test_a_full_disk_leaves_the_store_readable(tmp_path, monkeypatch):
    store = LatentStore(tmp_path)
    store.write([latent_item(0)])
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) >= allowed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    for allowed in range(1, 4):  # the shard, its folder, the part of the index
        calls.clear()
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            store.write([latent_item(allowed)])
        monkeypatch.setattr(os, "fsync", real)
        assert store.keys("latent") == set(keys(latent_item(0)))
        assert not list(tmp_path.rglob("*.tmp"))
        assert not list(store.verify())
    store.write([latent_item(1)])
    assert len(store.keys("latent")) == 2


def test_an_index_of_another_version_and_a_broken_one_are_refused(tmp_path):
    store = LatentStore(tmp_path)
    store.write([latent_item(0)])
    store.compact()
    path = merged_index(tmp_path)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"vidlit_store": "999"}), path)
    with pytest.raises(UserError, match="another version"):
        store.keys("latent")
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match="damaged"):
        store.keys("latent")


def test_tables_can_be_pickled_and_keep_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalFolder, "most_open", 2)
    store = LatentStore(tmp_path)
    items = [latent_item(number, bucket=f"{1 + 4 * number}x16x24") for number in range(5)]
    store.write(items)
    table = store.locate("latent", "latents", keys(*items))
    table.read(0)
    copy = pickle.loads(pickle.dumps(table))
    for row in [0, 1, 2, 3, 4, 0, 4]:
        assert torch.equal(copy.read(row), items[row].tensors["latents"])
        assert len(copy.storage._open) <= 2


def write_many(root, start, count):
    store = LatentStore(root)
    for number in range(start, start + count):
        store.write([latent_item(number), prompt_item(f"caption {number % 3}")])
        if number % 3 == 0:
            store.compact()


def test_writers_readers_and_compaction_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, start, 12)) for start in (0, 6)]
    for writer in writers:
        writer.start()
    store, seen = LatentStore(tmp_path), set()
    while any(writer.is_alive() for writer in writers):
        now = store.keys("latent")
        assert seen <= now, "a committed item vanished"
        seen = now
    assert [writer.exitcode for writer in writers] == [0, 0]
    store.compact()
    expected = [latent_item(number) for number in range(18)]
    assert store.keys("latent") == set(keys(*expected))
    table = store.locate("latent", "latents", keys(*expected))
    assert all(torch.equal(table.read(row), item.tensors["latents"]) for row, item in enumerate(expected))
    assert not list(store.verify())


def work_until(root, operation, made):
    """Fill, merge and clean a store, and die at one of the operations on its files."""
    count = 0

    def hook(event, args):
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.scandir") and str(args[0]).startswith(str(root)):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    store = LatentStore(root)
    with store.encoding():
        for number in range(3):
            store.write(
                [latent_item(number, bucket="1x16x24"), latent_item(10 + number), prompt_item(f"caption {number}")]
            )
            os.write(made, bytes([number]))
            store.compact()
        store.repair()


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_each_operation_on_a_file_loses_nothing(tmp_path, stride):
    context, kills = multiprocessing.get_context("fork"), 0
    for operation in range(1, 1000, stride):
        root = tmp_path / str(operation)
        is_new = kills % 2
        if not is_new:
            LatentStore(root).write([latent_item(20)])
        receiver, sender = os.pipe()
        process = context.Process(target=work_until, args=(root, operation, sender))
        process.start()
        process.join()
        os.close(sender)
        done = os.read(receiver, 100)
        os.close(receiver)
        store = LatentStore(root)
        promised = {
            key for number in done for key in keys(latent_item(number, bucket="1x16x24"), latent_item(10 + number))
        }
        assert promised | set([] if is_new else keys(latent_item(20))) <= store.keys("latent")
        assert not list(store.verify())
        store.write([latent_item(30)])
        store.clean(-1)
        assert not list(root.rglob("*.tmp"))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills > 80 // stride
