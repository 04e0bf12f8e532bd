import json

import pytest

from tests.models import bases
from tests.tiny_runs import tiny_words
from vidlit.__main__ import main
from vidlit.errors import UserError
from vidlit.models.family import open_family
from vidlit.training.blocks.context_parallel import check_context, check_family
from vidlit.training.module import VideoDiffusionModule
from vidlit.video.buckets import Bucket


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    bases.wan(folder)
    return folder


@pytest.mark.parametrize(
    ("degree", "said"),
    [(0, "it is a number of ranks"), (4, "the 2 heads .* choose one of 1, 2"), (3, "the 2 heads")],
)
def test_a_degree_that_the_base_does_not_go_with(wan, degree, said):
    with pytest.raises(UserError, match=f"model.context_parallel is {degree}.*{said}"):
        check_family(open_family(wan), degree)


def test_other_families_are_refused_by_name(demo):
    with pytest.raises(UserError, match=r"not for .*\(LTXVideo\).* Wan's are"):
        VideoDiffusionModule(str(demo.dir / "base"), context_parallel=2)


@pytest.mark.parametrize(
    ("num_ranks", "sizes", "said"),
    [
        (1, [], "the number of processes, 1,.*--trainer.devices"),
        (3, [], "the number of processes, 3,"),
        (2, [Bucket(9, 32, 64), Bucket(9, 48, 80), Bucket(1, 16, 16)], r"9x48x80 \(45 tokens\), 1x16x16 \(1 tokens\)"),
    ],
)
def test_processes_and_sizes_that_cannot_be_divided(wan, num_ranks, sizes, said):
    with pytest.raises(UserError, match=f"model.context_parallel is 2.*{said}"):
        check_context(open_family(wan), 2, num_ranks, sizes)


def test_a_fit_ends_before_it_encodes_and_a_plan_counts_what_ranks_share(wan, demo, tmp_path, capsys):
    words = [
        *tiny_words("wan2_1_1_3b_full", wan, demo.dir / "clips", "9x32x64", tmp_path),
        "--model.context_parallel=2",
    ]
    assert main(["fit", *words]) == 2
    assert "the number of processes, 1, cannot be divided" in capsys.readouterr().err
    assert not (tmp_path / "latents").exists()

    def samples_of(*options):
        assert main(["plan", *words, "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["batch_size"]

    assert samples_of("--trainer.devices=4") == 2 * samples_of("--trainer.devices=2")
    assert samples_of("--trainer.devices=4") == samples_of("--trainer.devices=2", "--model.context_parallel=1")
    assert main(["plan", *words, "--trainer.devices=2", "--data.buckets=[9x48x80]"]) == 2
    assert "9x48x80 (45 tokens)" in capsys.readouterr().err
