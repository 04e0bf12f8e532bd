import os

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from tests.test_fit import read_metrics
from vidlit.__main__ import main
from vidlit.models.base_folder import add_base_parts
from vidlit.models.family import open_family


def test_a_full_fine_tune_leaves_a_whole_model(quickstart, demo, tmp_path):
    assert main(quickstart(trainer__max_steps=4)) == 0
    weights = tmp_path / "runs" / "quickstart" / "0" / "weights"
    assert (weights / "vae").is_symlink()
    assert not (weights / "transformer").is_symlink()
    family = open_family(weights)
    assert family.identity == open_family(demo.dir / "base").identity  # latents of the base serve again
    pipeline = diffusers.LTXPipeline.from_pretrained(weights)
    trained = load_file(weights / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, trained[name]) for name, value in pipeline.transformer.state_dict().items())
    assert type(pipeline.vae).__name__ == "PatchDCTCodec"
    # another run starts where this one ended
    assert main(quickstart(model__base=weights, run__name="second", trainer__max_steps=4)) == 0
    ended = read_metrics(tmp_path / "runs" / "quickstart" / "0", "val/loss")[4]
    assert read_metrics(tmp_path / "runs" / "second" / "0", "val/loss")[0] == pytest.approx(ended, rel=1e-5)


def test_parts_are_copied_replaced_or_left_out(quickstart, demo, tmp_path):
    base, folder = demo.dir / "base", tmp_path / "weights"
    diffusers.LTXVideoTransformer3DModel.from_pretrained(base / "transformer").save_pretrained(folder / "transformer")
    for copy in (False, True, False, True):  # a resumed run exports again
        add_base_parts(base, folder, ["transformer"], copy=copy)
        assert (folder / "text_encoder").is_symlink() == (not copy)
    assert {path.name for path in folder.iterdir()} == {path.name for path in base.iterdir()}
    for part in ("vae", "tokenizer", "scheduler"):
        for path in (base / part).iterdir():
            assert (folder / part / path.name).read_bytes() == path.read_bytes()
    assert main(quickstart(trainer__max_steps=4, export__base_parts="none")) == 0
    folders = {path.name for path in (tmp_path / "runs/quickstart/0/weights").iterdir() if path.is_dir()}
    assert folders == {"transformer"}


def test_all_that_a_run_leaves_can_be_read_as_the_umask_says(finished_run):
    umask = os.umask(0)
    os.umask(umask)
    modes = {
        path: path.stat().st_mode & 0o777
        for path in finished_run.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    assert {path.name for path, mode in modes.items() if mode != 0o666 & ~umask} == set()
    assert any(path.suffix == ".safetensors" for path in modes)
