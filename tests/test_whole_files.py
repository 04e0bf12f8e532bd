import os
import stat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from vidlit.whole_files import UNFINISHED, make_readable, open_regular, remove_unfinished, replacing, write_whole


@pytest.mark.parametrize("sync", [False, True])
def test_a_reader_meets_the_old_file_until_the_new_one_is_whole(tmp_path, sync):
    path = tmp_path / "new" / "a.json"
    write_whole(path, b"old", sync=sync)
    with replacing(path, sync=sync) as unfinished:
        unfinished.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert UNFINISHED.fullmatch(unfinished.name)["name"] == "a.json"
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["a.json"]


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.json"
    write_whole(path, b"old")

    def write_half():
        with replacing(path) as unfinished:
            unfinished.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


@given(st.from_regex(r"[a-zA-Z0-9_.]{1,20}", fullmatch=True))
def test_only_what_was_being_written_is_removed(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("run")
    (folder / f".{name}.0123abcd.tmp").touch()
    for kept in (f"{name}.tmp", f"a{name}.0123abcd.tmp", f".{name}.0123abcX.tmp"):
        (folder / kept).touch()
    remove_unfinished(folder)
    assert not (folder / f".{name}.0123abcd.tmp").exists()
    assert len(os.listdir(folder)) == len({f"{name}.tmp", f"a{name}.0123abcd.tmp", f".{name}.0123abcX.tmp"})


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        open_regular(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x")
    descriptor = open_regular(tmp_path / "file")
    assert stat.S_ISREG(os.fstat(descriptor).st_mode)
    os.close(descriptor)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_are_readable_as_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        outside = tmp_path / "outside"
        outside.write_bytes(b"")
        outside.chmod(0o400)
        folder = tmp_path / "weights"
        folder.mkdir()
        save_file({"a": torch.zeros(1)}, folder / "a.safetensors")
        (folder / "link").symlink_to(outside)
        make_readable(folder.iterdir())
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"a.safetensors": mode, "link": 0o400}
