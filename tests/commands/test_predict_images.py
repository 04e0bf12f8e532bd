"""Videos that go on from a first frame, and distilled guidance: what ``vidlit predict`` does in other families."""

import csv
import json

import av
import numpy as np
import pytest
from PIL import Image

from tests.models import bases
from vidlit.__main__ import main

SIZES = {"cogvideox-1.5-i2v": "9x32x48", "wan-i2v": "5x32x48", "wan-5b": "5x32x64", "hunyuan_video": "5x32x48"}


@pytest.fixture
def predict(quickstart, tmp_path):
    """Run the command on a tiny base of a family; frames and JSON of each video, in order."""

    def run(name, output="out", **options):
        base = tmp_path / "base"
        if not base.exists():
            bases.EVERY[name](base)
        given = {"model.base": base, "data.buckets": f"[{SIZES[name]}]", "samples.num_steps": 2}
        words = quickstart("predict", output=tmp_path / output, **given, **options)
        code = main(words)
        return [read(path) for path in sorted((tmp_path / output).glob("*.mp4"))] if code == 0 else code

    return run


def read(path):
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return frames.astype(int), json.loads(path.with_suffix(".json").read_text())


@pytest.fixture
def table(tmp_path):
    """The same prompt and seed with two images, each named from the table's folder."""

    def write(*images):
        for name, colour in (("red.png", (200, 30, 30)), ("blue.png", (30, 30, 200))):
            Image.new("RGB", (60, 40), colour).save(tmp_path / name)
        path = tmp_path / "prompts.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("prompt", "image"), *(("A red disc", image) for image in images)])
        return path

    return write


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("cogvideox-1.5-i2v", marks=pytest.mark.slow),
        pytest.param("wan-i2v", marks=pytest.mark.slow),
        "wan-5b",
    ],
)
def test_a_video_goes_on_from_its_image(predict, table, tmp_path, name):
    ((red, note),) = predict(name, "red", prompts=table("red.png"))
    assert note["image"] == str(tmp_path / "red.png")
    assert "x".join(map(str, red.shape[:3])) == SIZES[name]
    ((blue, _),) = predict(name, "blue", prompts=table("blue.png"))
    assert np.abs(red - blue).mean() > 0.2  # the same noise, another image


@pytest.mark.slow
def test_images_and_guidance_go_together(predict, table):
    ((plain, _),) = predict("wan-i2v", "plain", prompts=table("red.png"))
    ((guided, _),) = predict("wan-i2v", "guided", prompts=table("red.png"), **{"samples.guidance_scale": 5})
    assert np.abs(plain - guided).mean() > 0.2


def test_with_and_without_an_image_where_the_model_takes_both(predict, table):
    """In one list: they cannot share a batch."""
    with_image, without = predict("wan-5b", prompts=table("red.png", ""), batch_size=2)
    assert "image" in with_image[1]
    assert "image" not in without[1]


@pytest.mark.parametrize(
    ("name", "image", "said"),
    [
        ("cogvideox-1.5-i2v", "", "continues a first frame"),
        ("hunyuan_video", "red.png", "from text alone"),
        ("wan-i2v", "green.png", "no image"),
    ],
)
def test_an_image_too_few_or_too_many_is_one_clear_line(predict, table, capsys, name, image, said):
    assert predict(name, prompts=table(image)) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed


def test_a_broken_image_is_one_clear_line(predict, table, tmp_path, capsys):
    prompts = table("red.png")
    (tmp_path / "red.png").write_bytes(b"no image")
    assert predict("wan-i2v", prompts=prompts) == 2
    printed = capsys.readouterr().err
    assert "red.png" in printed
    assert "Traceback" not in printed


def test_a_distilled_model_is_told_the_scale_of_guidance(predict, monkeypatch):
    """And is called once a step."""
    from diffusers import HunyuanVideoTransformer3DModel

    told = []
    forward = HunyuanVideoTransformer3DModel.forward

    def listen(self, *args, guidance, **kwargs):
        told.append(guidance.tolist())
        return forward(self, *args, guidance=guidance, **kwargs)

    monkeypatch.setattr(HunyuanVideoTransformer3DModel, "forward", listen)
    predict("hunyuan_video", prompts="A red disc", **{"samples.guidance_scale": 6})
    assert told == [[6000.0], [6000.0]]
