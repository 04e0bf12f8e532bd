"""What lies beside exported weights, and what would be uploaded."""

import fnmatch
import html
import re

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from vidlit.__main__ import main
from vidlit.report.model_card import base_licence, plain, push


class Hub:
    """Stands in for huggingface_hub.HfApi; keeps what it was asked."""

    calls: list

    def create_repo(self, name, **options):
        self.calls.append(("create_repo", name, options))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    return Hub.calls


def card_of(folder):
    """Front matter and text."""
    _, matter, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(matter), text


def sent(upload):
    """Files that an upload takes, as the hub's client matches them."""
    folder = upload["folder_path"]
    every = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {file for file in every if any(fnmatch.fnmatch(file, pattern) for pattern in upload["allow_patterns"])}


def code_of(text):
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


@pytest.mark.parametrize("adapter", ["null", "{rank: 4, alpha: 8}"])
def test_a_run_leaves_a_card_whose_code_loads_its_weights(quickstart, demo, tmp_path, monkeypatch, hub, adapter):
    words = quickstart(model__adapter=adapter, samples__num_videos=1, samples__num_steps=2, samples__num_audit=0)
    assert main(words) == 0
    weights = tmp_path / "runs" / "quickstart" / "0" / "weights"
    matter, text = card_of(weights)
    assert (matter["library_name"], matter["pipeline_tag"]) == ("diffusers", "text-to-video")
    assert "base_model" not in matter  # a folder is no name of the hub
    assert ("lora" in matter["tags"]) == (adapter != "null")
    assert "Licence of the base model: see the base model" in text
    for words in (
        "Trained on 6 clips; 6 kept for validation",
        "by max_steps: all planned steps were trained",
        "against the base",
    ):
        assert words in text, text
    for name in ("scene_", ".mp4", "take_"):
        assert name not in text.replace(code_of(text), "")  # no file names
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        with Image.open(weights / picture) as shown:
            assert shown.width > 100
    assert {path.name for path in weights.glob("*.png")} == {"validation_curve.png", "samples.png"}
    assert hub == []  # nothing leaves the machine unless asked

    monkeypatch.chdir(weights)
    # Here on the CPU, in two steps, and without what writes files.
    code = (
        code_of(text).replace('pipeline.to("cuda")\n', "").replace(").frames[0]", ", num_inference_steps=2).frames[0]")
    )
    names, videos = {}, []
    monkeypatch.setattr("diffusers.utils.export_to_video", lambda *video, fps: videos.append((*video, fps)))
    exec(code, names)
    ((video, file, fps),) = videos
    assert (len(video), file, fps) == (17, "video.mp4", 16)
    loaded = names["pipeline"].transformer.state_dict()
    if adapter == "null":
        for name, value in load_file(weights / "transformer" / "diffusion_pytorch_model.safetensors").items():
            assert torch.equal(loaded[name], value.bfloat16()), name
    else:
        for name, value in load_file(weights / "pytorch_lora_weights.safetensors").items():
            layer, side = name.removeprefix("transformer.").rsplit(".lora_", 1)
            key = next(k for k in loaded if k.startswith(f"{layer}.lora_{side[0]}."))
            assert torch.equal(loaded[key].float(), value.bfloat16().float()), name


def test_weights_are_uploaded_where_asked_and_no_more_than_them(quickstart, tmp_path, hub, capsys):
    words = quickstart(trainer__max_steps=4, samples__num_audit=0, export__push_to_hub="someone/something")
    assert main([*words, "--model.noise.first_frame=0.1"]) == 0
    (created, name, options), (uploaded, upload) = hub
    assert (created, uploaded, name) == ("create_repo", "upload_folder", "someone/something")
    assert options["private"] is True
    assert sent(upload) == {
        "README.md",
        "validation_curve.png",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    }
    assert "Uploaded to https://huggingface.co/someone/something" in capsys.readouterr().out
    matter, _ = card_of(upload["folder_path"])
    assert matter["pipeline_tag"] == "text-to-video"  # a few samples with their first frame need no image


def test_experts_are_uploaded_with_their_configs(tmp_path, hub):
    files = {f"{name}/{file}" for name in ("transformer", "transformer_2") for file in ("config.json", "index.json")}
    for file in [*files, "vae/config.json"]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    push(tmp_path, "someone/something")
    _, (_, upload) = hub
    assert sent(upload) == files


def test_a_failed_upload_costs_nothing_else(quickstart, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setattr(Hub, "create_repo", lambda *_, **__: 1 / 0)
    words = quickstart(trainer__max_steps=4, samples__num_audit=0, export__push_to_hub="someone/something")
    assert main(words) == 0
    assert "nothing was uploaded to someone/something" in capsys.readouterr().out
    assert (tmp_path / "runs/quickstart/0/weights/transformer/config.json").is_file()


def test_a_name_that_is_none_of_the_hubs_is_refused_at_once(quickstart, capsys):
    assert main(quickstart(export__push_to_hub="just-a-name")) == 2
    assert "must be owner/name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# Model\n", {"license": "apache-2.0"}),
        ("---\nlicense: other\nlicense_name: ours\n---\n", {"license": "other", "license_name": "ours"}),
        ("# Model\nlicense: mit\n", {}),
        ("---\n[broken\n---\n", {}),
    ],
)
def test_the_bases_licence_is_read_where_it_states_one(tmp_path, text, licence):
    assert base_licence(tmp_path) == {}
    (tmp_path / "README.md").write_text(text)
    assert base_licence(tmp_path) == licence


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
@example("<script>alert(1)</script>")
@example("[here](https://evil.example)")
@example("name\n---\nlicense: mit")
@example("![x](http://evil.example/x.png)")
@example("`code` **bold** _em_ | table | ~~no~~")
def test_a_name_is_no_markup_in_a_card(text):
    """What Markdown or HTML would act on is escaped, and what is shown is the text, on one line."""
    shown = plain(text)
    assert "\n" not in shown
    assert not re.search(r"<|>", shown)
    assert not re.search(r"(?<!\\)(\\\\)*[`*\[\]|~]", re.sub(r"\\[^\w\s]", "", shown))
    assert not shown.startswith(("#", "-", "=", "+"))
    assert "://" not in shown
    if text.isalnum():
        assert html.unescape(shown) == text


def test_names_that_say_nothing_to_markdown_stay_word_for_word():
    for text in ("quickstart/0", "by max_steps: all planned steps were trained", "my_style (2.1)/3", "a+b=c"):
        assert plain(text) == text
