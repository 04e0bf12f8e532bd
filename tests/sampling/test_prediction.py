"""Videos for prompts, through the command line."""

import csv
import hashlib
import json
import os
import subprocess
import sys

import av
import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vidlit.__main__ import main
from vidlit.models.encoders import BaseEncoders
from vidlit.models.families.ltx_video import LTXVideo
from vidlit.models.family import open_family
from vidlit.video.frames import ClipRequest
from vidlit.video.sound import read_sound


@pytest.fixture
def predict(quickstart, tmp_path):
    """Run the command and read back what it wrote, by file name without ending."""

    def run(output="out", **options):
        words = quickstart("predict", samples__num_steps=2, output=tmp_path / output, **options)
        assert main(words) == 0
        return read(tmp_path / output)

    return run


def read(folder):
    """Frames and JSON of each video."""
    found = {}
    for path in sorted(folder.glob("*.mp4")):
        with av.open(str(path)) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        found[path.stem] = frames.astype(int), json.loads(path.with_suffix(".json").read_text())
    return found


@pytest.fixture
def table(tmp_path):
    """Prompts of several sizes and seeds."""
    path = tmp_path / "prompts.csv"
    rows = [
        ("prompt", "seed", "resolution", "num_frames"),
        ("A red disc, moving left", "", "", ""),
        ("A blue ring", "5", "64x64", "9"),
        ("A green square", "", "64x64", "9"),
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_videos_of_the_base_for_a_table_of_prompts(predict, table, demo):
    made = predict(prompts=table)
    assert list(made) == ["00_a_red_disc_moving_left", "01_a_blue_ring", "02_a_green_square"]
    shapes = [frames.shape[:3] for frames, _ in made.values()]
    assert shapes == [(17, 64, 64), (9, 64, 64), (9, 64, 64)]  # the largest bucket, and what the rows say
    notes = [note for _, note in made.values()]
    assert [note["seed"] for note in notes] == [0, 5, 0]
    base = str(demo.dir / "base")
    for number, note in enumerate(notes):
        assert (note["number"], note["step"], note["base"], note["weights"]) == (number, None, base, base)
        assert (note["num_steps"], note["guidance_scale"], note["fps"]) == (2, 1.0, 16.0)
        assert note["weights_hash"] == f"fingerprint:{open_family(base).transformer_fingerprint}"


def test_a_video_ends_with_its_last_image(predict, tmp_path):
    """Which is held for the frames that the last latent frame stands for; the first image is one frame."""
    colours = {"image": (200, 30, 30), "last_image": (30, 30, 200)}
    for name, colour in colours.items():
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "prompts.csv").write_text("prompt,image,last_image,num_frames\nA disc,image.png,last_image.png,17\n")
    ((frames, note),) = predict(prompts=tmp_path / "prompts.csv").values()
    for name, places in (("image", [0]), ("last_image", [13, 14, 15, 16])):
        assert note[name] == str(tmp_path / f"{name}.png")
        assert (np.abs(frames[places] - colours[name]).mean(axis=(1, 2, 3)) < 12).all()
        assert (np.abs(frames[1:13] - colours[name]).mean(axis=(1, 2, 3)) > 12).all()


def test_a_video_is_a_function_of_seed_and_number(predict, table, tmp_path):
    one_by_one = predict(prompts=table)
    together = predict(output="together", prompts=table, batch_size=3)
    other_seed = predict(output="other", prompts=table, samples__seed=1)
    for name, (frames, _) in one_by_one.items():
        assert np.abs(frames - together[name][0]).mean() < 0.1, name
        same = np.abs(frames - other_seed[name][0]).mean() < 0.1
        assert same == (name == "01_a_blue_ring")  # its row says its seed


def test_prompts_from_a_text_file_and_from_words(predict, tmp_path):
    text = tmp_path / "prompts.txt"
    text.write_text("A red disc\n\nA blue ring\n")
    small = {"size": "5x48x80"}
    from_file = predict(prompts=text, **small)
    from_words = predict(output="words", prompts="[A red disc, A blue ring]", **small)
    assert from_file.keys() == from_words.keys() == {"00_a_red_disc", "01_a_blue_ring"}
    for name, (frames, _) in from_file.items():
        assert np.array_equal(frames, from_words[name][0])
    (alone,) = predict(output="alone", prompts="A red disc: it moves", **small).values()
    assert alone[1]["prompt"] == "A red disc: it moves"


def test_a_family_with_sound_is_heard(predict, monkeypatch, tmp_path):
    def load(family, device):
        def decode(streams):
            loudness = 0.5 * streams["latents"].std().clamp(max=1)
            return loudness * torch.ones(1, 2, 12_000), 24_000

        return decode

    monkeypatch.setattr(LTXVideo, "load_sound_decoder", load)
    predict(prompts="A red disc", size="5x48x80")
    heard = read_sound(ClipRequest(tmp_path / "out" / "00_a_red_disc.mp4", 0.0, 5, 16.0, 48, 80), 16_000)
    assert heard.shape == (2, 5000)
    assert heard[:, 1000:4000] == pytest.approx(np.full((2, 3000), heard[0, 2000]), abs=0.05)
    assert heard[0, 2000] > 0.1


@pytest.mark.slow
def test_a_checkpoints_weights_are_those_of_its_exported_lora(predict, quickstart, tmp_path, capsys):
    """And differ from the base's; 'best' finds the run's checkpoint."""
    adapter = {"model__adapter": "{rank: 4, alpha: 8}", "model__optimizer__init_args__lr": 0.05}
    assert main(quickstart(**adapter)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    best = json.loads((run / "summary.json").read_text())["best_step"]
    assert best > 0
    prompt = {"prompts": "A red disc", "size": "9x64x64"}
    trained = predict(output="trained", ckpt_path="best", **prompt, **adapter)["00_a_red_disc"]
    lora = predict(output="lora", lora=run / "weights", **prompt)["00_a_red_disc"]
    base = predict(output="base", **prompt, **adapter)["00_a_red_disc"]
    assert np.array_equal(trained[0], lora[0])
    assert np.abs(trained[0] - base[0]).mean() > 1
    assert (trained[1]["step"], lora[1]["step"], base[1]["step"]) == (best, None, None)
    for note, file in ((trained[1], "checkpoints/best.ckpt"), (lora[1], "weights/pytorch_lora_weights.safetensors")):
        assert note["weights_hash"] == f"sha256:{hashlib.sha256((run / file).read_bytes()).hexdigest()}"
        assert note["weights"].endswith(file)
    # the config that the run saved is all that is needed
    again = tmp_path / "again"
    words = ["predict", "--config", str(run / "config.yaml"), "--ckpt_path", "best", "--output", str(again)]
    assert main([*words, "--prompts", "A red disc", "--size", "9x64x64", "--samples.num_steps", "2"]) == 0
    assert np.array_equal(read(again)["00_a_red_disc"][0], trained[0])


def test_a_lora_of_others_is_used(predict, demo, tmp_path):
    """Made with diffusers and peft alone, on layers that this project leaves alone."""
    from peft import LoraConfig, get_peft_model_state_dict

    family = open_family(demo.dir / "base")
    transformer = family.load_transformer()
    transformer.add_adapter(LoraConfig(r=2, target_modules=["proj_in", "ff.net.2"], init_lora_weights=False))
    diffusers.LTXPipeline.save_lora_weights(
        tmp_path / "theirs", transformer_lora_layers=get_peft_model_state_dict(transformer), weight_name="x.safetensors"
    )
    prompt = {"prompts": "A red disc", "size": "5x48x80"}
    theirs = predict(output="with", lora=tmp_path / "theirs" / "x.safetensors", **prompt)["00_a_red_disc"]
    base = predict(output="without", **prompt)["00_a_red_disc"]
    assert np.abs(theirs[0] - base[0]).mean() > 1


def test_guidance_and_negative_prompt(predict):
    prompt = {"prompts": "A red disc", "size": "5x48x80"}
    plain = predict(**prompt)["00_a_red_disc"]
    guided = predict(output="guided", samples__guidance_scale=4, samples__negative_prompt="dull", **prompt)
    assert np.abs(guided["00_a_red_disc"][0] - plain[0]).mean() > 1
    assert guided["00_a_red_disc"][1]["negative_prompt"] == "dull"
    still = predict(output="still", samples__guidance_scale=4, samples__negative_prompt="A red disc", **prompt)
    assert np.abs(still["00_a_red_disc"][0] - plain[0]).max() <= 1


def test_the_text_encoder_is_gone_before_the_transformer_comes(predict, monkeypatch):
    events = []
    encode, load = BaseEncoders.encode_captions, LTXVideo.load_transformer

    def encode_captions(self, captions):
        events.append("encoded")
        return encode(self, captions)

    def load_transformer(self, *arguments):
        events.append("loaded")
        return load(self, *arguments)

    monkeypatch.setattr(BaseEncoders, "encode_captions", encode_captions)
    monkeypatch.setattr(BaseEncoders, "__del__", lambda self: events.append("freed"), raising=False)
    monkeypatch.setattr(LTXVideo, "load_transformer", load_transformer)
    predict(prompts="A red disc", size="5x48x80")
    assert events == ["encoded", "freed", "loaded"]


def test_nothing_is_overwritten_unless_told(predict, quickstart, tmp_path, capsys):
    options = {"prompts": "A red disc", "size": "5x48x80"}
    predict(**options)
    video = tmp_path / "out" / "00_a_red_disc.mp4"
    before = video.read_bytes()
    words = quickstart("predict", output=tmp_path / "out", samples__seed=9, samples__num_steps=2, **options)
    assert main(words) == 2
    assert f"{video} exists" in capsys.readouterr().err
    assert video.read_bytes() == before
    assert main([*words, "--overwrite"]) == 0
    assert video.read_bytes() != before


def broken_table(folder, text):
    path = folder / "table.csv"
    path.write_text(text)
    return path


ERRORS = {
    "nothing": ({}, "there are no prompts"),
    "missing file": ({"prompts": "nowhere.csv"}, "nowhere.csv: no such file"),
    "no prompt column": ({"table": "text,seed\na,1\n"}, "its columns are text, seed"),
    "pictures for all frames": (
        {"table": "prompt,image,last_image,num_frames\na,table.csv,table.csv,5\n"},
        "nothing is left to make",
    ),
    "no reference": ({"table": "prompt,reference\na,none.mp4\n"}, "there is no reference"),
    "a reference too many": ({"table": "prompt,reference\na,table.csv\n"}, "was trained without any"),
    "unknown column": ({"table": "prompt,seeds\na,1\n"}, "its columns are prompt, seeds"),
    "bad seed": ({"table": "prompt,seed\na,1\nb,x\n"}, "line 3: seed and num_frames"),
    "bad size": ({"table": "prompt,resolution\na,big\n"}, "line 2: bucket"),
    "a comma too many": ({"table": "prompt,seed\na,1,red\n"}, "line 2: the row has other columns"),
    "no size of the model's": ({"prompts": "a", "size": "8x50x80"}, "prompt 0 ('a'): bucket 8x50x80 does not fit"),
    "no lora": ({"prompts": "a", "lora": "nowhere"}, "nowhere: no such file"),
    "two weights": ({"prompts": "a", "lora": "x", "ckpt_path": "best"}, "--ckpt_path and --lora"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_one_clear_line(quickstart, tmp_path, capsys, case):
    options, words = ERRORS[case]
    options = dict(options)
    if "table" in options:
        options["prompts"] = broken_table(tmp_path, options.pop("table"))
    if options.get("ckpt_path") == "best":
        torch.save({"global_step": 0, "pytorch-lightning_version": "2.6", "state_dict": {}}, tmp_path / "best.ckpt")
        options["ckpt_path"] = tmp_path / "best.ckpt"
    assert main(quickstart("predict", output=tmp_path / "out", **options)) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_lora_is_a_safetensors_file(quickstart, tmp_path, capsys):
    """Any other may hold code: it is not opened, whatever it is called."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for name, said in (
        ("lora.bin", "only safetensors files are read"),
        ("lora.safetensors", "cannot be loaded as a LoRA"),
    ):
        torch.save({"transformer.a.lora_A.weight": Trap()}, tmp_path / name)
        assert main(quickstart("predict", prompts="a", lora=tmp_path / name, output=tmp_path / "out")) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_lora_of_another_model_is_refused(quickstart, tmp_path, capsys):
    for name, shape in (("transformer_blocks.0.attn1.to_q", (4, 7)), ("blocks.0.self_attn.q", (4, 128))):
        file = tmp_path / "other.safetensors"
        tensors = {f"transformer.{name}.lora_A.weight": torch.ones(shape)}
        tensors[f"transformer.{name}.lora_B.weight"] = torch.ones(128, 4)
        save_file(tensors, file)
        assert main(quickstart("predict", prompts="a", lora=file, output=tmp_path / "out")) == 2
        assert f"{file} " in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_make_every_prompt_once(quickstart, table, tmp_path):
    def run(output, *words):
        command = quickstart("predict", prompts=table, samples__num_steps=2, output=tmp_path / output)
        done = subprocess.run(
            [sys.executable, "-m", "vidlit", *command, *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return read(tmp_path / output), done.stdout

    alone, _ = run("alone")
    shared, printed = run("shared", "--trainer.devices=2", "--trainer.strategy=ddp")
    assert shared.keys() == alone.keys()
    assert len(list((tmp_path / "shared").iterdir())) == 6
    assert "on rank 0 of 2" in printed
    for name, (frames, note) in alone.items():
        assert np.array_equal(frames, shared[name][0])
        assert note == shared[name][1]
