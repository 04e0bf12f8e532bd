"""The guide that adds a family: its code, taken from the page and run."""

import ast
import re

import diffusers
import pytest
import torch

from tests.models import bases, test_every_family, test_export
from tests.pages import DOCS, block, module_of
from vidlit.commands.cli.parse_only import ParseOnly
from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.generate import generate
from vidlit.diffusion.streams import Stream
from vidlit.models.encoders import VideoEncoder
from vidlit.models.family import Family, open_family

PAGE = "extending/family.md"


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """As if the file lay in the package and the entry in the table; nothing of either stays."""
    folder = tmp_path_factory.mktemp("guide")
    with module_of(PAGE, "vidlit/models/families/skyreels.py", folder, "vidlit.models.families.skyreels"):
        exec(block(PAGE, "tests/models/bases.py"), dict(vars(bases)))
        yield open_family(bases.EVERY["skyreels"](folder / "base"))
        del bases.EVERY["skyreels"]


# The entry in the table: the very tests of all families, with the family above for theirs.
batch, encoded, mesh = test_every_family.batch, test_every_family.encoded, test_every_family.mesh
conditioning = test_export.conditioning
ALL = {
    name: test
    for name, test in vars(test_every_family).items()
    if name.startswith("test_") and name != "test_no_family_is_forgotten"
}
assert len(ALL) > 8
globals().update(ALL)
test_a_lora_reloaded = test_export.test_a_lora_reloaded_in_the_pipeline_gives_the_same_outputs
test_lora_targets = test_export.test_lora_adapts_the_blocks_attention_alone


def test_the_test_on_the_page_passes(family, tmp_path):
    names = {"bases": bases, "diffusers": diffusers, "torch": torch, "open_family": open_family}
    names |= {"Conditioning": Conditioning, "generate": generate}
    exec(block(PAGE, "tests/models/test_skyreels.py"), names)
    names["test_generate_against_a_run_of_the_pipeline"](tmp_path)


def test_the_yaml_on_the_page_is_accepted(tmp_path):
    path = tmp_path / "skyreels_lora.yaml"
    path.write_text(block(PAGE, "configs/skyreels_lora.yaml"))
    config = ParseOnly(["fit", "--config", str(path)]).config.fit
    assert config.model.base.startswith("Skywork/")
    assert config.run.name == path.stem


def test_the_page_names_the_interface_and_nothing_else():
    """What is abstract is in the code; and every name of an attribute or method in the prose exists."""
    tree = ast.parse(block(PAGE, "vidlit/models/families/skyreels.py"))
    (written,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert Family.__abstractmethods__ <= {node.name for node in written.body if isinstance(node, ast.FunctionDef)}
    prose = re.sub(r"^```.*?^```$", "", (DOCS / PAGE).read_text(), flags=re.MULTILINE | re.DOTALL)
    section = prose[prose.index("## Where to look") : prose.index("## The entry in the tests")]
    named = set(re.findall(r"`([a-z_]+)`", section))
    known = set(dir(Family)) | set(Family.__annotations__) | set(dir(VideoEncoder)) | set(Stream.__annotations__)
    assert named & known >= {"velocity", "load_scheduler", "prompt_extras", "clip_extras", "takes_clean_frames"}
    pipelines = {"timestep", "mu", "set_timesteps", "retrieve_timesteps", "calculate_shift", "encode_prompt", "step"}
    pipelines |= {"max_sequence_length", "temporal_compression_ratio", "spatial_compression_ratio", "latent_channels"}
    keys = {"read_tokens", "prompt_embeds", "pooled_projections", "latents", "image_latents", "__init__", "__call__"}
    assert named - known - pipelines - keys == set()
