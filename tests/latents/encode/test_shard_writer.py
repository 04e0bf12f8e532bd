"""Shards are written beside what goes on: in order, one at a time, and what fails is told to who comes next."""

import threading
from types import SimpleNamespace

import pytest

from vidlit.errors import UserError
from vidlit.latents.encode.shard_writer import ShardWriter
from vidlit.latents.encoding import Encoding

ITEM = SimpleNamespace(nbytes=10)


class SlowStore:
    """Writes when it is let."""

    def __init__(self):
        self.may_write, self.written, self.at_once = threading.Event(), [], 0

    def write(self, items):
        self.at_once += 1
        assert self.at_once == 1
        assert self.may_write.wait(20)
        self.written.append(len(items))
        self.at_once -= 1


def test_items_are_taken_while_a_shard_is_written():
    store = SlowStore()
    writer = ShardWriter(store, Encoding(shard_bytes=20))
    for _ in range(3):
        writer.add([ITEM])
    assert store.written == []
    store.may_write.set()
    writer.flush()
    assert store.written == [2, 1]
    writer.flush()
    assert store.written == [2, 1], "there is nothing left to write"


def test_old_items_are_written_however_few():
    store = SlowStore()
    store.may_write.set()
    writer = ShardWriter(store, Encoding(shard_seconds=0))
    writer.add([ITEM])
    writer.add([ITEM])
    writer.flush()
    assert sum(store.written) == 2


def test_an_error_is_raised_where_the_next_shard_comes():
    def refuse(items):
        raise UserError("the disk is full")

    writer = ShardWriter(SimpleNamespace(write=refuse), Encoding(shard_bytes=10))
    writer.add([ITEM])
    with pytest.raises(UserError, match="the disk is full"):
        writer.add([ITEM])
    writer.add([ITEM])
    with pytest.raises(UserError, match="the disk is full"):
        writer.flush()
