"""What is promised of versions, and the files that tools outside Python read."""

import os
import re
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import vidlit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def pins(file):
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *EXTRAS])
def test_every_dependency_is_pinned_within_its_bounds(line):
    requirement = Requirement(line)
    assert requirement.specifier.contains(pins("constraints.txt")[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_the_lowest_versions_are_the_bounds(line):
    """So that what CI tries is what is promised."""
    requirement = Requirement(line)
    (bound,) = requirement.specifier
    assert bound.operator == ">="
    assert pins("constraints-lowest.txt")[canonicalize_name(requirement.name)] == Version(bound.version)


def test_what_the_makefile_lists_is_there():
    text = (ROOT / "Makefile").read_text()
    listed = dict(re.findall(r"^([a-z-]+):.*## (.+)$", text, re.MULTILINE))
    assert {"install", "test", "test-fast", "lint", "docs", "bench", "coverage", "release"} <= set(listed)
    done = subprocess.run(["make", "--dry-run", *listed], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for folder in re.findall(r"\btests/\S+", text):
        assert (ROOT / folder).exists(), folder


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_name_what_is_there(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    paths = re.compile(r"(?:\btests/|\bconfigs/|\bconstraints[\w-]*\.|\.ci/)[\w/.-]+")
    named = {word for command in commands for word in paths.findall(command)}
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {target for command in commands for target in re.findall(r"make (\S+)", command)} <= targets
    lowest = Version(PROJECT["requires-python"].removeprefix(">="))
    tried = jobs["suite"]["strategy"]["matrix"]["python"]
    assert min(map(Version, tried)) == lowest


def test_the_version_is_the_same_everywhere():
    assert CITATION["version"] == vidlit.__version__ == PROJECT["version"]


def test_places_on_the_web_are_the_same_everywhere():
    """A repository that is named in one of these files is named in all."""
    pages = re.search(r"^repo_url: (\S+)", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    places = (PROJECT.get("urls", {}).get("Repository"), CITATION.get("repository-code"), pages and pages[1])
    assert len(set(places)) == 1


def test_classifiers_name_the_versions_that_are_tried():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    said = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if "Python :: 3." in name]
    assert said == jobs["suite"]["strategy"]["matrix"]["python"]


# -- what is built, and installed


@pytest.mark.slow
def test_the_source_archive_holds_the_checkout(built, tracked):
    with tarfile.open(built[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tracked) <= held
    folders = {parent.as_posix() for name in tracked for parent in Path(name).parents}
    others = {name for name in held - set(tracked) - folders if not name.startswith("vidlit.egg-info")}
    assert others == {"", "PKG-INFO", "setup.cfg"}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_configs(built, tracked):
    with zipfile.ZipFile(built[1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("dist-info/METADATA"))
    package = {name for name in tracked if name.startswith("vidlit/")}
    assert held == package | {f"vidlit/{name}" for name in tracked if name.startswith("configs/")}
    assert "Classifier: Typing :: Typed" in metadata
    assert "# vidlit" in metadata  # the README


@pytest.mark.slow
def test_an_installed_package_runs_the_quickstart_by_name(installed, tmp_path):
    """Far from the checkout, in an empty folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def vidlit(*words):
        done = subprocess.run(
            [installed / "vidlit", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    where = "import vidlit; print(vidlit.__file__)"
    found = subprocess.run(
        [installed / "python", "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(str(installed.parent))
    assert "start here: vidlit fit --config quickstart" in vidlit("--help")
    printed = vidlit("demo", "tried", "--num_videos", "6", "--clips_per_video", "2")
    assert printed.startswith(f"12 clips in {Path('tried', 'clips')}, base model in {Path('tried', 'base')}")
    assert "torchao" not in printed
    words = printed.partition("Next: vidlit ")[2].split()
    short = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--data.batches.size=2"]
    short += ["--samples.num_audit=0", "--samples.num_videos=1", "--samples.num_steps=2"]
    vidlit(*words, *short)
    run = tmp_path / "runs" / "quickstart" / "0"
    assert (run / "weights" / "transformer" / "config.json").is_file()
    assert (run / "report.html").is_file()
    vidlit("init", "mine", "--source", "tried/clips", "--base", "tried/base")
    assert "12 clips of 6 recordings" in vidlit("plan", "--config", "mine.yaml")
