import errno
import io
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from vidlit.errors import UserError
from vidlit.runs import checkpoint_files
from vidlit.runs.checkpoint_files import (
    METADATA,
    AtomicCheckpointIO,
    check_checkpoint,
    load_weights,
    read_shard_metadata,
    remove_leftovers,
    stored_shapes,
)
from vidlit.whole_files import remove_unfinished

KILLED_HALFWAY = """
import os, signal, sys, torch
from vidlit.runs.checkpoint_files import AtomicCheckpointIO

class Bomb:
    def __reduce__(self):  # asked for while the file is being written
        os.kill(os.getpid(), signal.SIGKILL)

AtomicCheckpointIO().save_checkpoint({"first": torch.ones(1 << 18), "then": Bomb()}, sys.argv[1])
"""


def test_killed_while_saving_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    done = subprocess.run([sys.executable, "-c", KILLED_HALFWAY, str(path)], env=dict(os.environ), timeout=120)
    assert done.returncode == -9
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True) == {"step": 1}
    remove_unfinished(tmp_path)  # as the next start of the run does
    AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert [each.name for each in tmp_path.iterdir()] == ["best.ckpt"]  # what was unfinished is gone
    assert torch.load(path, weights_only=True) == {"step": 2}


WHOLE = {"global_step": 3, "pytorch-lightning_version": "2.6", "state_dict": {"weight": torch.ones(2)}}


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark, call=os.mkdir):
        self.mark, self.call = mark, call

    def __reduce__(self):
        return self.call, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def write_zip_cut(path):
    torch.save(WHOLE, path)
    path.write_bytes(path.read_bytes()[:-200])


def write_lora(path):
    save_file({"a": torch.ones(2)}, path)


def write_base(path):
    path.mkdir()
    (path / "model_index.json").write_text("{}")


FOREIGN = {
    "no checkpoint": (lambda path: path.write_bytes(b"no checkpoint"), "is not a checkpoint"),
    "empty": (lambda path: path.touch(), "is not a checkpoint"),
    "cut": (write_zip_cut, "is not a checkpoint, or is damaged"),
    "the begin of a zip": (lambda path: path.write_bytes(b"PK\x03\x04 cut off"), "is not a checkpoint, or is damaged"),
    "a plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is not a checkpoint"),
    "a LoRA": (write_lora, "is not a checkpoint"),
    "of another program": (lambda path: torch.save({"model": {}, "epoch": 3}, path), "it has no global_step"),
    "a tensor": (lambda path: torch.save(torch.ones(2), path), "it has no global_step"),
    "missing": (lambda path: None, "no such file"),
    "a base": (write_base, "give it as --model.base"),
    "a folder": (lambda path: path.mkdir(), "without the shards of a checkpoint"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_checkpoint_is_one_line_that_says_what_it_is(tmp_path, name):
    path = tmp_path / "last.ckpt"
    write, said = FOREIGN[name]
    write(path)
    with pytest.raises(UserError, match=said) as caught:
        check_checkpoint(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError):
        AtomicCheckpointIO().load_checkpoint(
            path
        ) if path.is_file() and "global_step" not in said else check_checkpoint(path)


def test_a_lora_is_known_by_its_name(tmp_path):
    write_lora(tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="predict --lora"):
        check_checkpoint(tmp_path / "lora.safetensors")


def test_a_checkpoint_passes(tmp_path):
    torch.save(WHOLE, tmp_path / "last.ckpt")
    check_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("weights_only", [True, False, None])
def test_no_checkpoint_runs_what_stands_in_it(tmp_path, mark, weights_only):
    path = tmp_path / "best.ckpt"
    torch.save({**WHOLE, "callbacks": {"x": Trap(mark)}}, path)
    for read in (
        lambda: AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only),
        lambda: check_checkpoint(path),
        lambda: load_weights(torch.nn.Linear(1, 1), path),
    ):
        with pytest.raises(UserError, match="not made of numbers"):
            read()


# -- shards


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A folder of shards as torch writes it of a model and its optimizer, whose groups are not tensors."""
    folder = tmp_path_factory.mktemp("shards") / "last.ckpt"
    model = torch.nn.Linear(3, 4).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, 3).bfloat16()).sum().backward()
    optimizer.step()
    state = {"state_dict": get_model_state_dict(model), "optimizer_0": get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    torch.save({"global_step": 3, "pytorch-lightning_version": "2.6"}, folder / METADATA)
    return folder, model


@pytest.fixture
def shards(sharded, tmp_path):
    return shutil.copytree(sharded[0], tmp_path / "last.ckpt")


def change(shards, edit):
    """Edit the description as its own classes, and write it back."""
    metadata = FileSystemReader(shards).read_metadata()
    edit(metadata)
    (shards / ".metadata").write_bytes(pickle.dumps(metadata))


def readers(shards):
    """Everything that reads shards."""
    return (
        lambda: read_shard_metadata(shards),
        lambda: check_checkpoint(shards),
        lambda: stored_shapes(shards),
        lambda: AtomicCheckpointIO().load_checkpoint(shards),
        lambda: load_weights(torch.nn.Linear(3, 4).bfloat16(), shards),
    )


def test_shards_are_read_whole(sharded):
    folder, model = sharded
    check_checkpoint(folder)
    assert stored_shapes(folder) == {"weight": (4, 3), "bias": (4,)}
    read = AtomicCheckpointIO().load_checkpoint(folder)
    assert read["global_step"] == 3
    assert torch.equal(read["state_dict"]["weight"], model.weight)
    assert "optimizer_0.param_groups.0.lr" in read_shard_metadata(folder).state_dict_metadata


@pytest.mark.parametrize(
    "make",
    [
        lambda mark: pickle.dumps(Trap(mark)),
        lambda mark: pickle.dumps(Trap(f"mkdir {mark}", os.system)),
        lambda mark: pickle.dumps(Trap(f"__import__('os').mkdir({str(mark)!r})", eval)),
        lambda mark: pickle.dumps({"planner_data": [Trap(mark)]}),
        lambda mark: pickle.dumps(Trap(mark), protocol=0),
        lambda mark: f"cposix\nmkdir\n(V{mark}\ntR.".encode(),
        lambda mark: f"ctorch\nos.mkdir\n(V{mark}\ntR.".encode(),
        lambda mark: b"ctorch\nload\n(Vx.pt\ntR.",
        lambda mark: b"ctorch.distributed.checkpoint.metadata\nos.system\n(Vtrue\ntR.",
        lambda mark: b"",
        lambda mark: b"no pickle",
        lambda mark: pickle.dumps({"a": 1}),
    ],
)
def test_a_description_of_shards_runs_nothing(shards, mark, make):
    (shards / ".metadata").write_bytes(make(mark))
    for read in readers(shards):
        with pytest.raises(UserError, match=r"last\.ckpt"):
            read()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_description_is_one_line(sharded, data):
    """Whatever byte is changed: it is read, or told."""
    content = bytearray((sharded[0] / ".metadata").read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    folder = sharded[0].with_name("damaged.ckpt")
    shutil.copytree(sharded[0], folder, dirs_exist_ok=True)
    (folder / ".metadata").write_bytes(content)
    try:
        read_shard_metadata(folder)
    except UserError:
        pass


def moved(path):
    def edit(metadata):
        for place in metadata.storage_data.values():
            place.relative_path = str(path)

    return edit


def grown(metadata):
    entry = metadata.state_dict_metadata["state_dict.weight"]
    entry.size = torch.Size([10**6, 10**6])


def late(metadata):
    next(iter(metadata.storage_data.values())).offset = 10**9


def transformed(metadata):
    next(iter(metadata.storage_data.values())).transform_descriptors = ["zstd"]


@pytest.mark.parametrize(
    "edit",
    [
        *map(moved, ["../outside.distcp", "/etc/passwd", "meta.pt", ".metadata", "..", "", "a/b"]),
        grown,
        late,
        transformed,
    ],
)
def test_shards_name_nothing_outside_their_folder_and_no_more_than_it_holds(shards, edit):
    shutil.copy(shards / "__0_0.distcp", shards.parent / "outside.distcp")
    change(shards, edit)
    for read in readers(shards):
        with pytest.raises(UserError, match=r"last\.ckpt"):
            read()


def test_a_shard_that_is_a_link_is_not_followed(shards):
    shutil.move(shards / "__0_0.distcp", shards.parent / "outside.distcp")
    (shards / "__0_0.distcp").symlink_to(shards.parent / "outside.distcp")
    with pytest.raises(UserError, match=r"last\.ckpt is not a sharded checkpoint"):
        check_checkpoint(shards)


@pytest.mark.parametrize("name", ["state_dict.weight", "optimizer_0.param_groups.0.lr"])
def test_what_is_stored_as_an_object_runs_nothing_either(shards, mark, name):
    """torch unpickles such entries: the description may say so of any of them."""
    file = io.BytesIO()
    torch.save(Trap(mark), file)
    (shards / "__9_9.distcp").write_bytes(file.getvalue())

    def edit(metadata):
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
        for index in [index for index in metadata.storage_data if index.fqn == name]:
            del metadata.storage_data[index]
        metadata.storage_data[MetadataIndex(name)] = _StorageInfo("__9_9.distcp", 0, len(file.getvalue()))

    change(shards, edit)
    for read in readers(shards):
        with pytest.raises(UserError, match=r"last\.ckpt"):
            read()


# -- what is not finished


@pytest.mark.parametrize("fails", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "quota"),
                                   RuntimeError("[enforce fail] No space left on device")], ids=repr)  # fmt: skip
@pytest.mark.parametrize("there_before", [False, True])
def test_a_full_disk_keeps_no_half_file_and_is_told(tmp_path, monkeypatch, fails, there_before):
    path = tmp_path / "checkpoints" / "best.ckpt"
    if there_before:
        AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def save(_, file):
        file.write(b"half")
        raise fails

    monkeypatch.setattr(checkpoint_files.torch, "save", save)
    with pytest.raises(UserError, match=r"best\.ckpt could not be written: no space is left on the disk") as caught:
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert ("is as it was before" in str(caught.value)) == there_before
    assert [each.name for each in path.parent.iterdir()] == (["best.ckpt"] if there_before else [])


def test_whatever_else_fails_keeps_no_half_file(tmp_path):
    with pytest.raises((AttributeError, pickle.PicklingError)):
        AtomicCheckpointIO().save_checkpoint({"a": torch.ones(9), "b": lambda: None}, tmp_path / "best.ckpt")
    assert list(tmp_path.iterdir()) == []


def folder_of(path):
    path.mkdir()
    (path / METADATA).touch()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(left=st.sets(st.sampled_from([".best.ckpt.link", ".last.ckpt.a", ".best.ckpt.b"])))
@example(left=set())
def test_leftovers_of_killed_processes_go_and_nothing_else(tmp_path_factory, left):
    folder = tmp_path_factory.mktemp("checkpoints")
    kept = {
        "best.ckpt",
        "candidate_000004.ckpt",
        ".last.ckpt.b",
        "last.ckpt",
        "notes.txt",
        ".hidden",
        ".a",
        "x.a",
        "y.link",
    }
    for name in kept - {".last.ckpt.b", "last.ckpt"}:
        (folder / name).touch()
    folder_of(folder / ".last.ckpt.b")
    (folder / "last.ckpt").symlink_to(".last.ckpt.b")
    for name in left:
        (folder_of if name.endswith((".a", ".b")) else type(folder).touch)(folder / name)
    assert {path.name for path in remove_leftovers(folder)} == left
    assert {path.name for path in folder.iterdir()} == kept
    assert remove_leftovers(folder / "nowhere") == []
