import math
import shutil
from pathlib import Path

import pytest

from benchmarks.memory import ROOT, run_of
from benchmarks.published import published_bases, write_published
from vidlit.commands.starting.shipped_configs import shipped_configs
from vidlit.models.base_folder import configs_alone, local_folder
from vidlit.models.family import open_family
from vidlit.training.memory import Memory


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has one base, and what was fetched from it."""
    fetched = []

    def snapshot_download(base, local_files_only=False, allow_patterns=None):
        cached = tmp_path / "cache"
        if not local_files_only:
            fetched.append(allow_patterns)
            shutil.copytree(write_published(base, tmp_path / "hub"), cached)
        elif not cached.is_dir():
            from huggingface_hub.errors import LocalEntryNotFoundError

            raise LocalEntryNotFoundError("nothing is here")
        return str(cached)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return fetched


def test_a_plan_fetches_configs_alone_and_once(hub):
    with configs_alone():
        first = local_folder("Lightricks/LTX-Video")
        assert local_folder("Lightricks/LTX-Video") == first
    assert hub == [["model_index.json", "*/*config.json"]]
    assert open_family(first).default_fps == 25.0


@pytest.mark.parametrize("base", published_bases())
def test_published_configs_open_as_bases_that_the_shipped_buckets_fit(base, tmp_path):
    family = open_family(write_published(base, tmp_path))
    assert family.base == Path(tmp_path)
    assert family.latent_channels >= 12
    for config in shipped_configs().values():
        if config.base == base:
            assert (family.frame_multiple, family.pixel_multiple) == tuple(config.multiples)
            for bucket in config.buckets:
                bucket.check(family.frame_multiple, family.pixel_multiple)


def test_a_config_without_options_of_memory_is_forecast_with_their_defaults(tmp_path):
    run = run_of(ROOT / "configs" / "wan2_1_1_3b_full.yaml", tmp_path)
    assert run.module.memory == Memory()
    assert run.setting.bucket == max(run.buckets, key=math.prod)
