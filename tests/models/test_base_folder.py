import diffusers
import pytest

from vidlit.errors import UserError
from vidlit.models.base_folder import fingerprint, local_folder, read_config


def test_a_config_is_read_of_a_part_or_of_the_whole(tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"shift": 3.0}')
    (tmp_path / "model_index.json").write_text('{"boundary_ratio": 0.9}')
    assert read_config(tmp_path, "scheduler", "scheduler_config.json") == {"shift": 3.0}
    assert read_config(tmp_path, "", "model_index.json") == {"boundary_ratio": 0.9}


@pytest.mark.parametrize("name", ["/nowhere/base", "./base", "base", "a/b/c", "~/base"])
def test_a_path_that_does_not_exist_never_asks_the_network(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="does not exist"):
        local_folder(name)


def test_a_hub_name_is_fetched_and_a_failure_is_one_error(tmp_path, monkeypatch):
    asked = []

    def download(name, use_safetensors):
        assert use_safetensors  # others may hold code
        asked.append(name)
        if name == "owner/gone":
            raise OSError("no such repository")
        return str(tmp_path)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    assert local_folder("owner/model") == tmp_path
    with pytest.raises(UserError, match=r"owner/gone.*no such repository"):
        local_folder("owner/gone")
    assert asked == ["owner/model", "owner/gone"]


def test_fingerprint_sees_both_ends_of_a_large_file(tmp_path):
    path = tmp_path / "model" / "weights"
    path.parent.mkdir()
    whole = bytearray(5 << 20)
    seen = set()
    for position in (None, 0, len(whole) - 1):
        data = bytearray(whole)
        if position is not None:
            data[position] = 1
        path.write_bytes(data)
        seen.add(fingerprint(path.parent))
    path.write_bytes(whole[:-1])
    seen.add(fingerprint(path.parent))
    assert len(seen) == 4
