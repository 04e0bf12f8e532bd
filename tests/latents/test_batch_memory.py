import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from vidlit.latents import batch_memory as memory
from vidlit.latents.batch_memory import Block

LAYOUTS = [((3, 5), torch.bfloat16), ((2,), torch.int64), ((7, 1), torch.bool)]


def filled(value):
    block = Block(LAYOUTS)
    for part in block.parts():
        part[:] = bytes([value]) * len(part)
    return block.tensors()


def test_tensors_lie_side_by_side_and_do_not_overlap():
    block = Block(LAYOUTS)
    for value, part in enumerate(block.parts()):
        part[:] = bytes([value]) * len(part)
    tensors = block.tensors()
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in tensors] == LAYOUTS
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)
    for value, tensor in enumerate(tensors):
        assert (tensor.reshape(-1).view(torch.uint8) == value).all()


def test_memory_is_used_again_once_nothing_holds_it():
    first = filled(1)
    address = first[0].data_ptr()
    held = first[1][1:].numpy()  # shares the memory of one tensor
    first_of_all = first[2]
    del first
    assert filled(2)[0].data_ptr() != address
    assert (held == 0x0101010101010101).all()
    assert first_of_all.all()
    del held, first_of_all
    gc.collect()
    assert address in {filled(3)[0].data_ptr() for _ in range(3)}


def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(memory, "_waiting", [])
    monkeypatch.setattr(memory, "_WAITING_BYTES", 10_000)
    for size in (1_000, 3_000, 9_000, 30_000, 90_000):
        Block([((size,), torch.uint8)])
    Block([((300_000,), torch.uint8)])
    assert sum(each.nbytes for each in memory._waiting) < 10_000 + 300_000 + 1_000


class Blocks(Dataset):
    """Numbered batches, and how many shared blocks the worker has made so far."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        block = Block([((1000,), torch.int64)])
        block.parts()[0].cast("q")[0] = index
        return block, len(memory._sent)


def as_is(batch):
    return batch


def test_a_worker_fills_a_block_again_when_the_batch_is_gone_and_not_before():
    loader = DataLoader(Blocks(), batch_size=None, collate_fn=as_is, num_workers=1)
    kept = [block.tensors()[0] for block, _ in loader]
    assert [int(tensor[0]) for tensor in kept] == list(range(40))
    made = 0
    for index, (block, made) in enumerate(loader):  # noqa: B007
        assert int(block.tensors()[0][0]) == index
    assert made <= 8  # those on their way and the one in use


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux alone limits shared memory, and has another kind")
def test_batches_need_nothing_of_dev_shm():
    """Of which Docker gives 64 MB, less than one clip may take."""
    for block, _ in DataLoader(Blocks(), batch_size=None, collate_fn=as_is, num_workers=1):
        address = block.tensors()[0].data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            first, last = (int(each, 16) for each in line.split(maxsplit=1)[0].split("-"))
            if first <= address < last:
                assert "/memfd:batch" in line
                break
        else:
            pytest.fail("mapped nowhere")


LARGE_BATCHES = """
import sys, torch
from torch.utils.data import DataLoader, Dataset
from vidlit.latents.batch_memory import batch_memory

class Batches(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return batch_memory((16, 2**20), torch.uint8).fill_(index)

loader = DataLoader(Batches(), batch_size=None, num_workers=1)
sys.exit([int(batch.sum(dtype=torch.int64)) >> 24 for batch in loader] != [0, 1, 2, 3])
"""


@pytest.mark.slow
def test_batches_larger_than_dev_shm_arrive():
    """In a container of one's own: 16 MB each, where there is 1 MB."""
    command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no right to mount")
    done = subprocess.run([*command, sys.executable, "-c", LARGE_BATCHES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_a_forked_copy_of_a_batch_hands_nothing_back():
    shared = memory._new_shared(1024)
    shared[0] = 1
    held = [memory._receive([((8,), torch.uint8)], shared)]

    def child():
        held.clear()
        gc.collect()
        sys.exit(0 if int(shared[0]) == 1 else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert int(shared[0]) == 1
    held.clear()
    gc.collect()
    assert int(shared[0]) == 0
