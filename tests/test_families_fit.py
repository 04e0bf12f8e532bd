"""Every family through its own shipped YAML, tiny: encode, fit, export, reload in diffusers, score, predict."""

import json
import math
import re

import diffusers
import pytest
import torch
import yaml
from PIL import Image

from tests.models import bases
from tests.models.hunyuan_bases import few_glyphs
from tests.models.test_export import adapted_layers
from tests.report.test_model_card import card_of, code_of
from tests.tiny_runs import CONFIGS, tiny_words
from vidlit.__main__ import main
from vidlit.models.family import open_family

pytestmark = pytest.mark.slow

TINY = {
    "cogvideox_lora": (bases.cogvideox, "9x32x48"),
    "mochi_lora": (bases.mochi, "7x32x48"),
    "hunyuan_video_lora": (bases.hunyuan_video, "9x32x48"),
    "ltx2_lora": (bases.ltx2, "9x32x64"),
    "hunyuan_video15_lora": (bases.hunyuan_video15, "5x32x64"),
    "kandinsky5_lora": (bases.kandinsky5, "5x32x48"),
    "ltx_video_lora": (lambda folder: bases.ltx_video(folder, use_dynamic_shifting=True), "9x32x64"),
    "wan2_1_1_3b_lora": (bases.wan, "9x32x64"),
    "wan2_2_a14b_lora": (bases.wan_pair, "9x32x64"),
    "wan2_2_ti2v_5b_lora": (bases.wan_5b, "9x32x64"),
    "wan2_1_1_3b_full": (bases.wan, "9x32x64"),
    "wan2_1_14b_fsdp": (bases.wan, "9x32x64"),
}
"""Shipped YAML -> a tiny base in place of its own, and a size of clips."""
OTHERS = {
    "cogvideox_lora": lambda folder: bases.cogvideox(folder, "5b-i2v"),
    "hunyuan_video15_lora": lambda folder: bases.hunyuan_video15(folder, from_image=True),
    "ltx_video_lora": bases.ltx_video_095,
}
"""Further bases that the same YAML trains."""

CASES = [
    *((name, make, size) for name, (make, size) in TINY.items()),
    *((name, make, TINY[name][1]) for name, make in OTHERS.items()),
]


@pytest.fixture(autouse=True)
def cheap_glyphs():
    with few_glyphs():
        yield


@pytest.mark.parametrize(("name", "make", "size"), CASES)
def test_a_family_from_clips_to_its_pipeline(name, make, size, demo, tmp_path, capsys, monkeypatch):
    base = make(tmp_path / "base")
    shipped = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    words = ["fit", *tiny_words(name, base, demo.dir / "clips", size, tmp_path)]
    assert main(words) == 0

    (run,) = (tmp_path / "runs" / name).iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stop_step"] == 2
    assert len(list(run.glob("samples/step_*/*.mp4"))) == 1
    family = open_family(base)
    if shipped["model"].get("adapter"):
        named = len(list((run / "weights").glob("comfyui_lora*.safetensors")))
        assert named == (len(family.experts) if family.comfyui_layers else 0)
        _, card = card_of(run / "weights")
        monkeypatch.chdir(run / "weights")
        loading, _, _ = code_of(card).partition('pipeline.to("cuda")')  # a video is made below, of another size
        exec(loading.replace("torch.bfloat16", "torch.float32"), scope := {})
        pipeline = scope["pipeline"]
        adapted = [adapted_layers(getattr(pipeline, expert.name)) for expert in family.experts]
        adapters = [module for layers in adapted for module in layers.values()]
        assert adapters
        assert {module.scaling[key] for module in adapters for key in module.scaling} == {1.0}
        assert any(weight.weight.any() for module in adapters for weight in module.lora_B.values())
    else:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(run / "weights")
    frames, height, width = map(int, size.split("x"))
    given = {"height": height, "width": width}
    if family.pipeline_class == "HunyuanVideo15ImageToVideoPipeline":
        given = {"image": Image.new("RGB", (width, height))}  # which chooses the size by it
    elif family.clip_extras:
        given["image"] = torch.rand(1, 3, height, width)
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(prompt="A red disc.", num_frames=frames, num_inference_steps=2, output_type="pt", **given).frames
    assert video.shape[:3] == (1, frames, 3)
    assert video.shape[3:] == (height, width) or "height" not in given
    assert video.isfinite().all()

    if make is OTHERS.get(name):  # what comes after a fit was shown with the configuration's own base
        return

    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    capsys.readouterr()
    assert main(["validate", *words[1:], checkpoint]) == 0
    changes = re.findall(r"validation[^\n]*?([+-]\d+\.\d+)[^\n]*%", capsys.readouterr().out)
    parts = summary.get("parts", {"all": summary})
    expected = [100 * math.expm1(part["val_log_ratio"]) for part in parts.values()]
    assert [float(change) for change in changes] == pytest.approx(expected, abs=0.006)
    assert main(["test", *words[1:], checkpoint]) == 0
    results = json.loads((run / "test" / "step_000002" / "results.json").read_text())
    tested = results.get("parts", {"all": results})
    assert tested.keys() == parts.keys()
    assert all(math.isfinite(part["log_ratio"]) and part["clips"] > 0 for part in tested.values())

    Image.new("RGB", (width, height), "red").save(tmp_path / "red.png")
    image = "red.png" if family.clip_extras else ""
    (tmp_path / "prompts.csv").write_text(f"prompt,image\nA red disc,{image}\n")
    words[0] = "predict"
    again = {"prompts": tmp_path / "prompts.csv", "output": tmp_path / "out", "ckpt_path": "best"}
    assert main([*words, *(f"--{key}={value}" for key, value in again.items())]) == 0
    (note,) = (json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json"))
    assert note["step"] == (summary["kept_step"] if len(parts) == 1 else summary["stop_step"])
    assert (tmp_path / "out" / "00_a_red_disc.mp4").is_file()


def test_every_shipped_configuration_of_a_family_is_run():
    others = {"quickstart", "demo_base", "demo_lora", "sweep"}
    others |= {"ltx2_sound_lora"}  # of clips with sound, by tests/models/test_ltx2_sound.py
    assert set(TINY) == {path.stem for path in CONFIGS.glob("*.yaml")} - others
