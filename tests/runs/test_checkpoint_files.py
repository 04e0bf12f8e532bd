import os
import subprocess
import sys

import pytest
import torch

from vidlit.errors import UserError
from vidlit.runs.checkpoint_files import AtomicCheckpointIO

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
    AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert [each.name for each in tmp_path.iterdir()] == ["best.ckpt"]  # what was unfinished is gone
    assert torch.load(path, weights_only=True) == {"step": 2}


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"last.ckpt is not a checkpoint, or is damaged"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
