"""Bases from a stranger, and damaged ones: one line that names the part, and nothing in them is run."""

import json
import pickle
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models import bases
from vidlit.errors import UserError
from vidlit.models.family import open_family

FAMILIES = ["ltx_video", pytest.param("wan", marks=pytest.mark.slow)]
"""One with a VAE of diffusers and a scheduler of its own, one that lets its base name the scheduler."""


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request, tmp_path_factory):
    return getattr(bases, request.param)(tmp_path_factory.mktemp("bases") / request.param)


@pytest.fixture
def base(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "base")


def use(folder):
    """Everything that a run reads of a base."""
    family = open_family(folder)
    family.load_transformer()
    family.load_vae("cpu")
    family.load_prompt_encoder("cpu")
    family.load_scheduler(2, 64)


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut_weights(base):
    path = next((base / "transformer").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def no_safetensors(base):
    path = next((base / "transformer").glob("*.safetensors"))
    path.write_bytes(b"\0" * 100)


def other_sizes(base):
    edit(base / "transformer" / "config.json", num_attention_heads=3)


def index_outside(base):
    named = "../../outside.safetensors"
    path = next((base / "transformer").glob("*.safetensors"))
    shutil.move(path, base.parent / "outside.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": named}}
    (base / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


DAMAGE = {
    "no folder of a part": lambda base: shutil.rmtree(base / "vae"),
    "no tokenizer": lambda base: shutil.rmtree(base / "tokenizer"),
    "no weights": lambda base: next((base / "transformer").glob("*.safetensors")).unlink(),
    "no weights of an encoder": lambda base: next((base / "text_encoder").glob("*.safetensors")).unlink(),
    "a list": lambda base: (base / "transformer" / "config.json").write_text("[1, 2]"),
    "no JSON": lambda base: (base / "vae" / "config.json").write_text("{"),
    "deep JSON": lambda base: (base / "vae" / "config.json").write_text("[" * 100_000),
    "no UTF-8": lambda base: (base / "vae" / "config.json").write_bytes(b"\xff\xfe"),
    "a VAE of a class that is none": lambda base: edit(base / "vae" / "config.json", _class_name="AutoencoderKLNone"),
    "a VAE of another kind": lambda base: edit(base / "vae" / "config.json", _class_name="StableDiffusionPipeline"),
    "a VAE of a module": lambda base: edit(base / "vae" / "config.json", _class_name="utils"),
    "a VAE of no name": lambda base: edit(base / "vae" / "config.json", _class_name=["x"]),
    "a transformer of no name": lambda base: edit(base / "transformer" / "config.json", _class_name=["x"]),
    "layers without end": lambda base: edit(base / "transformer" / "config.json", num_layers=10**7),
    "layers of the encoder": lambda base: edit(base / "text_encoder" / "config.json", num_layers=10**7),
    "a word for a number": lambda base: edit(base / "transformer" / "config.json", num_layers="many"),
    "other sizes": other_sizes,
    "cut weights": cut_weights,
    "layers without weights": lambda base: edit(base / "transformer" / "config.json", num_layers=9),
    "weights that are none": no_safetensors,
    "an index that names files outside": index_outside,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_base_is_one_line_that_names_the_part(base, name):
    DAMAGE[name](base)
    with pytest.raises(UserError) as caught:
        use(base)
    line = str(caught.value)
    assert str(base) in line
    assert len(line.splitlines()) == 1
    assert len(line) < 1000


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.floats(allow_nan=True), st.text(max_size=3),
    st.lists(st.integers(-2, 5), max_size=3), st.just({"a": 1}),
)  # fmt: skip


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_config_it_is_read_or_told(whole, tmp_path_factory, data):
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("base") / "base")
    path = folder / data.draw(st.sampled_from(["transformer", "vae"])) / "config.json"
    key = data.draw(st.sampled_from(sorted(json.loads(path.read_text()))))
    edit(path, **{key: data.draw(VALUES)})
    try:
        family = open_family(folder)
        family.load_transformer()
        family.load_vae("cpu")
    except UserError as error:
        told = str(error)
    else:
        told = ""
    assert len(told.splitlines()) <= 1
    shutil.rmtree(folder)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt"])
def test_weights_of_another_kind_than_safetensors_are_not_opened(base, tmp_path, part, name):
    for path in (base / part).glob("*.safetensors"):
        path.unlink()
    torch.save({"a": Trap(tmp_path / "ran")}, base / part / name)
    (base / part / "plain.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(UserError, match=part):
        use(base)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_no_code_that_lies_in_a_base_is_run(base, tmp_path, part):
    (base / part / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: pass\n")
    named = {kind: "evil.Evil" for kind in ("AutoModel", "AutoConfig", "AutoTokenizer", "Evil")}
    for path in (base / part).glob("*config.json"):
        edit(path, auto_map={**named, "AutoTokenizer": ["evil.Evil", "evil.Evil"]}, custom_pipeline="evil")
    shutil.copy(base / part / "evil.py", base / "pipeline.py")
    try:
        use(base)
    except UserError:
        pass
    assert not (tmp_path / "ran").exists()
